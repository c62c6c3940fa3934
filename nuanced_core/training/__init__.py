"""One training run: preparation, losses, steps, validation and checkpoints."""
