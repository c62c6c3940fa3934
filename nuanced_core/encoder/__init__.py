"""The StyleEncoder, which maps Whisper features to Kokoro styles; its pooling strategies and its export."""
