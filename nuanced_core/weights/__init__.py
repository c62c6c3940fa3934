"""Model files: their sources, their verification by SHA-256, their conversion, and their cache."""
