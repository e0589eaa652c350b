"""What the topics say after a run, held against what went in. Pure: lists of records in, findings out.

The names are those of the literature on Kafka's faults (Jepsen: lost write, unseen, aborted read G1a) and of
Weir's own promises. A finding holds places and identifiers of the test, never what a bank would keep secret.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

# Scores are float32 sums of a few dozen terms, by two builds of ONNX Runtime.
LOGIT_TOLERANCE = 1e-4
_EXAMPLES_MAX = 5


class Anomaly(StrEnum):
    """What can be wrong."""

    LOST_WRITE = "lost write"
    UNSEEN = "unseen"
    DUPLICATE = "duplicate"
    ABORTED_READ = "aborted read"
    INCONSISTENT_OFFSETS = "inconsistent offsets"
    ORDER_ERROR = "order error"
    STATE_DIFFERS = "state differs"
    PLAINTEXT = "plaintext on the wire"
    UNFOUNDED = "unfounded"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record lies on its topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that the bank put on the payments' topic.

    place: where the broker said that it lies; None when it never answered.
    decidable: whether it is a payment; the rest belongs among the dead letters.
    """

    event_id: str
    place: Place | None
    decidable: bool = True


@dataclass(frozen=True, slots=True)
class Input:
    """A record of the payments' topic, as a committed reader finds it; empty ids where it is poison."""

    place: Place
    event_id: str = ""
    account: str = ""
    decidable: bool = True


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision: where it lies, which input it names as its own, and what it says.

    logit: None when it was made without a model.
    """

    place: Place
    source: Place
    event_id: str
    account: str
    record_id: bytes
    logit: float | None = None


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: where it lies, whose original it holds, and why."""

    place: Place
    source: Place
    reason: str
    record_id: bytes


@dataclass(frozen=True, slots=True)
class Row:
    """A changelog record as it lies: its partition, offset and key, and what its value decodes to.

    state: any comparable form of the row; None for a tombstone.
    """

    place: Place
    key: bytes
    state: object


@dataclass(frozen=True, slots=True)
class Batch:
    """A journal record: where it lies, and which offsets of its partition's input its batch was."""

    place: Place
    offset_first: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Wire:
    """Bytes of one record of a topic of ours, aborted ones included: key, value and headers together."""

    topic: str
    place: Place
    data: bytes


