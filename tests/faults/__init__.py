"""Faults done to a real cluster by a seeded schedule, and a checker of what its topics then say."""
