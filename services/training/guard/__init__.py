"""`weir models guard`: takes a canary back, and puts the last champion back, by limits that a person set."""
