"""One turn: from a customer's message to all that becomes of it."""
