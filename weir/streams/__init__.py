"""Batch streaming on Faust: one record batch a partition a fetch."""
