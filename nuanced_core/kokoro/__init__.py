"""Kokoro-82M as a frozen, differentiable function of a style vector; stock voices and mixtures of them."""
