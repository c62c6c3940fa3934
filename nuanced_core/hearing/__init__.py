"""From audio to features: augmentation of clips, and the states of Whisper's encoder."""
