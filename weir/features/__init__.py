"""What a model sees of an event, online and offline."""
