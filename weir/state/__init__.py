"""Keyed columnar state."""
