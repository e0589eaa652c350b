"""Envelopes: who may read a decision."""
