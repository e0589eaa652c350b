"""The exactly-once core in a deterministic simulation."""
