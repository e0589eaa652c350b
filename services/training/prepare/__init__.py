"""A bank's events before a model sees them: checked, cleaned, looked at, searched for leaks."""
