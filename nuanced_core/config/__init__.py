"""Settings of a training run: what there is to set, how YAML is read, how a mistake is reported."""
