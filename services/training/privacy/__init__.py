"""Training whose result tells little of any one account: the method, what it spends, and an attack on it."""
