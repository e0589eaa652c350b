"""Weir: decide on a bank's live events. The SDK's public names are imported from here."""
