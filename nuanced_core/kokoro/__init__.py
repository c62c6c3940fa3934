"""Kokoro-82M as a frozen, differentiable function of a style vector, and the voices that styles come from."""
