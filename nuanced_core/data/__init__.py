"""Training and validation data: utterances, their rendered clips and features, and the cache that holds both."""
