"""The key service."""
