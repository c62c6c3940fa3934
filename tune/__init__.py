"""The search: Ray executes StyleEncoder trials, Optuna decides, the study remembers."""
