"""The final evaluation of an encoder: on the test split and on recordings of people, beside its baselines."""
