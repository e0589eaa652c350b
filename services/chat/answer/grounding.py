"""Whether a sentence is borne out by passages: nothing in it may be made up, turned round or left unsaid.

    sentence ─▶ word for word? ─▶ its facts in one passage? ─▶ its words? ─▶ does it deny that?
             ─▶ each part by one sentence: no word of another one, no fact that another one has otherwise

A check of words and facts, not of meaning: what it lets through stands in the passage in the same words. It
refuses some sentences that are right; then the passage's own sentence is shown.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise

from services.chat.answer.facts import Fact, split
from services.chat.answer.sentences import sentences_of
from services.chat.domain import Passage

# Of a sentence's words that must stand in the passage; in the clause that is nearest some fewer.
OVERLAP_MIN, CLAUSE_OVERLAP_MIN = 0.8, 0.5
# Of the words around a fact that must stand around it in the passage.
PART_OVERLAP_MIN = 0.5
# Read once: the passages that are asked for most.
_PASSAGES_KEPT = 512

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
        please there here percent""",
    )
)
_HAN_STOP = "的了吗呢吧啊您你我们在是和与及或就都也可以请会能将被把让给对到从"
_COMMA = re.compile(r"[，；：、]|[,;:](?!\d)")
# A sentence that says nothing without the one before it.
_LEANS = re.compile(
    r"\s*(?:(?:it|its|they|their|this|these|that|those|both|he|she|otherwise)\b|它|其|该|这|那|两者|否则)",
    re.IGNORECASE,
)
_AND = re.compile(r"\s(?:and|but|or)\s|[和与或]|并且|而")
# Who leaves one of these out says it of more than the passage does.
_LIMIT = re.compile(
    r"\b(?:outside|above|below|over|under|beyond|other|others|elsewhere|otherwise|only|except|less|more|further)\b"
    r"|以外|其他|超过|超出|不足|低于|高于|之后|否则|除",
    re.IGNORECASE,
)
_PRICE = re.compile(r"cost|fee|charg|pric|.*[费价收]")
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
        flaw = None if _stands(sentence, passage) else _flaw(said, passage, stem)
        if flaw is None:
            return Verdict((passage.id,))
        flaws.append((_overlap(said.words, _known(passage, stem)[0].words), flaw))
    return Verdict((), max(flaws, key=lambda each: each[0])[1] if flaws else Flaw.WORDS)


@dataclass(frozen=True, slots=True)
class _Read:
    """A text, its facts in their order, and what it is about beside them; rest: the text without facts."""

    text: str
    order: Sequence[Fact]
    rest: str
    words: set[str]

    @property
    def facts(self) -> set[Fact]:
        return set(self.order)

    @property
    def is_free(self) -> bool:
        return any(fact.kind == "free" for fact in self.order)


def _read(text: str, stem: Stem) -> _Read:
    order, rest = split(text)
    return _Read(text, order, rest, _words(rest, stem))


def _flaw(said: _Read, passage: Passage, stem: Stem) -> Flaw | None:
    whole, clauses = _known(passage, stem)
    if not said.facts <= whole.facts:
        return Flaw.FACT
    if any(name[0].lower() not in whole.text.lower() for name in _NAME.finditer(said.text)):
        return Flaw.NAME
    if _overlap(said.words, whole.words) < OVERLAP_MIN:
        return Flaw.WORDS
    nearest = max(clauses, key=lambda clause: _nearness(said.words, clause.words))
    overlap = _overlap(said.words, nearest.words)
    if overlap >= OVERLAP_MIN and not said.facts <= nearest.facts:
        # The clause that says it says it with other numbers.
        return Flaw.FACT
    if overlap < CLAUSE_OVERLAP_MIN:
        return Flaw.WORDS
    if _denials(said.rest) != _denials(nearest.rest):
        return Flaw.NEGATION
    homes = _homes(passage, stem)
    for part in (_read(each, stem) for each in _parts(said.text)):
        if not any(_bears(home, part, homes) for home in homes):
            return Flaw.FACT if part.facts else Flaw.WORDS
    return None


