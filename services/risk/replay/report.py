"""What a replay found: counts, money and examples, as text and as JSON. Pure; no account, no event id."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal as Money
from typing import Any

from services.risk.batch import AMOUNT_SCALE
from services.risk.replay.compare import Compared, Pair
from services.risk.replay.plan import Plan

# Fields whose values an example shows; of the others it says that they differ.
_SHOWN = frozenset(
    {
        "outcome",
        "score",
        "probability",
        "logit",
        "base_logit",
        "reasons",
        "rules",
        "model_name",
        "model_version",
        "model_sha256",
        "policy_version",
        "policy_sha256",
        "degraded",
        "degraded_reason",
    }
)


@dataclass(frozen=True, slots=True)
class Example:
    """One decision that differs: its id, its payment's place, each field as recorded and as made again."""

    decision_id: str
    partition: int
    offset: int
    amount_home: int
    outcomes: tuple[str, str]
    values: Mapping[str, tuple[Any, Any]]

    @classmethod
    def of(cls, pair: Pair) -> "Example":
        """What may be shown of a pair."""
        recorded, again = pair.recorded, pair.again.decision
        return cls(
            str(recorded.decision_id),
            recorded.feature_ref.partition,
            recorded.feature_ref.offset,
            pair.again.amount_home,
            pair.outcomes,
            {
                name: (_shown(name, getattr(recorded, name)), _shown(name, getattr(again, name)))
                for name in pair.differing
            },
        )