@dataclass
class History:
    """All that is known of a run once it is over; every list may be empty where a run has no such thing.

    decisions, letters: of a `read_committed` reader at the end.
    decisions_uncommitted: place to record id of every decision on the topic, aborted ones included.
    seen_live: place to record id of what a `read_committed` reader was given while the run went on.
    committed: partition to the group's offset, the next one to read; a partition without one is left out.
    expected_logits: by input place, from a recomputation of the input in order. Inputs that are left out are
        not compared.
    rows, expected_rows: the changelog, and what its newest row of each (partition, key) has to be.
    marks: partition to the input's next offset that the newest mark in its changelog names.
    journal: the batches, as a committed reader finds them.
    secrets: what may not stand in any byte of `wire`, by name.
    letters_may_hold: reasons for which a sound payment may be a dead letter in this run (a clock was set).
    """

    sent: Sequence[Sent] = ()
    inputs: Sequence[Input] = ()
    decisions: Sequence[Decided] = ()
    letters: Sequence[Letter] = ()
    decisions_uncommitted: Mapping[Place, bytes] = field(default_factory=dict)
    seen_live: Mapping[Place, bytes] = field(default_factory=dict)
    committed: Mapping[int, int] = field(default_factory=dict)
    expected_logits: Mapping[Place, float] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    expected_rows: Mapping[tuple[int, bytes], object] = field(default_factory=dict)
    marks: Mapping[int, int] = field(default_factory=dict)
    journal: Sequence[Batch] = ()
    wire: Sequence[Wire] = ()
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    unreadable: Sequence[tuple[str, Place]] = ()
    letters_may_hold: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of anomaly in one of its forms: how often, and the first places."""

    anomaly: Anomaly
    what: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.examples) + (", ..." if self.count > len(self.examples) else "")
        return f"{self.anomaly}: {self.count} {self.what} ({shown})"


def check(history: History) -> list[Finding]:
    """Everything that is wrong with a run; empty when nothing is."""
    return [
        *_acknowledged(history),
        *_each_decided(history),
        *_once(history),
        *_founded(history),
        *_aborted(history),
        *_offsets(history),
        *_order(history),
        *_scores(history),
        *_changelog(history),
        *_marks(history),
        *_journal(history),
        *_plaintext(history),
        *_finding(
            Anomaly.UNREADABLE,
            "records that their reader cannot open",
            [f"{topic} {place}" for topic, place in history.unreadable],
        ),
    ]


def anomalies(findings: Iterable[Finding]) -> set[Anomaly]:
    """The kinds that were found."""
    return {each.anomaly for each in findings}


def _finding(anomaly: Anomaly, what: str, places: Iterable[object]) -> Iterator[Finding]:
    found = [str(place) for place in places]
    if found:
        yield Finding(anomaly, what, len(found), tuple(found[:_EXAMPLES_MAX]))


def _acknowledged(history: History) -> Iterator[Finding]:
    """What the broker acknowledged is on the topic, at the place that it named."""
    there = {each.place: each for each in history.inputs}
    yield from _finding(
        Anomaly.LOST_WRITE,
        "acknowledged payments that are not on their topic",
        (
            each.place
            for each in history.sent
            if each.place is not None
            and (each.place not in there or (each.decidable and there[each.place].event_id != each.event_id))
        ),
    )


def _each_decided(history: History) -> Iterator[Finding]:
    """Each input has a decision, or a dead letter; a missing one is lost where the group has gone past it."""
    done = {each.source for each in history.decisions} | {each.source for each in history.letters}
    missing = [each.place for each in history.inputs if each.place not in done]

    def passed(place: Place) -> bool:
        return place.offset < history.committed.get(place.partition, 0)

    yield from _finding(
        Anomaly.LOST_WRITE,
        "inputs that the group has passed without a decision or a dead letter",
        (place for place in missing if passed(place)),
    )
    yield from _finding(
        Anomaly.UNSEEN,
        "inputs that nobody has come to",
        (place for place in missing if not passed(place)),
    )


def _once(history: History) -> Iterator[Finding]:
    decided = Counter(each.source for each in history.decisions)
    lettered = Counter(each.source for each in history.letters)
    yield from _finding(
        Anomaly.DUPLICATE,
        "inputs with more than one decision",
        sorted(place for place, count in decided.items() if count > 1),
    )
    yield from _finding(
        Anomaly.DUPLICATE,
        "inputs with more than one dead letter",
        sorted(place for place, count in lettered.items() if count > 1),
    )
    yield from _finding(
        Anomaly.DUPLICATE,
        "inputs with a decision and a dead letter",
        sorted(decided.keys() & lettered.keys()),
    )


def _founded(history: History) -> Iterator[Finding]:
    """Each decision names an input that is there, is a payment, and is the one that it speaks of."""
    there = {each.place: each for each in history.inputs}

    def fits(decision: Decided) -> bool:
        source = there.get(decision.source)
        return source is not None and (source.event_id, source.account, source.decidable) == (
            decision.event_id,
            decision.account,
            True,
        )

    yield from _finding(
        Anomaly.UNFOUNDED,
        "decisions whose input is not there, is no payment or is another's",
        (each.place for each in history.decisions if not fits(each)),
    )
    yield from _finding(
        Anomaly.UNFOUNDED,
        "dead letters of payments that were fit to be decided, or of no input",
        (
            f"{each.place} ({each.reason})"
            for each in history.letters
            if each.source not in there
            or (there[each.source].decidable and each.reason not in history.letters_may_hold)
        ),
    )


def _aborted(history: History) -> Iterator[Finding]:
    """What a committed reader was given stays: nothing that it saw is gone or another at the end (G1a)."""
    final = {each.place: each.record_id for each in history.decisions}
    gone = [place for place, seen in sorted(history.seen_live.items()) if final.get(place) != seen]
    aborted = {
        place for place in gone if history.decisions_uncommitted.get(place) == history.seen_live[place]
    }
    yield from _finding(
        Anomaly.ABORTED_READ,
        "decisions given to a committed reader whose transaction was aborted",
        sorted(aborted),
    )
    yield from _finding(
        Anomaly.ABORTED_READ,
        "decisions given to a committed reader that are gone",
        (place for place in gone if place not in aborted),
    )


def _offsets(history: History) -> Iterator[Finding]:
    """Decisions and offsets are one: nothing at or behind a committed offset has been decided yet."""
    results = [each.source for each in (*history.decisions, *history.letters)]
    yield from _finding(
        Anomaly.INCONSISTENT_OFFSETS,
        "inputs decided though the group's committed offset is not past them",
        sorted({place for place in results if place.offset >= history.committed.get(place.partition, 0)}),
    )
    ends: dict[int, int] = defaultdict(int)
    for each in history.inputs:
        ends[each.place.partition] = max(ends[each.place.partition], each.place.offset + 1)
    yield from _finding(
        Anomaly.INCONSISTENT_OFFSETS,
        "partitions whose committed offset lies behind the end of the input",
        # A transaction marker of the bank's own producer may stand at the end.
        (
            f"{partition} at {offset}"
            for partition, offset in sorted(history.committed.items())
            if partition in ends and offset > ends[partition] + 1
        ),
    )


def _order(history: History) -> Iterator[Finding]:
    """Of an account, decisions come in the order of its payments; repetitions are not counted again."""
    by_account: dict[tuple[int, str], list[Decided]] = defaultdict(list)
    first: set[Place] = set()
    for each in sorted(history.decisions, key=lambda decision: decision.place):
        if each.source not in first:
            first.add(each.source)
            by_account[each.place.partition, each.account].append(each)
    yield from _finding(
        Anomaly.ORDER_ERROR,
        "decisions that come before one of an earlier payment of their account",
        sorted(
            before.place
            for decisions in by_account.values()
            for before, after in pairwise(decisions)
            if after.source < before.source
        ),
    )
    partitions: dict[str, set[int]] = defaultdict(set)
    for each in history.decisions:
        partitions[each.account].add(each.place.partition)
    yield from _finding(
        Anomaly.ORDER_ERROR,
        "accounts whose decisions lie in more than one partition",
        (sorted(found) for found in partitions.values() if len(found) > 1),
    )


def _scores(history: History) -> Iterator[Finding]:
    """A score is the one on the account's whole history, each payment counted once, in order."""
    expected = history.expected_logits
    yield from _finding(
        Anomaly.STATE_DIFFERS,
        "decisions whose score is another than on a recomputed state",
        sorted(
            each.source
            for each in history.decisions
            if each.logit is not None
            and each.source in expected
            and abs(expected[each.source] - each.logit) > LOGIT_TOLERANCE
        ),
    )


