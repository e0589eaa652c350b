"""One folder a deployable."""
