"""Refinement: gradient steps through Kokoro from an encoder's style towards one person's voice."""
