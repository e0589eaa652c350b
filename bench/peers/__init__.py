"""Programs that copy a topic, each at its own best settings: what the decision path is measured against."""
