"""The embedded stack: every server as a local process."""
