"""The Triton client."""
