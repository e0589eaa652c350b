"""What Weir costs, beside its floor and its peers, measured in one run on one machine."""