@dataclass(slots=True)
class Report:
    """Adds up what each batch's comparison found.

    degraded: among those compared; they were and are decided without a model.
    fields: how many decisions differ in each.
    outcomes: decisions and amount (1/10000 of the home currency) by recorded outcome and the one made again.
    state_differs: batches that let other payments enter the windows than the worker's did.
    not_replayable: batches in the range whose payments the topic no longer has.
    unlike: other batches that could not be brought about as they were, each said in `notes`.
    """

    plan: Plan
    transactions: str
    partitions: list[int] = field(default_factory=list)
    batches: int = 0
    absorbed: int = 0
    compared: int = 0
    equal: int = 0
    degraded: int = 0
    missing: int = 0
    extra: int = 0
    state_differs: int = 0
    not_replayable: int = 0
    published: int = 0
    fields: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    amounts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def add(self, found: Compared) -> None:
        """One batch more."""
        self.batches += 1
        self.missing += len(found.missing)
        self.extra += len(found.extra)
        for pair in found.pairs:
            self.compared += 1
            self.degraded += pair.recorded.degraded
            self.outcomes[pair.outcomes] += 1
            self.amounts[pair.outcomes] += pair.again.amount_home
            if not pair.differing:
                self.equal += 1
                continue
            self.fields.update(pair.differing)
            self._show(pair)

    def note(self, line: str) -> None:
        """Something a reader has to know; said once."""
        self.notes.setdefault(line)

    @property
    def different(self) -> int:
        """Decisions that differ from the recorded ones in any field."""
        return self.compared - self.equal

    @property
    def changed(self) -> dict[tuple[str, str], int]:
        """Decisions by recorded and new outcome, where these differ."""
        return {pair: count for pair, count in sorted(self.outcomes.items()) if pair[0] != pair[1]}

    @property
    def same_as_then(self) -> bool:
        """Whether every decision in the range was made again and is the recorded one, bit for bit."""
        gaps = self.missing or self.extra or self.state_differs or self.not_replayable
        return bool(self.compared) and not self.different and not gaps

    def _show(self, pair: Pair) -> None:
        # Of changed outcomes those of the most money, then whatever else differs, in order.
        example = Example.of(pair)
        self.examples.append(example)
        self.examples.sort(key=_rank)
        del self.examples[self.plan.examples_max :]

    # -- for people and programs ---------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; money as text in home currency, times in ISO 8601."""
        plan = self.plan
        return {
            "from": _time(plan.from_ms),
            "to": _time(plan.to_ms),
            "topic": self.transactions,
            "partitions": self.partitions,
            "policy": str(plan.policy) if plan.policy else None,
            "model": plan.model,
            "state": "snapshots" if plan.snapshots else "topics",
            "batches": self.batches,
            "absorbed_batches": self.absorbed,
            "compared": self.compared,
            "equal": self.equal,
            "different": self.different,
            "degraded": self.degraded,
            "without_recorded_decision": self.missing,
            "not_decided_again": self.extra,
            "batches_with_other_state": self.state_differs,
            "batches_not_replayable": self.not_replayable,
            "same_as_then": self.same_as_then,
            "models": self.models,
            "policies": self.policies,
            "differing_fields": dict(self.fields.most_common()),
            "outcomes": [
                {
                    "recorded": recorded,
                    "again": again,
                    "decisions": count,
                    "amount": _money(self.amounts[recorded, again]),
                }
                for (recorded, again), count in sorted(self.outcomes.items())
            ],
            "examples": [
                {
                    "decision_id": each.decision_id,
                    "partition": each.partition,
                    "offset": each.offset,
                    "amount": _money(each.amount_home),
                    "recorded": {name: values[0] for name, values in each.values.items()},
                    "again": {name: values[1] for name, values in each.values.items()},
                }
                for each in self.examples
            ],
            "published": self.published,
            "published_to": plan.publish_topic,
            "notes": list(self.notes),
        }

    def as_text(self) -> Iterator[str]:
        """The same for a person, line by line."""
        plan = self.plan
        yield f"{self.transactions}, partitions {', '.join(map(str, self.partitions))}"
        yield f"read from {_time(plan.from_ms)} to before {_time(plan.to_ms)}"
        yield f"state from {'a snapshot' if plan.snapshots else 'the beginning of the topics'}: " + (
            f"{self.absorbed:,} batches before the range entered it"
        )
        yield f"models {_versions(self.models)}; policies {_versions(self.policies)}"
        yield f"{self.batches:,} batches, {self.compared:,} decisions compared ({self.degraded:,} degraded)"
        yield f"  equal bit for bit          {self.equal:>9,}"
        yield f"  different                  {self.different:>9,}"
        yield f"  no recorded decision       {self.missing:>9,}"
        yield f"  not decided again          {self.extra:>9,}"
        if self.state_differs or self.not_replayable:
            yield f"  batches of other state     {self.state_differs:>9,}"
            yield f"  batches without payments   {self.not_replayable:>9,}"
        for name, count in self.fields.most_common():
            yield f"    {name:<24} {count:>9,} differ"
        if self.changed:
            yield "outcomes that change, with the amount in home currency:"
            for (recorded, again), count in self.changed.items():
                amount = _money(self.amounts[recorded, again])
                yield f"  {recorded:>7} -> {again:<7} {count:>9,}   {amount:>18}"
        if self.examples:
            yield "examples:"
            yield from map(_line, self.examples)
        if plan.publish_topic:
            yield f"{self.published:,} decisions published to {plan.publish_topic}, sealed"
        yield from (f"note: {line}" for line in self.notes)
        yield self._verdict()

    def _verdict(self) -> str:
        if not self.compared:
            return "Nothing was compared: no decision lies in the range."
        if self.plan.asks_what_if:
            changed = sum(self.changed.values())
            return f"{changed:,} of {self.compared:,} decisions would have another outcome."
        if self.same_as_then:
            return "Every decision came out the same, bit for bit."
        return "NOT the same as then."


def _rank(example: Example) -> tuple[bool, int, int, int]:
    recorded, again = example.outcomes
    changes = recorded != again
    return not changes, -example.amount_home if changes else 0, example.partition, example.offset


def _line(example: Example) -> str:
    values = "; ".join(
        name if recorded is None and again is None else f"{name} {recorded} -> {again}"
        for name, (recorded, again) in example.values.items()
    )
    place = f"partition {example.partition} offset {example.offset}"
    return f"  {example.decision_id}  {place}  {_money(example.amount_home)}  {values}"


def _shown(name: str, value: Any) -> Any:
    """The value, where an example may show it; else None."""
    if name not in _SHOWN or value is None:
        return None
    if name == "reasons":
        return [f"{reason.code} {reason.contribution!r}" for reason in value]
    if name == "outcome":
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{version} ({sha256[:12]})" for sha256, version in found.items()) or "none"


def _money(amount: int) -> str:
    return f"{Money(amount) / AMOUNT_SCALE:,.2f}"


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
