"""One partition's state, brought to what it was before each of its batches, as the journal tells it.

    labels up to the batch's positions ─┐
    other partitions' batches, to seen ─┼─▶ the state of then ──the batch──▶ its features
    this partition's batches before it ─┘

Terminals are a function of the set of payments and labels that have entered, so one partition can be followed
alone: of the others, what they said of terminals stands in their journal records.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.risk.labels import LabelReading
from services.risk.reading import PaymentReading, ReadBatch
from services.risk.replay.topic_reader import TopicReader
from services.risk.state import RiskState
from weir.streams import journal
from weir.streams.batch import BatchGroup, RecordBatch
from weir.streams.journal import JournalRecord


@dataclass(frozen=True, slots=True)
class Readers:
    """The topics that the state is made of."""

    transactions: TopicReader
    labels: TopicReader
    journal: TopicReader


@dataclass(frozen=True, slots=True)
class Reread:
    """A batch as it was read then: its payments have entered the state.

    same_state: whether just those payments entered that the worker let enter.
    """

    group: BatchGroup
    read: ReadBatch
    same_state: bool


class Past:
    """Follows one partition.

    Args:
        schemas: waits until the schemas that records name are known.
        note: told, in a line, where the past cannot be brought about as it was.
    """

    def __init__(
        self,
        partition: int,
        state: RiskState,
        readers: Readers,
        reading: PaymentReading,
        label_reading: LabelReading,
        schemas: Callable[[Sequence[bytes | None]], Awaitable[None]],
        note: Callable[[str], None],
    ) -> None:
        self._partition, self.state, self._readers = partition, state, readers
        self._reading, self._label_reading = reading, label_reading
        self._schemas, self._note = schemas, note
        self._topic = readers.transactions.topic

    async def next_record(self) -> JournalRecord | None:
        """What the journal tells of the partition's next batch; None at its end."""
        reader = self._readers.journal
        kept = await reader.peek(self._partition)
        if kept is None:
            return None
        reader.pop(self._partition)
        where = f"{kept.topic} {kept.partition} at {kept.offset}"
        return journal.decode(kept.value, JournalRecord, where)

    async def batch(self, record: JournalRecord) -> Reread | None:
        """Bring the state to before the batch, then let the batch enter; None when its payments are gone."""
        await self._learn(record)
        await self._enter_others(record)
        batch = await self._payments(record)
        if batch is None:
            # The journal still tells what it said of terminals; of accounts nothing does.
            self.state.enter(self._partition, record)
            return None
        await self._schemas(batch.values)
        group = BatchGroup([batch])
        read = self._reading(group, self.state, record.read_ms)
        (trace,) = read.traces
        return Reread(group, read, trace.contributions == record.contributions)

    async def _learn(self, record: JournalRecord) -> None:
        positions = self.state.positions.labels
        for number, offset in sorted(record.labels.items()):
            if offset < positions.get(number, 0):
                self._note(
                    f"partition {self._partition} at {record.offset_first}: decided on fewer labels than the "
                    "batch before it, which a replay cannot take back."
                )
                continue
            labels = await self._readers.labels.before(number, offset)
            if labels:
                batch = RecordBatch(self._readers.labels.topic, number, labels)
                await self._schemas(batch.values)
                found, rows = self._label_reading(batch.values, batch.timestamps_ms)
                offsets = np.array(batch.offsets, np.int64)[rows]
                self.state.learn(found, number, offsets, batch.offset_last + 1)
            positions[number] = offset

    async def _enter_others(self, record: JournalRecord) -> None:
        reader, seen = self._readers.journal, self.state.positions.seen
        for number, offset in sorted(record.seen.items()):
            if number == self._partition:
                continue
            if offset < seen.get(number, 0):
                self._note(
                    f"partition {self._partition} at {record.offset_first}: decided on less of partition "
                    f"{number} than the batch before it, which a replay cannot take back."
                )
                continue
            while seen.get(number, 0) < offset and (kept := await reader.peek(number)) is not None:
                where = f"{kept.topic} {kept.partition} at {kept.offset}"
                other = journal.decode(kept.value, JournalRecord, where)
                if other.next_offset > offset:
                    break
                self.state.enter(number, other)
                reader.pop(number)
            if seen.get(number, 0) < offset:
                self._note(f"partition {number}: its journal does not reach back to all that was seen of it.")
                seen[number] = offset

    async def _payments(self, record: JournalRecord) -> RecordBatch | None:
        reader, place = self._readers.transactions, self._partition
        behind = self.state.positions.inputs[place]
        if record.offset_first < behind:
            self._note(
                f"partition {place} at {record.offset_first}: decided more than once, as at_least_once may; "
                "what entered the windows twice then is not told by the journal."
            )
            await reader.seek(place, record.offset_first)
        elif (first := await reader.peek(place)) is not None and first.offset < record.offset_first:
            await reader.seek(place, record.offset_first)
            self._note(
                f"partition {place}: payments from {behind} to {record.offset_first} have no journal; they "
                "are left out, and what they did to the windows is missing."
            )
        records = await reader.before(place, record.next_offset)
        ends = (record.offset_first, record.next_offset - 1)
        if not records or (records[0].offset, records[-1].offset) != ends:
            self._note(
                f"partition {place}: the topic begins at {reader.oldest[place]}, later than its journal; "
                "windows are short of what was before."
            )
            self.state.positions.inputs[place] = record.next_offset
            return None
        return RecordBatch(self._topic, place, records)
