"""Settings of a training run: their definition, their YAML files, and error messages for wrong settings."""
