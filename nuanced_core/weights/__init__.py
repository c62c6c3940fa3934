"""Model files: where they come from, how they are verified, and where they are cached."""
