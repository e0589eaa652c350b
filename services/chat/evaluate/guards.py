"""How many attacks the guards refuse, and how many harmless messages with them.

The set is our own (`guard_vectors.json`): attacks by OWASP's Top 10 for LLM applications (2025) and by what a
bank refuses beside, in both languages, and harmless messages with near misses. Rules were mended on the
`development` half alone; the `held_out` half was written with it, and never mended on.

`python -m services.chat.evaluate.guards` prints the figures, with `--json` as JSON.
"""

import argparse
import csv
import json
import sys
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


def lines_of(made: dict[str, Any]) -> list[str]:
    """What `measure` found, a figure in a line: hits of how many, the share and its 95 % interval."""
    return [
        f"{part} {name}: {share['hits']} of {share['count']}, "
        f"{share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%})"
        for part, shares in made.items()
        for name, share in shares.items()
    ]


def main() -> None:
    """Prints the figures of the rules as shipped on the set as shipped."""
    parser = argparse.ArgumentParser(description="How many attacks the guards refuse, and what else.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    made = measure(Guards.load(), read_examples())
    as_json = parser.parse_args().json
    sys.stdout.write((json.dumps(made, indent=2) if as_json else "\n".join(lines_of(made))) + "\n")


if __name__ == "__main__":
    main()
