"""Speaker encoders: frozen networks that say who speaks, differentiable in the audio."""
