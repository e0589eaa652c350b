"""What a worker knows: the accounts of its partitions, and the terminals that all workers share.

An account's payments all come by one partition, so its windows belong to the partition and move with it. A
terminal's payments come by every partition, so each worker holds all terminals: what its own partitions see
enters at once, what the others' see comes by their journals, as soon as it has committed. Counts add up in
any order, so every worker's table holds the same once it has read the same. `seen` says how far that is.

All changes belong to epochs; until an epoch is released it can be rolled back, positions included.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.risk.changelog import MARK_KEY, Log
from services.risk.contributions import contributions_of, split_contributions
from services.risk.ports import Tables
from services.risk.positions import Owed, Positions
from weir.columns import ByteColumn
from weir.features.accounts import Accounts
from weir.features.columns import Labels, Payments
from weir.features.spec import DEFAULT, FeatureSpec
from weir.features.terminals import Terminals, observe
from weir.kafka.records import ColumnOutput
from weir.state.rows import Rows
from weir.streams import journal
from weir.streams.batch import BatchGroup
from weir.streams.journal import JournalRecord, Mark

NOT_SAID = Tables()
NO_CANARY = ("", 0.0)


@dataclass(frozen=True, slots=True)
class BatchTrace:
    """What the journal tells of one batch, but for what only scoring knows."""

    partition: int
    offset_first: int
    next_offset: int
    labels: dict[int, int]
    seen: dict[int, int]
    contributions: bytes


@dataclass(frozen=True, slots=True)
class StateTopics:
    """Where the state is written."""

    accounts: str
    journal: str


@dataclass(frozen=True, slots=True)
class _Epoch:
    """One that could be rolled back: what the positions were, and whose accounts it may have changed."""

    number: int
    before: Positions
    touched: set[int] = field(default_factory=set)


class RiskState:
    """The windows of one worker; a thread of its own may only write snapshots of it.

    Args:
        accounts_max: rows of each partition at most.
        owner: this worker's name in what it writes.
    """

    def __init__(
        self,
        topics: StateTopics,
        *,
        accounts_max: int,
        terminals_max: int,
        owner: str,
        spec: FeatureSpec = DEFAULT,
    ) -> None:
        self.spec, self.owner = spec, owner
        self._topics, self.accounts_max = topics, accounts_max
        self.accounts: dict[int, Accounts] = {}
        self.terminals = Terminals(spec, rows_max=terminals_max)
        self.positions = Positions()
        # Which labels a partition knew when it came: it must not learn them twice, even after a roll back.
        # It is forgotten once the worker has learnt as many for good.
        self._known: dict[int, Mapping[int, int]] = {}
        self._owed: dict[int, Owed] = {}
        self._logs: dict[int, Log] = {}
        # What each table was when nothing more of it could be forgotten: the terminals' is under None.
        self._looked_at: dict[int | None, tuple[int, int]] = {}
        self._open: deque[_Epoch] = deque()

    def new_accounts(self) -> Accounts:
        """An empty table, not yet of any partition."""
        return Accounts(self.spec, rows_max=self.accounts_max)

    # -- partitions ----------------------------------------------------------------------------------------

    def attach(
        self,
        partition: int,
        accounts: Accounts,
        next_offset: int,
        labels: Mapping[int, int],
        owed: Owed | None = None,
        changelog: Log | None = None,
    ) -> None:
        """The partition's state is here.

        Args:
            labels: which it has learnt, those that it is owed included.
            owed: to be learnt with the next group, so that the changelog tells of it.
            changelog: where it begins, and what it has yet to be told; None: it tells of all.
        """
        self.accounts[partition] = accounts
        self._logs[partition] = changelog or Log()
        for positions in (self.positions, *(epoch.before for epoch in self._open)):
            positions.inputs[partition] = next_offset
            positions.paid.discard(partition)
            positions.written.pop(partition, None)
        self._known[partition] = dict(labels)
        if owed is not None and owed.labels:
            self._owed[partition] = owed

    def drop(self, partition: int) -> None:
        """Another worker owns it now; what its payments said of terminals stays."""
        self.accounts.pop(partition, None)
        self._known.pop(partition, None)
        self._owed.pop(partition, None)
        self._logs.pop(partition, None)
        for positions in (self.positions, *(epoch.before for epoch in self._open)):
            positions.inputs.pop(partition, None)
            positions.written.pop(partition, None)
        for epoch in self._open:
            epoch.touched.discard(partition)

    # -- epochs --------------------------------------------------------------------------------------------

    def begin(self, epoch: int) -> None:
        """What follows belongs to `epoch`, and can be rolled back until it is released.

        A partition's accounts begin it when they are first touched: a worker has many partitions, and a group
        at a low rate touches few.
        """
        self._open.append(_Epoch(epoch, self.positions.copy()))
        self.terminals.begin(epoch)

    def _touched(self, partition: int) -> Accounts:
        """The partition's accounts, about to change under the epoch that has begun, if one has."""
        accounts = self.accounts[partition]
        if self._open and partition not in self._open[-1].touched:
            accounts.begin(self._open[-1].number)
            self._open[-1].touched.add(partition)
        return accounts

    def roll_back(self, epoch: int) -> None:
        """Put everything back to before `epoch`."""
        self.terminals.roll_back(epoch)
        touched = set[int]()
        while self._open and self._open[-1].number >= epoch:
            undone = self._open.pop()
            self.positions = undone.before
            touched |= undone.touched
        for partition in touched:
            self.accounts[partition].roll_back(epoch)

    def release(self, epoch: int) -> None:
        """Epochs up to this one are committed."""
        self.terminals.release(epoch)
        touched = set[int]()
        while self._open and self._open[0].number <= epoch:
            touched |= self._open.popleft().touched
        for partition in touched:
            self.accounts[partition].release(epoch)
        committed = self.committed_positions
        for partition in self._owed.keys() & committed.paid:
            del self._owed[partition]
        for partition, written in committed.written.items():
            log = self._logs[partition]
            if log.keys.size and written >= log.keys.size:
                self._logs[partition] = Log(log.since)
        for partition, known in list(self._known.items()):
            if all(committed.labels.get(number, 0) >= offset for number, offset in known.items()):
                del self._known[partition]

    @property
    def owes(self) -> bool:
        """Whether a partition has yet to learn labels that it is owed."""
        return not self._owed.keys() <= self.positions.paid

    @property
    def committed_positions(self) -> Positions:
        """As of the last commit."""
        return self._open[0].before if self._open else self.positions

    @property
    def is_settled(self) -> bool:
        """Whether nothing could be rolled back any more."""
        return not self._open

    # -- what enters ---------------------------------------------------------------------------------------

    def observe(
        self, partition: int, payments: Payments, offset_first: int, next_offset: int
    ) -> tuple[NDArray[np.float32], BatchTrace]:
        """(n, F) features of a batch's valid payments, each from what came before it; then they have entered.

        Raises:
            StateFull: no room for a new account or terminal.
        """
        trace = BatchTrace(
            partition,
            offset_first,
            next_offset,
            dict(self.positions.labels),
            dict(self.positions.seen),
            contributions_of(payments),
        )
        features = observe(self._touched(partition), self.terminals, payments)
        self.positions.inputs[partition] = next_offset
        self.positions.seen[partition] = next_offset
        return features, trace

    def pay(self) -> None:
        """Let each partition learn what it is owed, under the epoch that has begun."""
        for partition in self._owed.keys() - self.positions.paid:
            for labels in self._owed[partition].labels:
                self._touched(partition).learn(labels)
            self.positions.paid.add(partition)

    def learn(self, labels: Labels, partition: int, offsets: NDArray[np.int64], next_offset: int) -> None:
        """Labels from one partition of their topic; `offsets` (n,) int64 are theirs."""
        at = self.positions.labels.get(partition, 0)
        if offsets.size and offsets[0] < at:
            fresh = offsets >= at
            labels, offsets = labels.rows(fresh), offsets[fresh]
        self.terminals.learn(labels)
        frauds = labels.account[labels.is_fraud]
        for number, accounts in self.accounts.items():
            known = self._known.get(number, {}).get(partition, 0)
            if known < next_offset and (accounts.rows.find(frauds) >= 0).any():
                self._touched(number).learn(labels.rows(offsets >= known) if known else labels)
        self.positions.labels[partition] = max(next_offset, at)

    def enter(self, partition: int, record: JournalRecord) -> bool:
        """A batch of another worker, unless it is here already; whether it was new."""
        if record.next_offset <= self.positions.seen.get(partition, 0):
            return False
        terminal, hour = split_contributions(record.contributions)
        self.terminals.enter(terminal, hour)
        self.positions.seen[partition] = record.next_offset
        return True

    # -- room ----------------------------------------------------------------------------------------------

    def has_room_for(self, group: BatchGroup, beside: int = 0) -> bool:
        """Whether every payment of the group could be of a new account at a new terminal.

        Args:
            beside: terminals that what enters beside the group could bring.
        """
        rows = Counter({batch.partition: 0 for batch in group.batches})
        for batch in group.batches:
            rows[batch.partition] += len(batch)
        return _has_room(self.terminals.rows, len(group) + beside) and all(
            _has_room(self.accounts[partition].rows, count)
            for partition, count in rows.items()
            if partition in self.accounts  # else it has gone to another worker meanwhile
        )

    @property
    def may_forget(self) -> bool:
        """Whether `forget_expired` could find a row: windows have moved on since it looked, or rows came."""
        return self._tables() != self._looked_at

    def forget_expired(self) -> int:
        """Let go of what no window can see; how many rows. Only when settled.

        A snapshot in the making needs rows to stay where they are: it is given up, and the older one stays.
        """
        forgotten = 0
        tables: list[Accounts | Terminals] = [self.terminals, *self.accounts.values()]
        for table in tables:
            table.rows.stop_reader()
            forgotten += table.rows.evict_expired(table.floor_hour())
        self._looked_at = self._tables()
        return forgotten

    def _tables(self) -> dict[int | None, tuple[int, int]]:
        """Of each table before which hour rows may be forgotten, and how many there are."""
        tables: dict[int | None, tuple[int, int]] = {
            partition: (accounts.floor_hour(), accounts.row_count)
            for partition, accounts in self.accounts.items()
        }
        tables[None] = self.terminals.floor_hour(), self.terminals.row_count
        return tables

    # -- what is written -----------------------------------------------------------------------------------

    def changelog(self, epoch: int, batch_partitions: Iterable[int], now_ms: int) -> list[ColumnOutput]:
        """The rows that `epoch` has changed, as they are now, each partition's with its mark at the end.

        Beside them a part of those that the changelog has yet to be told.
        """
        outputs = []
        with_batches = set(batch_partitions)
        for partition in next(each.touched for each in self._open if each.number == epoch):
            accounts = self.accounts[partition]
            rows = accounts.changed_rows(epoch)
            if (part := self._logs[partition].part(self.positions.written.get(partition, 0))).size:
                here = accounts.rows.find(part)  # -1: forgotten since
                rows = np.union1d(rows, here[here >= 0])
                self.positions.written[partition] = self.positions.written.get(partition, 0) + part.size
            if not rows.size and partition not in with_batches:
                continue
            keys, values = accounts.encode_rows(rows)
            mark = journal.encode(self.mark(partition, self.positions))
            outputs.append(
                ColumnOutput(
                    self._topics.accounts,
                    partition,
                    keys.appended(MARK_KEY),
                    values.appended(mark),
                    now_ms,
                )
            )
        return outputs

    def mark(self, partition: int, positions: Positions) -> Mark:
        """What the partition's state stands for."""
        log = self._logs[partition]
        return Mark(
            journal.MARK_VERSION,
            positions.inputs[partition],
            self._labels_of(partition, positions),
            positions.seen,
            self.accounts[partition].clock.tolist(),
            self.spec.id,
            self.owner,
            log.since,
            positions.written.get(partition, 0) >= log.keys.size,
        )

    def journal(
        self,
        traces: Iterable[BatchTrace],
        *,
        read_ms: int,
        now_ms: int,
        model: str,
        policy: str,
        degraded: str,
        tables: Tables = NOT_SAID,
        canary: tuple[str, float] = NO_CANARY,
    ) -> list[ColumnOutput]:
        """One record a batch."""
        by_partition: dict[int, list[bytes]] = {}
        for trace in traces:
            record = JournalRecord(
                journal.JOURNAL_VERSION if canary[0] else journal.JOURNAL_WITHOUT_CANARY,
                trace.offset_first,
                trace.next_offset,
                trace.labels,
                trace.seen,
                read_ms,
                model,
                policy,
                degraded,
                self.owner,
                trace.contributions,
                tables.rates,
                tables.reasons,
                *canary,
            )
            by_partition.setdefault(trace.partition, []).append(journal.encode(record))
        return [
            ColumnOutput(self._topics.journal, partition, None, ByteColumn.from_list(values), now_ms)
            for partition, values in by_partition.items()
        ]

    def _labels_of(self, partition: int, positions: Positions) -> dict[int, int]:
        owed = self._owed.get(partition)
        if owed is not None and partition not in positions.paid:
            return dict(owed.known)
        known = self._known.get(partition)
        if known is None:
            return positions.labels
        return {
            number: max(positions.labels.get(number, 0), known.get(number, 0))
            for number in positions.labels.keys() | known.keys()
        }

    @property
    def account_count(self) -> int:
        """Accounts of all partitions held."""
        return sum(accounts.row_count for accounts in self.accounts.values())


def _has_room(rows: Rows, count: int) -> bool:
    return rows.row_count + count <= rows.row_max
