"""What a message says without asking a model: its language, how urgent it is, how it sounds."""

from services.chat.understanding.language import Script, language_of, script_of
from services.chat.understanding.words import BadWordTable, WordTable, load_words

__all__ = ["BadWordTable", "Script", "WordTable", "language_of", "load_words", "script_of"]
