"""The commands that use an encoder: a voice from clips, mixes of voices, and speech."""
