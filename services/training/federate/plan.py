"""What all banks agree on before the first round, and the messages between them and the coordinator."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from services.training.federate.layout import Layout
from services.training.split import Split, Window
from weir.features.payments import DEFAULT, FEATURES

if TYPE_CHECKING:
    from services.training.fit import Recipe

Aggregation = Literal["secure", "robust"]


@dataclass(frozen=True, slots=True)
class Steps:
    """How far a bank goes in one round: the same for all, agreed before."""

    trees: int = 40
    learning_rate: float = 0.12
    leaves: int = 3
    leaves_pair: int = 8
    leaf_rows_min: int = 30


@dataclass(frozen=True, slots=True)
class Plan:
    """rounds: of single features. rounds_pair: after them, of pairs. split: the same days for every bank."""

    split: Split
    rounds: int = 8
    rounds_pair: int = 4
    pairs_max: int = 16
    aggregation: Aggregation = "secure"
    banks_min: int = 2
    seed: int = 7
    steps: Steps = field(default_factory=Steps)
    honest_max: int = 300_000
    threads: int = 1

    @property
    def recipe(self) -> "Recipe":
        """Which features are left out, and which may only rise."""
        # A message that trains nothing comes to a new process too, and LightGBM is a second of its start.
        from services.training.fit import Recipe

        return Recipe(seed=self.seed, threads=self.threads)

    @staticmethod
    def layout() -> Layout:
        """This code's features and cells, still without pairs."""
        return Layout(FEATURES, DEFAULT.id)

    def as_json(self) -> str:
        """For the coordinator's configuration and the first message."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """What `as_json` wrote."""
        raw = json.loads(text)
        raw["split"] = Split(**{name: Window(**window) for name, window in raw["split"].items()})
        raw["steps"] = Steps(**raw["steps"])
        return cls(**raw)


@dataclass(frozen=True, slots=True)
class Message:
    """head: plain values, as JSON. vector: little-endian, float64 in the clear, uint64 under masks."""

    head: Mapping[str, Any]
    vector: bytes = b""


class Transport(Protocol):
    """How the coordinator reaches banks; numbers them from 1."""

    def banks(self) -> list[int]:
        """Those who are there now."""
        ...

    def ask(self, requests: Mapping[int, Message]) -> dict[int, Message]:
        """Replies of those who gave one in time. A reply with `error` in its head says why there is none."""
        ...
