"""Models from labelled events."""
