"""Settings of a sweep: the search space, the sweep's own settings, and the run that trials vary."""
