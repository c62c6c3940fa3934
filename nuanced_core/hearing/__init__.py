"""From audio to features: augmentation and fixed degradation of clips, and Whisper's encoder states."""
