"""What the chat service is worth, measured: each figure with the size of its set and an interval."""
