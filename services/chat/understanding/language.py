"""Which language a message is written in, by the scripts of its letters."""

import unicodedata
from enum import StrEnum

from services.chat.domain import PLACEHOLDER, Language

TEXT_CHARS_MAX = 4_000
"""Characters that are read: a message of megabytes costs no more than a long one."""


_LETTERS_A_HAN = 6


class Script(StrEnum):
    """What most of a text's letters belong to."""

    LATIN = "latin"
    HAN = "han"
    OTHER = "other"  # Cyrillic, Arabic, kana, ...: no head serves it
    NONE = "none"  # no letters: empty, digits, emoji, placeholders alone


def bounded(text: str) -> str:
    """The part of `text` that is read, in compatibility form (full-width letters become plain ones)."""
    return unicodedata.normalize("NFKC", text[:TEXT_CHARS_MAX])[:TEXT_CHARS_MAX]


def script_of(text: str) -> Script:
    """The script that most is said in; masked spans such as `[CARD_1]` do not count.

    A Han letter says as much as a word: each counts as six letters.
    """
    han = latin = other = 0
    for char in PLACEHOLDER.sub(" ", bounded(text)):
        if not char.isalpha():
            continue
        name = unicodedata.name(char, "")
        if name.startswith("CJK "):
            han += 1
        elif name.startswith("LATIN "):
            latin += 1
        else:
            other += 1
    if not (letters := han + latin + other):
        return Script.NONE
    if _LETTERS_A_HAN * han >= letters:
        return Script.HAN
    return Script.LATIN if latin >= other else Script.OTHER


def language_of(text: str) -> Language:
    """`zh` where Han letters prevail, else `en`: a script that no head serves is answered in English."""
    return "zh" if script_of(text) is Script.HAN else "en"
