"""Payment fraud: a decision for each transaction."""
