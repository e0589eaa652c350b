"""How often the intent is the right one, and what is taken for out of scope.

The set of our own holds every intent of BANKING77, once in English and twice in Chinese, and messages that no
intent covers; the head has been fitted on none of them. A bank's own set, or BANKING77's official test, is a
CSV file of text and category.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from services.chat.domain import Language
from services.chat.evaluate.intervals import Share
from services.chat.turn.respond import IntentsOf
from weir.errors import BadInput

OWN = Path(__file__).with_name("intents.csv")
_ROWS = 64


@dataclass(frozen=True, slots=True)
class Meant:
    """A message and its intent, which is empty out of scope."""

    text: str
    category: str


def read(path: Path, language: Language | None = None) -> list[Meant]:
    """The messages of a CSV file with the columns text and category, or those of one language.

    Raises:
        BadInput: no such file, or another one.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if language is None or row["language"] == language]
        return [Meant(row["text"], row["category"].strip()) for row in rows]
    except (OSError, ValueError, KeyError, AttributeError, csv.Error):
        raise BadInput("bad_set", f"{path} is no CSV file of text and category") from None


async def measure(intents: IntentsOf, more: Path | None = None) -> dict[str, Any]:
    """Every figure, for JSON: our own set by language, and a file where one is given.

    Raises:
        BadInput: another file. ModelError: the encoder or the head gave no answer.
    """
    made = {
        f"own_{language}": await _measured(intents, read(OWN, language)) for language in get_args(Language)
    }
    if more is not None:
        made[more.stem] = await _measured(intents, read(more))
    return made


async def _measured(intents: IntentsOf, meant: Sequence[Meant]) -> dict[str, Any]:
    found: list[str] = []
    for at in range(0, len(meant), _ROWS):
        found += [label for label, _ in await intents([each.text for each in meant[at : at + _ROWS]])]
    pairs = list(zip(found, (each.category for each in meant), strict=True))
    inside = [(label, category) for label, category in pairs if category]
    accepted = [label == category for label, category in inside if label]
    outside = [label for label, category in pairs if not category]
    made = {
        "correct": Share(sum(accepted), len(inside)).as_dict(),
        "correct_of_accepted": Share(sum(accepted), len(accepted)).as_dict(),
        "in_scope_rejected": Share(sum(not label for label, _ in inside), len(inside)).as_dict(),
    }
    if outside:
        made["out_of_scope_rejected"] = Share(sum(not label for label in outside), len(outside)).as_dict()
    return made
