"""The clients of MLflow and Weights & Biases, which work in a thread of a trial's process."""
