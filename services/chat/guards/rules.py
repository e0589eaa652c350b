"""The table of rules: read, checked, compiled."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from weir.errors import WeirError

DEFAULT = Path(__file__).with_name("rules.toml")


class Place(StrEnum):
    """Where a rule looks."""

    MESSAGE = "message"
    PASSAGE = "passage"
    SENTENCE = "sentence"


class Threat(StrEnum):
    """What a text would do."""

    INJECTION = "prompt_injection"
    EXFILTRATION = "exfiltration"  # the system's rules, its data
    OTHER_CUSTOMER = "other_customer"
    TOXIC = "toxic"
    OFF_TOPIC = "off_topic"
    ADVICE = "advice"  # that the bank may not give
    FRAUD_HELP = "fraud_help"
    MISUSE = "misuse"  # code to run, endless work
    SELF_HARM = "self_harm"


class Action(StrEnum):
    """What becomes of a text."""

    ALLOW = "allow"
    REFUSE = "refuse"
    HAND_OVER = "hand_over"


class BadRules(WeirError):
    """The table of rules cannot be used."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}. Compare it with {DEFAULT.name} as shipped.")


@dataclass(frozen=True, slots=True)
class Rule:
    """unless: where this is found too, the rule does not hold; None always holds."""

    id: str
    threat: Threat
    action: Action
    places: frozenset[Place]
    pattern: re.Pattern[str]
    unless: re.Pattern[str] | None

    def holds(self, view: str) -> bool:
        """Whether it holds for a view of a text."""
        return self.pattern.search(view) is not None and (
            self.unless is None or self.unless.search(view) is None
        )


def read_rules(path: Path = DEFAULT) -> tuple[Rule, ...]:
    """The rules in `path`, in their order.

    Raises:
        BadRules: what is wrong, and in which rule.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadRules(path, "cannot be read as TOML") from error
    entries = table.get("rule")
    if not isinstance(entries, list) or not entries:
        raise BadRules(path, "has no [[rule]]")
    rules = tuple(_rule(path, number, entry) for number, entry in enumerate(entries, 1))
    if len({rule.id for rule in rules}) != len(rules):
        raise BadRules(path, "two rules have the same id")
    return rules


def _rule(path: Path, number: int, entry: dict[str, Any]) -> Rule:
    name = str(entry.get("id") or f"number {number}")
    unknown = entry.keys() - {"id", "threat", "action", "at", "patterns", "unless"}
    if unknown:
        raise BadRules(path, f"rule {name}: {sorted(unknown)[0]} is not known")
    try:
        places = frozenset(Place(place) for place in entry["at"])
        return Rule(
            str(entry["id"]),
            Threat(entry["threat"]),
            Action(entry["action"]),
            places,
            _either(path, name, entry["patterns"]),
            _either(path, name, entry["unless"]) if "unless" in entry else None,
        )
    except KeyError as error:
        raise BadRules(path, f"rule {name}: {error.args[0]} is missing") from error
    except (ValueError, TypeError) as error:
        raise BadRules(path, f"rule {name}: {error}") from error


def _either(path: Path, name: str, patterns: Sequence[str]) -> re.Pattern[str]:
    if not isinstance(patterns, list) or not patterns or not all(isinstance(each, str) for each in patterns):
        raise BadRules(path, f"rule {name}: patterns are a list of regular expressions")
    try:
        return re.compile("|".join(f"(?:{each})" for each in patterns), re.DOTALL)
    except re.error as error:
        raise BadRules(path, f"rule {name}: {error}") from error
