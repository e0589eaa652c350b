"""A topic's partitions read forward, each at its own pace, by a consumer of no group that commits nothing."""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from weir.client.connection import one_line, stop
from weir.config import KafkaSettings
from weir.streams.history import open_consumer, partitions

_POLL_MS = 200
# Records of one partition that wait here while another is read; then it is not fetched any more.
_WAITING_MAX = 5_000


class TopicReader:
    """Committed records up to where each partition ended when the reader was entered.

    Args:
        starts: partition to the offset where it begins; the others begin with their oldest record.
        since_ms: where those others begin instead, by Kafka's timestamp, ms since the epoch.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        client_id: str,
        starts: Mapping[int, int] | None = None,
        since_ms: int | None = None,
    ) -> None:
        self._settings, self.topic, self._client_id = settings, topic, client_id
        self._starts, self._since_ms = dict(starts or {}), since_ms
        self.oldest: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self._waiting: dict[int, deque[ConsumerRecord]] = {}
        self._fetched: dict[int, int] = {}
        self._paused: set[int] = set()
        self._consumer: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> Self:
        self._consumer = consumer = await open_consumer(self._settings, self._client_id)
        try:
            with one_line(self._settings, self.topic):
                tps = await partitions(consumer, self.topic)
                consumer.assign(tps)
                self.oldest = _by_number(await consumer.beginning_offsets(tps))
                self.ends = _by_number(await consumer.end_offsets(tps))
                await self._begin(consumer, tps)
        except BaseException:  # told onwards; the connection must not stay open
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)

    async def peek(self, partition: int) -> ConsumerRecord | None:
        """The next record of a partition; None at its end."""
        waiting = self._waiting[partition]
        while not waiting and self._fetched[partition] < self.ends[partition]:
            await self._fetch(partition)
        return waiting[0] if waiting else None

    def pop(self, partition: int) -> None:
        """Go on behind the record that `peek` returned."""
        self._waiting[partition].popleft()

    async def before(self, partition: int, offset: int) -> list[ConsumerRecord]:
        """The records of a partition before `offset` that were not taken yet, and go on behind them."""
        taken: list[ConsumerRecord] = []
        waiting = self._waiting[partition]
        while (record := waiting[0] if waiting else await self.peek(partition)) is not None:
            if record.offset >= offset:
                break
            taken.append(waiting.popleft())
            # What lies before `offset` is here: nothing behind it has to be waited for.
            if record.offset + 1 >= offset:
                break
        return taken

    async def seek(self, partition: int, offset: int) -> None:
        """Go on from `offset`, forward or back."""
        self._waiting[partition].clear()
        self._fetched[partition] = offset
        consumer = self._started()
        self._resume(partition)
        consumer.seek(TopicPartition(self.topic, partition), offset)

    async def back_to(self, partition: int, since_ms: int) -> None:
        """Begin with the first record at or after this Kafka timestamp, if that is further back."""
        tp = TopicPartition(self.topic, partition)
        with one_line(self._settings, self.topic):
            found = (await self._started().offsets_for_times({tp: since_ms})).get(tp)
        if found is not None and found.offset < self._fetched[partition]:
            await self.seek(partition, found.offset)

    async def _begin(self, consumer: AIOKafkaConsumer, tps: list[TopicPartition]) -> None:
        found: Mapping[TopicPartition, Any] = {}
        if self._since_ms is not None:
            found = await consumer.offsets_for_times(dict.fromkeys(tps, self._since_ms))
        for tp in tps:
            number = tp.partition
            start = self._starts.get(number)
            if start is None:
                at = found.get(tp)
                start = self.oldest[number] if self._since_ms is None else self.ends[number]
                start = at.offset if at is not None else start
            start = max(start, self.oldest[number])
            self._waiting[number] = deque()
            self._fetched[number] = start
            consumer.seek(tp, start)

    async def _fetch(self, partition: int) -> None:
        consumer = self._started()
        self._resume(partition)
        with one_line(self._settings, self.topic):
            fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_WAITING_MAX)
            for tp, records in fetched.items():
                number = tp.partition
                self._waiting[number].extend(each for each in records if each.offset < self.ends[number])
            for tp in {*fetched, TopicPartition(self.topic, partition)}:
                # The position also passes transaction markers, which are never handed out.
                self._fetched[tp.partition] = await consumer.position(tp)
        full = [
            number
            for number, waiting in self._waiting.items()
            if number not in self._paused
            and number != partition
            and (len(waiting) >= _WAITING_MAX or self._fetched[number] >= self.ends[number])
        ]
        if full:
            consumer.pause(*(TopicPartition(self.topic, number) for number in full))
            self._paused.update(full)

    def _resume(self, partition: int) -> None:
        if partition in self._paused:
            self._paused.discard(partition)
            self._started().resume(TopicPartition(self.topic, partition))

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("use the reader inside `async with TopicReader(...) as reader:`")
        return self._consumer


def _by_number(offsets: Mapping[TopicPartition, int]) -> dict[int, int]:
    return {tp.partition: int(offset) for tp, offset in offsets.items()}
