"""The ``nuanced`` command."""
