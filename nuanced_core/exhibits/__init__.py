"""What a run shows to ears and eyes: sounds and pictures of validation clips."""
