"""Where a trial's curves, sounds and pictures are written: TensorBoard, MLflow and Weights & Biases."""
