"""What files of weights are made of: safetensors, and matrices of small integers in blocks."""
