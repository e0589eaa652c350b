"""How well the check of a model's sentences tells those that a passage bears out from those that it does not.

Two sets, over the starter knowledge. Written: sentences as a model might say them (`claims.csv`), true and
false, in both languages; on the part held_out no rule of the check was mended. Altered: each sentence of the
knowledge, made false by a change of one thing.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from services.chat.answer.grounding import check
from services.chat.answer.sentences import sentences_of
from services.chat.domain import Language, Passage
from services.chat.evaluate.intervals import Share
from services.chat.evaluate.retrieval import places
from services.chat.knowledge.tokens import stem

WRITTEN = Path(__file__).with_name("claims.csv")
# A model is given the passage that answers and what was found beside it.
_BESIDE = 2
_COUNT = r"\d[\d,]*(?:\.\d+)?"
_AMOUNTS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(rf"(?<=EUR ){_COUNT}"),
    "zh": re.compile(rf"{_COUNT}(?=欧元)"),
}
_SPANS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(rf"\b{_COUNT}(?= (?:business )?(?:second|minute|hour|day|week|month|year)s?\b)"),
    "zh": re.compile(rf"{_COUNT}(?=个?(?:工作日|秒|分钟|小时|天|周|月|年))"),
}
_DENIED: dict[Language, tuple[tuple[re.Pattern[str], str], ...]] = {
    "en": (
        (re.compile(r"\bcannot\b"), "can"),
        (re.compile(r"\b(is|are|can|must|may) not\b"), r"\1"),
        (re.compile(r"\b(is|are|can|must|may)\b"), r"\1 not"),
    ),
    "zh": (
        (re.compile("不能|不可以"), "可以"),
        (re.compile("可以"), "不可以"),
        (re.compile("不收费"), "收费"),
        (re.compile("会被"), "不会被"),
        (re.compile("需要"), "不需要"),
    ),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, the passages that it is judged against, and whether they bear it out."""

    text: str
    kind: str
    true: bool
    passages: Sequence[Passage]


def written(passages: Sequence[Passage], path: Path = WRITTEN) -> list[Claim]:
    """The written set, for the passages of one language."""
    language = passages[0].language
    at = {places(passage.id)[1]: number for number, passage in enumerate(passages)}
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["language"] == language]
    return [
        Claim(
            row["text"],
            f"written_{row['part']}",
            row["true"] == "yes",
            _beside(passages, at[f"{language}/{row['passage']}"]),
        )
        for row in rows
    ]


def altered(passages: Sequence[Passage]) -> Iterator[Claim]:
    """Each sentence with one thing changed, so that nothing bears it out; passages of one language."""
    language = passages[0].language
    for number, passage in enumerate(passages):
        given = _beside(passages, number)
        sentences = sentences_of(passage.text)
        for kind, pattern in (("amount", _AMOUNTS[language]), ("time", _SPANS[language])):
            there = sorted({found[0] for found in pattern.finditer(passage.text)})
            for sentence in sentences:
                for found in pattern.finditer(sentence):
                    for other in there:
                        if other != found[0]:
                            yield Claim(_put(sentence, found, other), f"{kind}_of_another", False, given)
                    made_up = str(int(float(found[0].replace(",", "")) * 3) + 1)
                    yield Claim(_put(sentence, found, made_up), f"{kind}_made_up", False, given)
        for sentence in sentences:
            for pattern, other in _DENIED[language]:
                if pattern.search(sentence):
                    yield Claim(pattern.sub(other, sentence, count=1), "denied", False, given)
                    break


def measure(passages: Sequence[Passage]) -> dict[str, Any]:
    """For JSON, by language: of true sentences those shown, of false ones those shown too, by kind."""
    made: dict[str, Any] = {}
    for language in get_args(Language):
        own = [passage for passage in passages if passage.language == language]
        shown: dict[str, list[bool]] = defaultdict(list)
        for claim in [*written(own), *altered(own)]:
            is_shown = check(claim.text, claim.passages, stem).is_supported
            # The written ones in their part, and all of them.
            for kind in {claim.kind, "written" if claim.kind.startswith("written") else claim.kind}:
                shown[f"{kind}_{'true' if claim.true else 'false'}_shown"].append(is_shown)
        made[language] = {name: Share(sum(each), len(each)).as_dict() for name, each in sorted(shown.items())}
    return made


def _beside(passages: Sequence[Passage], number: int) -> list[Passage]:
    first = max(min(number - _BESIDE // 2, len(passages) - 1 - _BESIDE), 0)
    return [
        passages[number],
        *(each for each in passages[first : first + _BESIDE + 1] if each is not passages[number]),
    ]


def _put(sentence: str, found: re.Match[str], other: str) -> str:
    return sentence[: found.start()] + other + sentence[found.end() :]
