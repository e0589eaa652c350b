"""Answers: the bank's own passages, or a model's sentences that these bear out."""
