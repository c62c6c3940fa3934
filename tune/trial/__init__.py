"""One trial in its process: the Ray actor, its reports, its checkpoints, and its share of a GPU."""
