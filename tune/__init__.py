"""The search: Ray runs trials of nuanced_core, Optuna decides which, and people see how they go."""
