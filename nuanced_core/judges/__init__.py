"""Judges of speech that no training hears: speaker identity, pitch, quality and words; most need the extra `eval`."""
