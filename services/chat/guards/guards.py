"""Guards at the places where text goes in or out. Pure: the same text always gets the same verdict.

message   what a customer writes, alone and with his last messages (an attack may be split over turns)
passage   what was found in the knowledge (an instruction may be planted in it)
sentence  what would be shown
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.chat.guards.rules import DEFAULT, Action, Place, Rule, Threat, read_rules
from services.chat.guards.views import TEXT_CHARS_MAX, views_of
from services.chat.knowledge.suspicious import suspicious

__all__ = ["ALLOWED", "Action", "Guards", "Threat", "Verdict"]

# Messages of before that are read together with a new one.
_HISTORY = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """rule: the id of the rule that fired, for the audit; never the text."""

    action: Action
    threat: Threat | None = None
    rule: str = ""


ALLOWED = Verdict(Action.ALLOW)


class Guards:
    """Judges texts; masked ones."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = {place: [rule for rule in rules if place in rule.places] for place in Place}

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Self:
        """By the rules in `path`.

        Raises:
            BadRules: what is wrong there.
        """
        return cls(read_rules(path))

    def message(self, text: str, history: Sequence[str] = ()) -> Verdict:
        """What a customer writes; `history` are his last messages, oldest first."""
        verdict = self._judged(Place.MESSAGE, views_of(text))
        if verdict.action is not Action.ALLOW or not history:
            return verdict
        # Only what the new message completes: a refused one of before has had its answer.
        before = " ".join(history[-_HISTORY:])
        if self._judged(Place.MESSAGE, views_of(before)).action is not Action.ALLOW:
            return ALLOWED
        # The end of it: long messages of before must not push the new one out of what is looked at.
        return self._judged(Place.MESSAGE, views_of(f"{before} {text}"[-TEXT_CHARS_MAX:]))

    def passage(self, text: str) -> Verdict:
        """What was found: nothing in it may speak to a model."""
        # A line to write on ("ignore ______") must not cost more than its length: underscores part words.
        if suspicious(text.replace("_", " ")) is not None:
            return Verdict(Action.REFUSE, Threat.INJECTION, "passage_speaks_to_a_model")
        return self._judged(Place.PASSAGE, views_of(text))

    def sentence(self, text: str) -> Verdict:
        """What would be shown."""
        return self._judged(Place.SENTENCE, views_of(text))

    def _judged(self, place: Place, views: Sequence[str]) -> Verdict:
        for rule in self._rules[place]:
            if any(rule.holds(view) for view in views):
                return Verdict(rule.action, rule.threat, rule.id)
        return ALLOWED
