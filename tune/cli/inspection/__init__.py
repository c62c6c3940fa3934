"""Commands that show the state of a sweep or of a machine."""