@lru_cache(maxsize=_PASSAGES_KEPT)
def _known(passage: Passage, stem: Stem) -> tuple[_Read, Sequence[_Read]]:
    """The passage with its title, whole and by sentence."""
    whole = _read(f"{passage.title}\n{passage.text}", stem)
    return whole, [_read(clause, stem) for clause in sentences_of(whole.text)]


@dataclass(frozen=True, slots=True)
class _Home:
    """A part of a passage; near: the words of its sentence, and of the one before it that it leans on.

    sentence: its number. elsewhere: the words of the other sentences. title: those of the passage's title.
    """

    sentence: int
    part: _Read
    near: set[str]
    elsewhere: set[str]
    title: set[str]


@lru_cache(maxsize=_PASSAGES_KEPT)
def _homes(passage: Passage, stem: Stem) -> Sequence[_Home]:
    title = content_words(passage.title, stem)
    sentences = sentences_of(passage.text)
    words = [content_words(sentence, stem) for sentence in sentences]
    homes, before = list[_Home](), set[str]()
    for number, sentence in enumerate(sentences):
        near = words[number] | before if _LEANS.match(sentence) else words[number]
        elsewhere = set[str]().union(*words[:number], *words[number + 1 :]) - near
        homes += [_Home(number, _read(part, stem), near, elsewhere, title) for part in _parts(sentence)]
        before = near
    return homes


def _bears(home: _Home, said: _Read, homes: Sequence[_Home]) -> bool:
    """Whether this part of the passage says it: no fact of another part, no word of another sentence."""
    there = home.part
    if said.words & home.elsewhere or _denials(said.rest) != _denials(there.rest):
        # "Within the euro area" of one sentence, the price of another.
        return False
    if not _limits(there.rest) <= _limits(said.rest):
        return False
    if not said.facts:
        if there.is_free and any(_PRICE.match(word) for word in said.words):
            return False
        return _overlap(said.words, there.words | home.title) >= CLAUSE_OVERLAP_MIN
    if not _follows(said.order, there.order) or _overlap(said.words, there.words) < PART_OVERLAP_MIN:
        return False
    about = {fact.about for fact in said.facts}
    # That something costs is said of all that costs: it tells no two apart.
    words = {word for word in said.words if not _PRICE.match(word)} if "price" in about else said.words
    own, lent = _overlap(words, there.words), words - there.words - home.title
    # Whoever has the same kind of fact with another value is told apart by a word: left out, or put here.
    rivals = [
        # Of another sentence the subject may stand before a comma.
        other.part.words if other.sentence == home.sentence else other.near
        for other in homes
        if about & {fact.about for fact in other.part.facts - said.facts}
        and not said.facts <= other.part.facts
    ]
    return not any(_overlap(words, rival) >= own or lent & rival for rival in rivals)


def _limits(text: str) -> set[str]:
    return {found[0].lower() for found in _LIMIT.finditer(text)}


def _follows(facts: Sequence[Fact], there: Sequence[Fact]) -> bool:
    """Whether they stand there in the same order, with others between them or not."""
    left = iter(there)
    return all(fact in left for fact in facts)


def _stands(sentence: str, passage: Passage) -> bool:
    """Whether it is one of the passage's own sentences, word for word."""
    return " ".join(sentence.split()) in {" ".join(each.split()) for each in sentences_of(passage.text)}


def _parts(text: str) -> list[str]:
    """Between commas and full stops, and at an "and" between two facts; not at the comma in a number."""
    parts = [part for sentence in sentences_of(text) for part in _COMMA.split(sentence) if part.strip()]
    return [piece for part in parts for piece in _divided(part)]


def _divided(part: str) -> list[str]:
    found = _AND.search(part)
    while found is not None:
        before, after = part[: found.start()], part[found.end() :]
        if split(before)[0] and split(after)[0]:
            return [before, *_divided(after)]
        found = _AND.search(part, found.end())
    return [part]


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
