"""Commands that train encoders: a sweep of many trials, or one run."""
