"""Judges of a sound: its speaker, pitch, quality and words; most need the extra `eval`."""
