"""The risk service as the engine drives it: one group at a time into the state, decisions and state out."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.risk.contributions import contributions_max
from services.risk.labels import LabelReading
from services.risk.ports import Counts, Scorer, Tables, Writer
from services.risk.positions import Owed, Positions
from services.risk.reading import PaymentReading, ReadBatch
from services.risk.restore import Restoring
from services.risk.state import NO_CANARY, RiskState
from services.risk.writing import Scored
from weir.errors import IntegrityError
from weir.features.columns import Labels
from weir.kafka.records import AnyOutput
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics
from weir.streams import journal
from weir.streams.batch import BatchGroup, RecordBatch
from weir.streams.journal import JournalRecord
from weir.streams.ports import Place
from weir.streams.side_input import SideInput

log = get_logger("weir.risk.processor")

SchemasAtHand = Callable[[Sequence[bytes | None]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Floor:
    """What the shared state has to know before a restored partition is decided on: next offsets."""

    labels: Mapping[int, int]
    journal: Mapping[int, int]


class RiskProcessor:
    """See `weir.streams.ports.Processor`.

    Args:
        schemas: waits until the schemas that records name are known.
        labels, journal: followed in whole; their records enter before a group's own.
        input_topic: of the payments.
        tables: named in the journal.
    """

    def __init__(
        self,
        state: RiskState,
        reading: PaymentReading,
        label_reading: LabelReading,
        score: Scorer,
        write: Writer,
        restoring: Restoring,
        *,
        schemas: SchemasAtHand,
        labels: SideInput,
        journal: SideInput,
        input_topic: str,
        tables: Tables,
        metrics: Metrics,
        stream_metrics: StreamMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self.state, self._reading, self._label_reading = state, reading, label_reading
        self._score, self._write, self._restoring = score, write, restoring
        self._input, self._schemas, self._labels, self._journal = input_topic, schemas, labels, journal
        self._tables = tables
        self._metrics, self._stream_metrics, self._now_ms = metrics, stream_metrics, now_ms
        self._floors: dict[int, Floor] = {}
        # Taken from the followers and not yet in the state: kept when a group is given up before it is read.
        self._to_learn: list[tuple[Sequence[RecordBatch], Mapping[int, int]]] = []
        self._released = asyncio.Event()

    # -- a group's way -------------------------------------------------------------------------------------

    async def prepare(self, group: BatchGroup) -> None:
        """Return when the schemas are known and the shared state can be as new as the group needs it."""
        await self._schemas(group.values)
        for batch in group.batches:
            await self._reach_floor(batch.partition)
        taken, positions = self._labels.take()
        self._to_learn.append((taken, positions))
        for batches, _ in self._to_learn:
            for batch in batches:
                await self._schemas(batch.values)
        if not self.state.has_room_for(group, self._beside()) and self.state.may_forget:
            # Forgetting cannot be rolled back, so nothing may be left that could be.
            while not self.state.is_settled:
                self._released.clear()
                await self._released.wait()
            self._stream_metrics.forgotten(self.state.forget_expired())

    def read(self, epoch: int, group: BatchGroup) -> ReadBatch:
        """Let what came beside the group enter the state, then the group itself."""
        self.state.begin(epoch)
        self.state.pay()
        self._take_in()
        read = self._reading(group, self.state)
        now_ms = self._now_ms()
        changed = self.state.changelog(epoch, (batch.partition for batch in group.batches), now_ms)
        # Now: what is read after this group moves the positions on.
        inputs = self.state.positions.inputs
        touched = {(self._input, each.partition): inputs[each.partition] for each in changed}
        return replace(read, changelog=changed, touched=touched)

    def touched(self, read: ReadBatch) -> Mapping[Place, int]:
        """Partitions of which the group or labels beside it have changed accounts."""
        return read.touched

    async def score(self, read: ReadBatch) -> Scored:
        """Ask the model."""
        scored: Scored = await self._score(read)
        return scored

    async def write(
        self, group: BatchGroup, read: ReadBatch, scored: Scored
    ) -> tuple[Sequence[AnyOutput], Counts]:
        """Decisions, dead letters, changed rows, and the journal."""
        outputs, counts = await self._write(group, read, scored)
        canary = scored.canary
        told = self.state.journal(
            read.traces,
            read_ms=read.read_at_ms,
            now_ms=self._now_ms(),
            model=scored.scores.model.sha256 if scored.scores is not None else "",
            policy=read.in_force.policy.sha256,
            degraded=scored.degraded_reason,
            tables=self._tables,
            canary=NO_CANARY if canary is None else (canary.scores.model.sha256, canary.share),
        )
        return [*outputs, *read.changelog, *told], counts

    def counted(self, group: BatchGroup, counts: Counts, send_s: float) -> None:
        """The group's results are durable."""
        self._metrics.stage("send", send_s)
        self._metrics.decided(counts.decisions)
        for reason, count in counts.dead_letters.items():
            self._metrics.dead_lettered(reason, count)
        if counts.late:
            self._metrics.late(counts.late)
        if len(group):
            stamps, now_ms = group.timestamps_ms, self._now_ms()
            self._metrics.latency([(now_ms - stamps[0]) / 1000, (now_ms - stamps[-1]) / 1000])

    # -- beside the groups ---------------------------------------------------------------------------------

    def has_side_inputs(self) -> bool:
        """Whether labels or other workers' batches wait."""
        return (
            self.state.owes
            or self._labels.has_some
            or self._journal.has_some
            or any(taken for taken, _ in self._to_learn)
        )

    def _beside(self) -> int:
        """Terminals that what waits beside the groups could bring, at most."""
        labels = sum(len(batch) for taken, _ in self._to_learn for batch in taken)
        told = (value for batch in self._journal.waiting for value in batch.values)
        return labels + sum(contributions_max(value) for value in told if value is not None)

    def _take_in(self) -> None:
        for batches, positions in self._to_learn:
            for batch in batches:
                labels, rows = self._label_reading(batch.values, batch.timestamps_ms)
                offsets = np.array(batch.offsets, np.int64)[rows]
                self.state.learn(labels, batch.partition, offsets, batch.offset_last + 1)
            self.state.positions.labels.update(positions)
        self._to_learn.clear()
        batches, positions = self._journal.take()
        for batch in batches:
            for offset, value in zip(batch.offsets, batch.values, strict=True):
                try:
                    record = journal.decode(
                        value, JournalRecord, f"{batch.topic} {batch.partition} at {offset}"
                    )
                except IntegrityError as error:
                    # Its batch is decided; only this worker's view of terminals is short of it.
                    self._stream_metrics.damaged("journal")
                    log.error("journal_record_damaged", error=str(error))
                    continue
                self.state.enter(batch.partition, record)
        self.state.positions.journal.update(positions)

    async def _reach_floor(self, partition: int) -> None:
        if (floor := self._floors.get(partition)) is None:
            return
        if _reached(self.state.committed_positions, floor):
            del self._floors[partition]
        elif not _reached(self.state.positions, floor):
            await self._labels.reach(floor.labels)
            await self._journal.reach(floor.journal)

    # -- epochs and partitions -----------------------------------------------------------------------------

    def roll_back(self, epoch: int) -> None:
        """Put the state back to before `epoch`; what had come beside is read again."""
        self._stream_metrics.aborted()
        self.state.roll_back(epoch)
        self._to_learn.clear()
        self._labels.rewind(self.state.positions.labels)
        self._journal.rewind(self.state.positions.journal)
        self._released.set()

    def release(self, epoch: int) -> None:
        """Epochs up to this one are committed."""
        self.state.release(epoch)
        self._released.set()

    def position(self, place: Place) -> int:
        """The next payment that the state expects."""
        return self.state.positions.inputs[place[1]]

    async def restore(self, place: Place, committed: int | None) -> int:
        """Bring the partition's accounts here; see `services.risk.restore`."""
        restored = await self._restoring(place[1], committed)
        known, owed = await self._what_the_worker_knows(restored.labels)
        # No pause between these: what the worker knows must not move on before the partition is here.
        self._floors[place[1]] = Floor(restored.labels, restored.journal_ends)
        self.state.attach(place[1], restored.accounts, restored.next_offset, known, owed, restored.changelog)
        return restored.next_offset

    async def _what_the_worker_knows(self, labels: Mapping[int, int]) -> tuple[Mapping[int, int], Owed]:
        """Which labels a partition will know once it has learnt what the terminals have, and these labels."""
        known, owed = dict(labels), list[Labels]()
        while True:
            target = dict(self.state.positions.labels)
            behind = {number: end for number, end in target.items() if end > known.get(number, 0)}
            if not behind:
                return known, Owed(labels, owed)
            async for batch in self._restoring.labels(known, behind):
                await self._schemas(batch.values)
                owed.append(self._label_reading(batch.values, batch.timestamps_ms)[0])
            known.update(behind)

    def drop(self, place: Place) -> None:
        """Another worker owns the partition."""
        self._floors.pop(place[1], None)
        self.state.drop(place[1])


def _reached(positions: Positions, floor: Floor) -> bool:
    return all(positions.labels.get(number, 0) >= offset for number, offset in floor.labels.items()) and all(
        positions.journal.get(number, 0) >= offset for number, offset in floor.journal.items()
    )
