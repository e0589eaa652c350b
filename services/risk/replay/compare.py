"""Whether a decision that is made again is the recorded one, bit for bit. Pure."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from weir.client.records import Decision

# When it was made, how long that took, its step of a trace, and where it lies: another each time.
LEFT_OUT = frozenset({"decided_time", "timings", "traceparent", "raw"})
COMPARED = tuple(field.name for field in fields(Decision) if field.name not in LEFT_OUT)


@dataclass(frozen=True, slots=True)
class Again:
    """A decision that was made again, and the payment's amount in 1/10000 of the home currency."""

    decision: Decision
    amount_home: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The recorded decision and the one that was made again, of one payment; which fields differ."""

    recorded: Decision
    again: Again
    differing: tuple[str, ...]

    @property
    def outcomes(self) -> tuple[str, str]:
        """The recorded outcome, and the one that was made again."""
        return self.recorded.outcome.value, self.again.decision.outcome.value


@dataclass(frozen=True, slots=True)
class Compared:
    """One batch.

    missing: offsets whose decision was made again, with no recorded one to compare it with.
    extra: offsets whose recorded decision was not made again.
    """

    pairs: Sequence[Pair]
    missing: Sequence[int]
    extra: Sequence[int]


def compare(recorded: Mapping[int, Decision], again: Mapping[int, Again]) -> Compared:
    """Both by the payment's offset, of one batch."""
    pairs = [
        Pair(recorded[offset], made, differing_fields(recorded[offset], made.decision))
        for offset, made in again.items()
        if offset in recorded
    ]
    return Compared(
        pairs,
        [offset for offset in again if offset not in recorded],
        [offset for offset in recorded if offset not in again],
    )


def differing_fields(recorded: Decision, again: Decision) -> tuple[str, ...]:
    """The fields of `COMPARED` that differ, floats by their bits; none when the two are the same."""
    return tuple(name for name in COMPARED if not same(getattr(recorded, name), getattr(again, name)))


def same(one: Any, other: Any) -> bool:
    """Whether two values of decoded decisions are the same, at any depth; floats by their bits."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return bool(one == other)
