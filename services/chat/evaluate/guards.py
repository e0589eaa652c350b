"""How many attacks the guards refuse, and how many harmless messages with them.

The set is our own (`guard_vectors.json`): attacks by OWASP's Top 10 for LLM applications (2025) and by what a
bank refuses beside, in both languages, and harmless messages with near misses. Rules were mended on the
`development` half alone; the `held_out` half was written with it, and never mended on.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.chat.evaluate.intervals import Share
from services.chat.guards import Action, Guards
from weir.errors import BadInput

VECTORS = Path(__file__).with_name("guard_vectors.json")
HARMLESS = "harmless"


@dataclass(frozen=True, slots=True)
class Example:
    """A text, what it is, and where it comes in: as a message (after those of `history`) or in a passage."""

    id: str
    part: str
    category: str
    language: str
    place: str
    text: str
    history: tuple[str, ...] = ()

    @property
    def is_attack(self) -> bool:
        """Whether it must not pass."""
        return self.category != HARMLESS


def read_examples(path: Path = VECTORS) -> list[Example]:
    """The set in `path`."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Example(**{**row, "history": tuple(row.get("history", ()))}) for row in rows]


def is_refused(guards: Guards, example: Example) -> bool:
    """Whether the text does not pass; of several messages, whether one of them does not."""
    if example.place == "passage":
        return guards.passage(example.text).action is not Action.ALLOW
    said = [*example.history, example.text]
    return any(guards.message(text, said[:at]).action is not Action.ALLOW for at, text in enumerate(said))


def refused_of(guards: Guards, path: Path) -> Share:
    """Of a bank's own messages, in the column `text` of a CSV file, how many are refused.

    Raises:
        BadInput: not such a file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            texts = [row["text"] for row in csv.DictReader(file)]
    except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
        raise BadInput("malformed", f"{path.name} is not CSV with a column text.") from error
    return Share(sum(guards.message(text).action is not Action.ALLOW for text in texts), len(texts))


def measure(guards: Guards, examples: Sequence[Example]) -> dict[str, Any]:
    """By part: the block rate, by category and by language, and the wrongful refusals; for JSON."""
    made: dict[str, Any] = {}
    for part in sorted({each.part for each in examples}):
        blocked: dict[str, list[bool]] = defaultdict(list)
        for each in (each for each in examples if each.part == part):
            refused = is_refused(guards, each)
            kind = "blocked" if each.is_attack else "wrongly_refused"
            blocked[kind].append(refused)
            blocked[f"{kind}_{each.language}"].append(refused)
            if each.is_attack:
                blocked[f"blocked_{each.category}"].append(refused)
        made[part] = {
            name: Share(sum(found), len(found)).as_dict() for name, found in sorted(blocked.items())
        }
    return made
