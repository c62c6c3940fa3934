"""The commands that use a trained encoder: voices, speech, conversion, replies, a server."""
