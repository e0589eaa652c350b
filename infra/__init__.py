"""How Weir runs."""
