"""Answers as they are written, for the bank's app."""
