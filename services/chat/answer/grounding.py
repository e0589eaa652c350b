"""Whether a sentence is borne out by passages: nothing in it may be made up, turned round or left unsaid.

    sentence ─▶ its facts in one passage? ─▶ its words? ─▶ does it deny that? ─▶ each fact by its own words?

A check of words and facts, not of meaning: what it lets through stands in the passage in the same words. It
refuses some sentences that are right; then the passage's own sentence is shown.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from services.chat.answer.facts import Fact, split
from services.chat.answer.sentences import sentences_of
from services.chat.domain import Passage

# Of a sentence's words that must stand in the passage; in the clause that is nearest some fewer.
OVERLAP_MIN, CLAUSE_OVERLAP_MIN = 0.8, 0.5
# Of the words around a fact that must stand around it in the passage.
PART_OVERLAP_MIN = 0.5

_WORD = re.compile(r"[A-Za-zÀ-ɏ]+(?:['’][a-z]+)?|[\u4e00-\u9fff]+")
_NEGATION = re.compile(
    r"\b(?:ca|wo|do|does|did|is|are|was|need)n['’]t\b|\bun(?:able|available)\b|\bimpossible\b"
    r"|\b(?:not|no|never|none|neither|nor|cannot|without|unless|except)\b"
    r"|不|没|无|未|勿|别|非|禁止|除非|除外",
    re.IGNORECASE,
)
_STOP = frozenset(
    re.findall(
        r"\S+",
        """a an the is are was were be been to of in on at for and or it this that these those you your we our
        us i my me they their with by as from if when then so do does did has have had will would can may also
        please there here eur usd gbp cny euro euros dollar dollars pound pounds percent""",
    )
)
_HAN_STOP = "的了吗呢吧啊您你我们在是和与及或就都也可以请会能将被把让给对到从"
_COMMA = re.compile(r"[，；：、]|[,;:](?!\d)")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}")


class Flaw(StrEnum):
    """Why a sentence is not borne out."""

    FACT = "fact"  # a number, date, amount or address that the passage does not hold
    NAME = "name"  # somebody or something named that the passage does not name
    NEGATION = "negation"  # it denies what the passage says, or the other way round
    WORDS = "words"  # it says more than the passage
    EMPTY = "empty"  # there is nothing in it that could be checked


@dataclass(frozen=True, slots=True)
class Verdict:
    """sources: ids of the passages that bear the sentence out; flaw: of the nearest one, when none does."""

    sources: Sequence[str]
    flaw: Flaw | None = None

    @property
    def is_supported(self) -> bool:
        """Whether it may be shown."""
        return bool(self.sources)


Stem = Callable[[str], str]


def check(sentence: str, passages: Sequence[Passage], stem: Stem = str.lower) -> Verdict:
    """Judge one sentence against the passages that it may rest on, each by itself.

    Two passages together bear nothing out: what is true of each may be false of both.

    Args:
        stem: of an English word; "fees" and "fee" are the same then.
    """
    said = _read(sentence, stem)
    if not said.words and not said.facts:
        return Verdict((), Flaw.EMPTY)
    flaws: list[tuple[float, Flaw]] = []
    for passage in passages:
        whole = _read(f"{passage.title}\n{passage.text}", stem)
        flaw = _flaw(said, whole, stem)
        if flaw is None:
            return Verdict((passage.id,))
        flaws.append((_overlap(said.words, whole.words), flaw))
    return Verdict((), max(flaws, key=lambda each: each[0])[1] if flaws else Flaw.WORDS)


@dataclass(frozen=True, slots=True)
class _Read:
    """A text, its facts, and what it is about beside them."""

    text: str
    facts: set[Fact]
    words: set[str]


def _read(text: str, stem: Stem) -> _Read:
    facts, rest = split(text)
    return _Read(text, facts, _words(rest, stem))


def _flaw(said: _Read, whole: _Read, stem: Stem) -> Flaw | None:
    if not said.facts <= whole.facts:
        return Flaw.FACT
    if any(name[0].lower() not in whole.text.lower() for name in _NAME.finditer(said.text)):
        return Flaw.NAME
    if _overlap(said.words, whole.words) < OVERLAP_MIN:
        return Flaw.WORDS
    clauses = [_read(clause, stem) for clause in sentences_of(whole.text)]
    nearest = max(clauses, key=lambda clause: _nearness(said.words, clause.words))
    overlap = _overlap(said.words, nearest.words)
    if overlap >= OVERLAP_MIN and not said.facts <= nearest.facts:
        # The clause that says it says it with other numbers.
        return Flaw.FACT
    if overlap < CLAUSE_OVERLAP_MIN:
        return Flaw.WORDS
    if _denials(said.text) != _denials(nearest.text):
        return Flaw.NEGATION
    there = [_read(part, stem) for part in _parts(whole.text)]
    for part in (_read(each, stem) for each in _parts(said.text)):
        # A number may stand in the passage and belong to something else.
        if part.facts and not any(
            part.facts <= other.facts and _overlap(part.words, other.words) >= PART_OVERLAP_MIN
            for other in there
        ):
            return Flaw.FACT
    return None


def _parts(text: str) -> list[str]:
    """Between commas and full stops; the comma in a number divides nothing."""
    return [part for sentence in sentences_of(text) for part in _COMMA.split(sentence) if part.strip()]


def content_words(text: str, stem: Stem = str.lower) -> set[str]:
    """What a text is about: English words without those that carry nothing, pairs of Chinese characters.

    Neither facts nor denials, which are judged by themselves.
    """
    return _words(split(text)[1], stem)


def _words(rest: str, stem: Stem) -> set[str]:
    found = set[str]()
    for word in _WORD.findall(_NEGATION.sub(" ", rest)):
        if "\u4e00" <= word[0] <= "\u9fff":
            kept = [letter for letter in word if letter not in _HAN_STOP]
            found.update(one + other for one, other in pairwise(kept))
            if len(kept) == 1:
                found.add(kept[0])
        elif word.lower() not in _STOP:
            found.add(stem(word.lower()))
    return found


def _overlap(words: set[str], there: set[str]) -> float:
    return len(words & there) / len(words) if words else 1.0


def _nearness(words: set[str], clause: set[str]) -> float:
    """Words in common, over those of both: a long clause is not nearer for being long."""
    return len(words & clause) / len(words | clause) if words | clause else 0.0


def _denials(text: str) -> int:
    """Whether it denies: an even number of denials says, an odd one denies."""
    return len(_NEGATION.findall(text)) % 2
