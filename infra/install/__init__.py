"""How a bare machine gets what Weir needs; standard library only, so that bare Python runs it."""
