"""A text that is still being written, sentence by sentence: English and Chinese.

A sentence is handed out once its end is certain: a full stop may belong to a number or an abbreviation, and a
quotation mark after it belongs to it. Whatever way the text is cut into pieces, the sentences are the same.
"""

import re
from collections.abc import Iterator

# Longer ones are cut at the next space, so that a text without any end is handed out all the same.
SENTENCE_CHARS_MAX = 600

_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """mr mrs ms dr prof st no nos vs etc eg ie e.g i.e approx inc ltd co corp dept est fig jan feb mar
        apr jun jul aug sep sept oct nov dec min max tel ext art sec para a.m p.m u.s u.k""",
    )
)
_CLOSING = "\"'”’)]』」》"
_HAN_END, _LATIN_END = "。！？；…", ".!?"
_WORD_BEFORE = re.compile(r"([A-Za-z][A-Za-z.]*)$")


class SentenceStream:
    """Takes a text piece by piece and gives back whole sentences, with the space between them left out."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, piece: str) -> list[str]:
        """The sentences that are certain by now."""
        self._text += piece
        return list(self._whole(at_end=False))

    def finish(self) -> list[str]:
        """What is left, now that nothing follows."""
        return [*self._whole(at_end=True), *([rest] if (rest := self._take(len(self._text))) else [])]

    def _whole(self, *, at_end: bool) -> Iterator[str]:
        while (end := _end_of_first(self._text, at_end=at_end)) is not None:
            if sentence := self._take(end):
                yield sentence

    def _take(self, end: int) -> str:
        sentence, self._text = self._text[:end].strip(), self._text[end:]
        return sentence


def sentences_of(text: str) -> list[str]:
    """The sentences of a text that is whole."""
    stream = SentenceStream()
    return [*stream.push(text), *stream.finish()]


def _end_of_first(text: str, *, at_end: bool) -> int | None:
    """Where the first sentence ends, if that is certain."""
    for at, letter in enumerate(text[: SENTENCE_CHARS_MAX + 1]):
        if letter == "\n" and text[:at].strip():
            return at + 1
        if letter not in _HAN_END and letter not in _LATIN_END:
            continue
        end = at + 1
        while end < min(len(text), SENTENCE_CHARS_MAX) and text[end] in _CLOSING + _HAN_END + _LATIN_END:
            end += 1
        if end == len(text) and not at_end and end <= SENTENCE_CHARS_MAX:
            return None  # what follows may belong to it
        if letter in _HAN_END or end == len(text) or _ends(text, at, end):
            return end
    if len(text) <= SENTENCE_CHARS_MAX:
        return None
    space = text.rfind(" ", SENTENCE_CHARS_MAX // 2, SENTENCE_CHARS_MAX)
    return space + 1 if space > 0 else SENTENCE_CHARS_MAX


def _ends(text: str, at: int, end: int) -> bool:
    """Whether the mark at `at`, followed by text, ends a sentence."""
    if not text[end].isspace():
        return False
    if text[at] != "." or text[at + 1] in _CLOSING:
        return True
    word = _WORD_BEFORE.search(text, max(0, at - 12), at)
    if word is None:
        # "1. First" begins an item of a list; "in 2024. Then" ends a sentence.
        return not re.fullmatch(r"\s*\d{1,2}", text[:at])
    said = word[1].lower().rstrip(".")
    return said not in _ABBREVIATIONS and not (len(said) == 1 and word[1].isupper())
