"""Text to sentences to phonemes: what Kokoro is given to say."""
