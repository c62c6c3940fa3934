"""The StyleEncoder: Whisper features to a Kokoro style vector, and its exported form."""
