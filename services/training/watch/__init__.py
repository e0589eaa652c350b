"""A served risk model on later events: drift, performance, slices, groups, and when to train again."""
