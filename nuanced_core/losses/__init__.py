"""Losses: of what Kokoro speaks against a reference, and of what it speaks in the voice of a person."""
