"""Commands that export and evaluate trained encoders."""
