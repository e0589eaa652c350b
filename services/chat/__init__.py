"""Answers customers: grounded in the bank's own knowledge, guarded, streamed, or handed to a person."""
