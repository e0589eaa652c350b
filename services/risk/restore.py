"""Bringing a partition's accounts to a worker: a standby's, else its own snapshot, then the changelog, else
the input itself.

    standby, or snapshot (minutes old) ──▶ changelog's tail ──▶ mark == what the group has committed ──▶ here
                                                    │ not so, or nothing is there
                                                    ▼
                                    the input's last days, read again ──▶ here, and the changelog begins anew

The changelog and the group's offsets commit together, so under exactly-once the mark says just what the group
says, unless somebody has moved the group's offsets by hand or the changelog is from another feature spec.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.risk.changelog import BegunAnew, Log, Replica, mark_in
from services.risk.reading import PaymentReading
from services.risk.snapshots import Snapshots
from services.risk.standby import Standbys
from services.risk.state import RiskState
from weir.config import KafkaSettings, TopicSettings
from weir.errors import IntegrityError
from weir.features.accounts import Accounts
from weir.features.terminals import Terminals
from weir.obs.log import get_logger
from weir.obs.stream_metrics import RestoreSource, StreamMetrics
from weir.state.table import StateFull
from weir.streams import journal
from weir.streams.batch import RecordBatch
from weir.streams.history import end_offsets, read_range, read_until
from weir.streams.journal import JournalRecord, Mark

log = get_logger("weir.risk.restore")

_DAY_MS = 86_400_000
# A batch's journal is written after it was read; a clock that was set back in between is allowed this.
_CLOCK_MS = 600_000


@dataclass(frozen=True, slots=True)
class Restored:
    """A partition's accounts, and what they stand for.

    next_offset: of the input. labels: learnt so far, next offsets.
    journal_ends: what the shared state must have read before the partition is decided on.
    changelog: where it begins, and what it has yet to be told.
    """

    accounts: Accounts
    next_offset: int
    labels: Mapping[int, int]
    journal_ends: Mapping[int, int]
    changelog: Log


class Restoring:
    """Restores partitions of one worker.

    Args:
        snapshots: this worker's own.
        standbys: what is warm; None where nothing is kept.
        exact: whether the mark and the group's offset have to agree.
        restore_days: how much of the input fills the windows when there is nothing better.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topics: TopicSettings,
        state: RiskState,
        reading: PaymentReading,
        *,
        snapshots: Snapshots,
        standbys: Standbys | None,
        exact: bool,
        restore_days: int,
        client_id: str,
        metrics: StreamMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._kafka, self._topics, self._state, self._reading = kafka, topics, state, reading
        self._snapshots, self._standbys = snapshots, standbys
        self._exact, self._restore_days = exact, restore_days
        self._client_id, self._metrics, self._now_ms = client_id, metrics, now_ms

    async def __call__(self, partition: int, committed: int | None) -> Restored:
        """The partition as of the group's committed offset."""
        begun_s = time.monotonic()
        source: RestoreSource = "standby"
        # What the last owner had seen of the others has committed; its markers may be on their way. Asked for
        # first: a broker that is away just then would cost what is warm.
        journal_topic = self._topics.risk_journal
        ends = await end_offsets(self._kafka, journal_topic, f"{self._client_id}-restore", undecided=True)
        found = await self._standbys.take(partition) if self._standbys is not None else None
        if found is None or not self._fits(found, committed):
            # Its table goes before another of the partition comes: there is room for one.
            found = None
            found, source = await self._from_whole_changelog(partition), "changelog"
        if self._fits(found, committed):
            changelog = found.log
        else:
            found = None
            found, source = await self._from_input(partition, committed), "input"
            changelog = Log.anew(await self._changelog_end(partition), found.accounts)
        duration_s = time.monotonic() - begun_s
        self._metrics.restored(source, found.row_count, duration_s)
        log.info(
            "partition_restored",
            partition=partition,
            source=source,
            row_count=found.row_count,
            accounts=found.accounts.row_count,
            to_write=changelog.keys.size,
            duration_s=round(duration_s, 3),
        )
        labels = found.mark.labels if found.mark is not None else {}
        return Restored(found.accounts, committed or 0, labels, ends, changelog)

    def labels(self, known: Mapping[int, int], ends: Mapping[int, int]) -> AsyncIterator[RecordBatch]:
        """The labels between two positions."""
        return read_range(self._kafka, self._topics.labels, known, ends, f"{self._client_id}-restore")

    def _fits(self, found: Replica, committed: int | None) -> bool:
        mark = found.mark
        if mark is None:
            return not committed
        if mark.spec != self._state.spec.id:
            log.warning("changelog_of_another_spec", spec=mark.spec, expected=self._state.spec.id)
            return False
        if not found.is_whole:
            log.warning("changelog_not_whole", since=mark.since)
            return False
        if self._exact and mark.next_offset != (committed or 0):
            log.warning("offsets_moved", state_offset=mark.next_offset, group_offset=committed)
            return False
        # At least once, the state may be ahead of the group: what is decided again enters it again.
        return True

    # -- snapshot and changelog ----------------------------------------------------------------------------

    async def _from_whole_changelog(self, partition: int) -> Replica:
        """As `_from_changelog`; of a changelog with a damaged record nothing, so that the input is read."""
        try:
            return await self._from_changelog(partition)
        except IntegrityError as error:
            self._metrics.damaged("changelog")
            log.error("changelog_damaged", partition=partition, error=str(error))
            return Replica(self._state.new_accounts())

    async def _from_changelog(self, partition: int) -> Replica:
        end, since = await self._changelog_end(partition), 0
        newest: Mark | None = None
        while True:
            try:
                return await self._replayed(partition, end, since, newest)
            except BegunAnew as begun:
                since = begun.since
            except (StateFull, IntegrityError) as error:
                # Rows that the worker had forgotten are still in the log, and its clock of then may not be:
                # the newest one tells them from the others, which are no more than that worker held. What
                # is damaged may be of before the log began.
                may_fit = isinstance(error, StateFull) and newest is None
                newest = newest or await self._newest_mark(partition, end)
                if newest is None or not (may_fit or newest.since > since):
                    raise
                since = newest.since

    async def _replayed(self, partition: int, end: int, since: int, newest: Mark | None) -> Replica:
        """Snapshot and changelog together; with `newest` rows that have expired by then need no room."""
        found, start = await asyncio.to_thread(self._snapshots.load_accounts, self._state, partition, since)
        if newest is not None:
            found.ahead = np.array(newest.clock, np.int64)
            found.keep_ahead()
        async for batch in self._changelog(partition, start, end):
            found.take_in(batch.keys, batch.values, _where(batch))
        return found

    async def _newest_mark(self, partition: int, end: int) -> Mark | None:
        mark = None
        async for batch in self._changelog(partition, 0, end):
            mark = mark_in(batch.keys, batch.values, _where(batch)) or mark
        return mark

    async def _changelog_end(self, partition: int) -> int:
        topic = self._topics.risk_accounts
        ends = await end_offsets(self._kafka, topic, f"{self._client_id}-restore", undecided=True)
        return ends[partition]

    def _changelog(self, partition: int, start: int, end: int) -> AsyncIterator[RecordBatch]:
        topic, starts, ends = self._topics.risk_accounts, {partition: start}, {partition: end}
        return read_range(self._kafka, topic, starts, ends, f"{self._client_id}-restore")

    # -- the input -----------------------------------------------------------------------------------------

    async def _from_input(self, partition: int, committed: int | None) -> Replica:
        """Fresh accounts from the input's last days; terminals learn what they have not seen."""
        found = Replica(self._state.new_accounts())
        if not committed or not self._restore_days:
            return found
        nobody = Terminals(self._state.spec, rows_max=self._state.terminals.rows.row_max)
        since_ms = self._now_ms() - self._restore_days * _DAY_MS
        kafka, topics, client_id = self._kafka, self._topics, f"{self._client_id}-restore"
        journal_end = (await end_offsets(kafka, topics.risk_journal, client_id))[partition]
        told = read_until(
            kafka, topics.risk_journal, {partition: journal_end}, since_ms - _CLOCK_MS, client_id
        )
        async with aclosing(told):
            times = ReadTimes(told, self._journal_damaged)
            ends = {partition: committed}
            async for batch in read_until(kafka, topics.transactions, ends, since_ms, client_id):
                times_ms = await times.of(batch)
                found.row_count += self._reading.absorb(batch.values, times_ms, found.accounts, nobody)
        return found

    def _journal_damaged(self, error: IntegrityError) -> None:
        self._metrics.damaged("journal")
        log.error("journal_record_damaged", error=str(error))


