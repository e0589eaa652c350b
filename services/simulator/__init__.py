"""A synthetic bank."""
