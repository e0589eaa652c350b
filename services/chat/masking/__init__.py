"""Personal data leaves a customer's message before anything else reads it."""

from services.chat.masking.masker import Masker, unmask

__all__ = ["Masker", "unmask"]
