"""The SDK: publish events, read decisions."""
