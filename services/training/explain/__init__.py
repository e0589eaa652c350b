"""Why the risk model scored as it did: one decision, the model as a whole, and how steady its reasons are."""