def _changelog(history: History) -> Iterator[Finding]:
    """The newest row of each account is the recomputed one, byte for byte, and no account is missing."""
    newest: dict[tuple[int, bytes], Row] = {}
    for row in sorted(history.rows, key=lambda each: each.place):
        newest[row.place.partition, row.key] = row
    expected = sorted(history.expected_rows.items())
    yield from _finding(
        Anomaly.STATE_DIFFERS,
        "accounts without a changelog row, by partition",
        (key[0] for key, _ in expected if key not in newest),
    )
    yield from _finding(
        Anomaly.STATE_DIFFERS,
        "changelog rows that differ from a recomputation",
        (newest[key].place for key, state in expected if key in newest and newest[key].state != state),
    )
    yield from _finding(
        Anomaly.STATE_DIFFERS,
        "changelog rows of accounts without a payment",
        (row.place for key, row in sorted(newest.items()) if key not in history.expected_rows),
    )


def _marks(history: History) -> Iterator[Finding]:
    """The state and the group's offsets are of one commit."""
    yield from _finding(
        Anomaly.INCONSISTENT_OFFSETS,
        "partitions whose state stands for another offset than the group has committed",
        (
            f"{partition} at {offset}, not {history.committed.get(partition, 0)}"
            for partition, offset in sorted(history.marks.items())
            if offset != history.committed.get(partition, 0)
        ),
    )


def _journal(history: History) -> Iterator[Finding]:
    """Each input that was decided is in one batch of the journal, and batches follow one another."""
    if not history.journal:
        return
    by_partition: dict[int, list[Batch]] = defaultdict(list)
    for batch in sorted(history.journal, key=lambda each: each.place):
        by_partition[batch.place.partition].append(batch)
    yield from _finding(
        Anomaly.DUPLICATE,
        "batches of the journal that begin before the end of the one before",
        sorted(
            after.place
            for batches in by_partition.values()
            for before, after in pairwise(batches)
            if after.offset_first < before.next_offset
        ),
    )
    covered = {
        Place(partition, offset)
        for partition, batches in by_partition.items()
        for batch in batches
        for offset in range(batch.offset_first, batch.next_offset)
    }
    yield from _finding(
        Anomaly.LOST_WRITE,
        "decided inputs that are in no batch of the journal",
        sorted({decision.source for decision in history.decisions} - covered),
    )


def _plaintext(history: History) -> Iterator[Finding]:
    for name, secret in history.secrets.items():
        yield from _finding(
            Anomaly.PLAINTEXT,
            f"records that hold {name} in the clear",
            (f"{each.topic} {each.place}" for each in history.wire if secret in each.data),
        )