class ReadTimes:
    """When a partition's payments were read for the first time, by its journal; both in order of offsets.

    Whether a payment was of the future, or too old, was judged by that time. One of which the journal does
    not tell was read soon after it was written: Kafka's timestamp stands for that.

    Args:
        told: the partition's journal.
        damaged: told of each record that is none.
    """

    def __init__(self, told: AsyncIterator[RecordBatch], damaged: Callable[[IntegrityError], None]) -> None:
        self._records, self._damaged = self._decoded(told), damaged
        self._next: JournalRecord | None = None

    async def of(self, batch: RecordBatch) -> NDArray[np.int64]:
        """(n,) ms since the epoch; asked for one batch after the other."""
        offsets, at_ms = np.array(batch.offsets, np.int64), np.array(batch.timestamps_ms, np.int64)
        row = 0
        while row < len(batch) and (record := await self._beyond(batch.offsets[row])) is not None:
            start, stop = np.searchsorted(offsets, (record.offset_first, record.next_offset)).tolist()
            at_ms[max(start, row) : stop] = record.read_ms
            row = stop
        return at_ms

    async def _beyond(self, offset: int) -> JournalRecord | None:
        """The first batch of the journal that does not end before `offset`."""
        while self._next is None or self._next.next_offset <= offset:
            self._next = await anext(self._records, None)
            if self._next is None:
                return None
        return self._next

    async def _decoded(self, told: AsyncIterator[RecordBatch]) -> AsyncIterator[JournalRecord]:
        async for batch in told:
            for offset, value in zip(batch.offsets, batch.values, strict=True):
                where = f"{batch.topic} {batch.partition} at {offset}"
                try:
                    yield journal.decode(value, JournalRecord, where)
                except IntegrityError as error:
                    self._damaged(error)


def _where(batch: RecordBatch) -> str:
    return f"{batch.topic} {batch.partition} from {batch.offset_first}"
