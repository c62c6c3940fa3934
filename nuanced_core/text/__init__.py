"""Conversion of text to sentences, and of sentences to the phonemes that Kokoro speaks."""
