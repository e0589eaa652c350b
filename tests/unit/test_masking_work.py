"""The work of masking grows with the length of a message, whatever a customer writes in it."""

import re
import sys
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore[attr-defined]  # not public, and all there is

import pytest

from services.chat.masking import Masker, masker, numbers, shadow, tagger, unmask, words

UNBOUNDED = 1_000
PATTERNS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in (masker, numbers, shadow, tagger, words)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
}
HOSTILE = [
    "4111 1111 1111 1112 ",
    "1 ",
    "12:34 ",
    "a@a.",
    "one 1 two ",
    "double ",
    "password is ",
    "code is 1 ",
    "my name is ",
    "This Is Anna ",
    "12 A St ",
    "住在路1号",
    "一二三四",
    "&#52;",
    "4\u0332",
    "[CARD_1]",
    "DE89 ",
    "l0",
]


def _repeats(parsed: object) -> Iterator[tuple[int, object]]:
    """Every repeat of a parsed pattern: its upper bound, and what is repeated."""
    if isinstance(parsed, _parser.SubPattern):
        for operation, argument in parsed:
            if operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
                yield argument[1], argument[2]
            yield from _repeats(argument)
    elif isinstance(parsed, tuple | list):
        for part in parsed:
            yield from _repeats(part)


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_no_pattern_repeats_without_bound_what_itself_repeats_without_bound(name: str) -> None:
    """Such a pattern may try every way to share a text between the two: its work doubles with a letter."""
    pattern = PATTERNS[name]
    for most, repeated in _repeats(_parser.parse(pattern.pattern, pattern.flags)):
        if most > UNBOUNDED:
            assert all(inner <= UNBOUNDED for inner, _ in _repeats(repeated))


def _calls(work: Masker, text: str) -> int:
    """How many functions are called, of Python and of C, to mask a text."""
    count = 0

    def one_more(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(one_more)
    try:
        work.mask(text)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("unit", HOSTILE)
def test_twice_the_text_takes_twice_the_work(unit: str) -> None:
    work = Masker()
    once = _calls(work, unit * 200)
    assert _calls(work, unit * 400) <= 2.3 * once + 500


@pytest.mark.parametrize("letter", ["1", "a", " ", "一", "&", "\u200b", "\ud800", "🙂"])
def test_a_message_of_a_million_letters_is_taken(letter: str) -> None:
    text = letter * 1_000_000
    masked = Masker().mask(text)
    assert unmask(masked.text, masked.values) == text
