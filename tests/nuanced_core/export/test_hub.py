"""Upload to the hub and loading from there, against a local server with the routes that huggingface_hub uses."""
