"""People as training data: folders of recordings, split by speaker, each recording heard once."""
