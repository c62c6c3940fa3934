"""Export of a trained encoder to a folder that can be loaded and shared, to ONNX, and to the Hugging Face hub."""
