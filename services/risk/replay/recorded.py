"""The decisions as they were published: a partition's in its order, opened, verified, a batch at a time."""

from aiokafka import ConsumerRecord

from services.risk.replay.topic_reader import TopicReader
from weir.client.decisions import verify_id
from weir.client.opening import RecordOpener
from weir.client.records import Decision, Position


class Recorded:
    """Reads what `reader` holds beside the batches of one partition of `transactions`.

    Decisions lie in the order of their batches, so each is opened once and none is held for later.
    """

    def __init__(self, reader: TopicReader, opener: RecordOpener, transactions: str, partition: int) -> None:
        self._reader, self._opener = reader, opener
        self._transactions, self._partition = transactions, partition
        self._next: tuple[int, Decision] | None = None

    async def of(self, offset_first: int, next_offset: int) -> dict[int, Decision]:
        """The decisions on the payments of one batch, by the payment's offset.

        Raises:
            AccessDenied, IntegrityError, BadInput: a decision does not open, or is not what it claims to be.
        """
        found: dict[int, Decision] = {}
        last = -1
        place = self._partition % len(self._reader.ends)
        while (record := await self._reader.peek(place)) is not None:
            decision = await self._opened(record)
            ref = decision.feature_ref
            if (ref.topic, ref.partition) == (self._transactions, self._partition):
                # Delivered at least once, a batch may come again: then offsets go back.
                if ref.offset >= next_offset or offset_first <= ref.offset <= last:
                    break
                if ref.offset >= offset_first:
                    found[ref.offset] = decision
                    last = ref.offset
            self._reader.pop(place)
        return found

    async def _opened(self, record: ConsumerRecord) -> Decision:
        if self._next is not None and self._next[0] == record.offset:
            return self._next[1]
        raw = Position(record.topic, record.partition, record.offset)
        opened = await self._opener.open(record.topic, record.value, record.headers)
        verify_id(opened.record, opened.record_id, raw)
        decision = Decision.from_avro(opened.record, raw)
        self._next = record.offset, decision
        return decision
