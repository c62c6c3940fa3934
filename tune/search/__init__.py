"""The Optuna study: samplers, pruners, where it is stored, and the ledger through which the driver uses it."""
