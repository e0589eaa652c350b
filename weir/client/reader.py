"""Reads sealed records of one topic: committed ones only, opened by the caller's role, verified, typed."""

import inspect
import uuid
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError

from weir.client.connection import one_line, partitions_of, stop
from weir.client.opening import Keys, Opened, RecordOpener
from weir.client.records import Position, to_ms
from weir.codec.registry import open_registry
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings
from weir.crypto.envelope import HEADER_NAME, RECORD_ID_BYTES
from weir.crypto.keyring import Keyring
from weir.errors import AccessDenied, BadInput, IntegrityError
from weir.kafka_options import client_options, connect

_POLL_MS = 500
# A sealed record is some 2 kB: a batch holds at most about this many, whatever the brokers send.
_BATCH_RECORDS_MAX = 2_000

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Last:
    """Begin about `count` records before the end of each partition (transaction markers count as records)."""

    count: int


Start = Literal["beginning", "end"] | datetime | Last


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that did not open: where it stands and what it met."""

    raw: Position
    error: AccessDenied | IntegrityError | BadInput


OnBad = Callable[[BadRecord], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class _Settings:
    kafka: KafkaSettings
    topic: str
    registry: RegistrySettings
    keys: KeyServiceSettings | Keys


class SealedReader(ABC, Generic[Record]):
    """Records as they are made: `async with Reader.connect(purpose=...) as records`, then `async for`.

    What is verified of each: Kafka's transaction was committed; the value opens with a key that this role is
    given for this purpose; topic, schema and record id are those it was sealed for.
    """

    schema: ClassVar[str]
    """Of the records, as in `weir.codec.schemas.SUBJECTS`."""

    @staticmethod
    @abstractmethod
    def topic_of(topics: TopicSettings) -> str:
        """Where the records are."""

    @abstractmethod
    def _typed(self, opened: Opened, raw: Position) -> Record:
        """What an opened record says.

        Raises:
            IntegrityError, BadInput: it is not what it must be.
        """

    def __init__(
        self,
        settings: _Settings,
        *,
        purpose: str,
        group: str | None,
        start: Start,
        follow: bool,
        on_bad: OnBad | None,
    ) -> None:
        self._settings = settings
        self._purpose, self._group, self._start = purpose, group, start
        self._follow, self._on_bad = follow, on_bad
        self._buffer: deque[ConsumerRecord] = deque()
        self._ends: dict[TopicPartition, int] = {}
        # Offsets to commit: of what the caller came back from, and of what it still works on.
        self._done: dict[TopicPartition, int] = {}
        self._given: dict[TopicPartition, int] = {}
        self._own_keyring: Keyring | None = None
        self._registry = open_registry(settings.registry)
        self._consumer: AIOKafkaConsumer | None = None
        self._opener: RecordOpener | None = None

    @classmethod
    def connect(
        cls,
        *,
        purpose: str,
        group: str | None = None,
        start: Start = "end",
        follow: bool = True,
        on_bad: OnBad | None = None,
        kafka: KafkaSettings | None = None,
        topics: TopicSettings | None = None,
        registry: RegistrySettings | None = None,
        keys: KeyServiceSettings | Keys | None = None,
    ) -> Self:
        """A reader by the settings in force (`weir.toml`, `WEIR_*`), each of which an argument replaces.

        Args:
            purpose: why the caller reads; the key service decides by it and writes it into its audit record.
            group: share the partitions with the other members of this consumer group and go on where it
                stood; a record counts as read once the caller asks for the next. None reads them all.
            start: where to begin when the group has no place yet, or always without one.
            follow: False ends the iteration at what was committed when reading began.
            on_bad: is given each record that does not open, which is then passed over. Without it such a
                record raises; asking for the next then goes on behind it.
            keys: the key service, or a keyring that is already connected.
        Raises:
            ConfigError: a setting is wrong. Servers are reached when the context is entered.
        """
        settings = _Settings(
            kafka or KafkaSettings.load(),
            cls.topic_of(topics or TopicSettings.load()),
            registry or RegistrySettings.load(),
            keys or KeyServiceSettings.load(),
        )
        return cls(settings, purpose=purpose, group=group, start=start, follow=follow, on_bad=on_bad)

    async def __aenter__(self) -> Self:
        settings = self._settings
        partitions = await partitions_of(settings.topic, settings.kafka)
        keys = settings.keys
        if isinstance(keys, KeyServiceSettings):
            keys = self._own_keyring = await Keyring.connect(keys)
        self._opener = RecordOpener(self.schema, keys, self._registry, purpose=self._purpose)
        consumer = AIOKafkaConsumer(
            **client_options(settings.kafka),
            group_id=self._group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            # Where a place has been deleted by retention: what is still there is read, nothing is skipped.
            auto_offset_reset="earliest",
        )
        try:
            await connect(consumer, settings.kafka)
            self._consumer = consumer
            with one_line(settings.kafka, settings.topic):
                if self._group is None:
                    assigned = [TopicPartition(settings.topic, number) for number in partitions]
                    consumer.assign(assigned)
                    await self._begin_at(assigned)
                else:
                    consumer.subscribe([settings.topic], listener=_Rebalance(self))
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                # Leaving without an error says that the last one was worked off too.
                self._settle()
            await self._commit()
        finally:
            await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record:
        self._settle()
        while self._buffer or await self._fill():
            record = self._buffer.popleft()
            opened = await self._open(record)
            self._taken(record)
            if opened is not None:
                return opened
        raise StopAsyncIteration

    async def batches(self) -> AsyncIterator[list[Record]]:
        """The records a fetch at a time, for throughput; a list is never empty, each partition in order.

        A record that does not open raises after those before it were handed out.
        """
        while True:
            self._settle()
            if not self._buffer and not await self._fill():
                return
            batch: list[Record] = []
            while self._buffer:
                record = self._buffer.popleft()
                try:
                    opened = await self._open(record)
                except (AccessDenied, IntegrityError, BadInput):
                    if not batch:
                        raise
                    # Its turn comes again, and alone.
                    self._buffer.appendleft(record)
                    break
                self._taken(record)
                if opened is not None:
                    batch.append(opened)
            if batch:
                yield batch

    async def find(self, wanted: uuid.UUID) -> Record | None:
        """The next record with this id, or None when reading ends without it; no other is opened.

        Raises:
            As iteration does, for the record that is found.
        """
        while self._buffer or await self._fill():
            record = self._buffer.popleft()
            self._taken(record)
            headers = [value for name, value in record.headers if name == HEADER_NAME]
            if len(headers) == 1 and headers[0] is not None and headers[0][-RECORD_ID_BYTES:] == wanted.bytes:
                return await self._open(record)
        return None

    def follow(self) -> None:
        """From now on waits for decisions to come, where `connect(follow=False)` would have ended."""
        self._follow = True

    async def _open(self, record: ConsumerRecord) -> Record | None:
        """The record; None for a bad one that `on_bad` took."""
        raw = Position(record.topic, record.partition, record.offset)
        try:
            return await self._verified(record, raw)
        except (AccessDenied, IntegrityError, BadInput) as error:
            if self._on_bad is None:
                raise
            answer = self._on_bad(BadRecord(raw, error))
            if inspect.isawaitable(answer):
                await answer
            return None
        except BaseException:
            # Cancelled, or the key service is away: the record's turn comes again.
            self._buffer.appendleft(record)
            raise

    async def _verified(self, record: ConsumerRecord, raw: Position) -> Record:
        assert self._opener is not None
        return self._typed(await self._opener.open(record.topic, record.value, record.headers), raw)

    async def _fill(self) -> bool:
        """Fetches more into the buffer; False when there is no more to come."""
        consumer, settings = self._started(), self._settings
        with one_line(settings.kafka, settings.topic):
            while not self._buffer:
                await self._commit()
                if not self._follow and await self._at_end(consumer):
                    return False
                fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_BATCH_RECORDS_MAX)
                for records in fetched.values():
                    self._buffer.extend(records)
        return True

    async def _at_end(self, consumer: AIOKafkaConsumer) -> bool:
        assigned = consumer.assignment()
        fresh = [partition for partition in assigned if partition not in self._ends]
        if fresh:
            # With read_committed this is the last stable offset: an open transaction is not waited for.
            self._ends |= await consumer.end_offsets(fresh)
        return bool(assigned) and all(
            [await consumer.position(partition) >= self._ends[partition] for partition in assigned]
        )

    async def _begin_at(self, partitions: Iterable[TopicPartition]) -> None:
        """Seeks each partition to where `start` says."""
        consumer, start, wanted = self._started(), self._start, list(partitions)
        first = await consumer.beginning_offsets(wanted)
        end = await consumer.end_offsets(wanted)
        found: dict[TopicPartition, Any] = {}
        if isinstance(start, datetime):
            found = await consumer.offsets_for_times(dict.fromkeys(wanted, to_ms(start)))
        for partition in wanted:
            if isinstance(start, datetime):
                at = found.get(partition)
                offset = at.offset if at is not None else end[partition]
            elif isinstance(start, Last):
                offset = max(first[partition], end[partition] - start.count)
            else:
                offset = (first if start == "beginning" else end)[partition]
            consumer.seek(partition, offset)

    def _taken(self, record: ConsumerRecord) -> None:
        self._given[TopicPartition(record.topic, record.partition)] = record.offset + 1

    def _settle(self) -> None:
        """The caller came back: what it was given is done."""
        self._done |= self._given
        self._given.clear()

    async def _commit(self) -> None:
        consumer = self._consumer
        if self._group is None or consumer is None or not self._done:
            return
        assigned = consumer.assignment()
        offsets = {partition: offset for partition, offset in self._done.items() if partition in assigned}
        self._done.clear()
        try:
            if offsets:
                await consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError):
            # The partition went to another member, which reads these again: at least once, as declared.
            return

    def _forget(self, revoked: Iterable[TopicPartition]) -> None:
        gone = set(revoked)
        kept = [
            record for record in self._buffer if TopicPartition(record.topic, record.partition) not in gone
        ]
        self._buffer = deque(kept)
        for partition in gone:
            self._ends.pop(partition, None)

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)
        await self._registry.close()
        if self._own_keyring is not None:
            await self._own_keyring.close()

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("use the reader inside `async with ....connect(...) as records:`")
        return self._consumer


class _Rebalance(ConsumerRebalanceListener):  # type: ignore[misc]
    """Commits and forgets what moves away; finds the beginning of what comes without a committed place."""

    def __init__(self, reader: SealedReader[Any]) -> None:
        self._reader = reader

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._reader._commit()
        self._reader._forget(revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        consumer = self._reader._started()
        fresh = [partition for partition in assigned if await consumer.committed(partition) is None]
        if fresh:
            await self._reader._begin_at(fresh)
