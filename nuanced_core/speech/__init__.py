"""Speech with a trained encoder: a voice from clips, its pack, and what Kokoro says in it."""
