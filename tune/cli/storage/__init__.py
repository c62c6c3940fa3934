"""Commands that manage model files and the cache of rendered clips."""
