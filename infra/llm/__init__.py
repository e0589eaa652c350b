"""Language models: weights as they are published, to a model repository that Triton serves."""
