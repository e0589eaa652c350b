"""The language model and the sentence encoder made smaller, and what that costs."""
