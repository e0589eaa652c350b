"""Following a compacted changelog for partitions that another worker owns, so that taking one over is short.

    follow ──▶ FOLLOWING ──promote──▶ reads up to the log's end of that moment ──▶ no longer followed: ours

A partition is promoted after the group gave it to us and its last owner's transactions are decided. It is
read up to the end of all records, not of the decided ones: a commit is answered before its markers are
written, and what they decide belongs to the state.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.protocol.offset import OffsetRequest

from weir.client.connection import one_line, stop
from weir.config import KafkaSettings
from weir.errors import IntegrityError, WeirError
from weir.obs.log import get_logger
from weir.streams.history import open_consumer, partitions

log = get_logger("weir.streams.standby")

Apply = Callable[[int, Sequence[bytes | None], Sequence[bytes | None]], None]

# Rows handed over at once: the loop has to decide meanwhile.
_ROWS_MAX = 2000
_POLL_MS = 200
# The broker holds a fetch that finds nothing this long; a new set of partitions waits behind it.
_FETCH_WAIT_MS = 50
_RETRY_S = 0.5
_READ_UNCOMMITTED, _LATEST = 0, -1


class ChangelogTooShort(IntegrityError):
    """The changelog ends before the offset that the state was read up to: it is another log."""

    def __init__(self, topic: str, partition: int, offset: int, end: int) -> None:
        self.topic, self.partition, self.offset, self.end = topic, partition, offset, end
        super().__init__(
            f"Changelog {topic} partition {partition} ends at {end}, the state was read up to {offset}: "
            "the topic was made anew. Delete the worker's snapshots; it restores from the changelog."
        )


class NotFollowed(Exception):
    """The partition is followed no longer."""


@dataclass(frozen=True, slots=True)
class Caught:
    """How far a partition was read, and what that took.

    next_offset: of the changelog, the first that was not read.
    rows: handed to `apply` since the promotion was asked for.
    """

    next_offset: int
    rows: int


async def _open(settings: KafkaSettings, topic: str, client_id: str) -> AIOKafkaConsumer:
    consumer = await open_consumer(settings, client_id, fetch_max_wait_ms=_FETCH_WAIT_MS)
    try:
        with one_line(settings, topic):
            await partitions(consumer, topic)
    except WeirError:
        await stop(consumer)
        raise
    return consumer


async def _end(consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
    """The offset after the last record, be its transaction decided or not."""
    request = OffsetRequest(-1, _READ_UNCOMMITTED, [(tp.topic, [(tp.partition, _LATEST)])])
    client = consumer._client
    while True:
        leader = client.cluster.leader_for_partition(tp)
        if leader not in (None, -1):
            answer = await client.send(leader, request)
            ((_, ((_, code, _, offset),)),) = answer.topics
            if not code:
                return int(offset)
        # No leader, or no longer: an election takes a moment.
        await client.force_metadata_update()
        await asyncio.sleep(_RETRY_S)


@dataclass(slots=True)
class _Promotion:
    end: int
    done: "asyncio.Future[Caught]"
    rows: int = 0

    def give_up(self) -> None:
        if not self.done.done():
            self.done.set_exception(NotFollowed())


@dataclass
class StandbyFollower:
    """Reads some partitions of one changelog, and hands what it read to `apply`, in order.

    Args:
        apply: called with partition, keys and values (None: deleted); must not raise.
        on_failure: called once with the error that ended the following; a lost broker is none.
        on_refused: called when a partition is followed no longer, for it is another log by now.
    """

    settings: KafkaSettings
    topic: str
    apply: Apply
    client_id: str
    on_failure: Callable[[BaseException], None]
    on_refused: Callable[[int, IntegrityError], None]
    _positions: dict[int, int] = field(default_factory=dict)
    _promotions: dict[int, _Promotion] = field(default_factory=dict)
    _consumer: AIOKafkaConsumer | None = None
    _task: "asyncio.Task[None] | None" = None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Connect; nothing is read before `follow`.

        Raises:
            TopicMissing, NeighbourUnavailable, AccessDenied: no broker takes this client, or has the topic.
        """
        self._consumer = await _open(self.settings, self.topic, self.client_id)
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Disconnect; what is being promoted is followed no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for promotion in self._promotions.values():
            promotion.give_up()
        if self._consumer is not None:
            await stop(self._consumer)
            self._consumer = None

    @property
    def positions(self) -> Mapping[int, int]:
        """For each followed partition the changelog's next offset."""
        return dict(self._positions)

    def lag(self, partition: int) -> int | None:
        """Records until the last decided one, as of the last answer; None before it, or if unfollowed."""
        if self._consumer is None or partition not in self._positions:
            return None
        tp = TopicPartition(self.topic, partition)
        if tp not in self._consumer.assignment():
            return None
        end = self._consumer.last_stable_offset(tp)
        return None if end is None else max(int(end) - self._positions[partition], 0)

    def follow(self, starts: Mapping[int, int]) -> None:
        """Follow exactly these; one that is followed goes on where it is, another begins at its offset."""
        self._positions = {partition: self._positions.get(partition, at) for partition, at in starts.items()}
        for partition in self._promotions.keys() - starts.keys():
            self._promotions.pop(partition).give_up()
        self._changed.set()

    async def promote(self, partition: int) -> Caught:
        """Read up to the log's end of now, and follow the partition no longer.

        Raises:
            ChangelogTooShort: the state is of another log.
            NotFollowed: the partition is followed no longer, or was not.
        """
        if (at := self._positions.get(partition)) is None:
            raise NotFollowed
        assert self._consumer is not None
        with one_line(self.settings, self.topic):
            end = await _end(self._consumer, TopicPartition(self.topic, partition))
        if end < at:
            raise ChangelogTooShort(self.topic, partition, at, end)
        if partition not in self._positions:
            raise NotFollowed
        promotion = _Promotion(end, asyncio.get_running_loop().create_future())
        self._promotions[partition] = promotion
        self._note(partition, self._positions[partition], 0)
        self._changed.set()
        try:
            return await promotion.done
        finally:
            # Of a caller that was cancelled, too: nobody waits for it any more.
            if self._promotions.get(partition) is promotion:
                del self._promotions[partition]
                self._changed.set()

    def _note(self, partition: int, position: int, rows: int) -> None:
        if partition not in self._positions:
            return
        self._positions[partition] = position
        if (promotion := self._promotions.get(partition)) is not None:
            promotion.rows += rows
            if position >= promotion.end:
                del self._promotions[partition], self._positions[partition]
                promotion.done.set_result(Caught(position, promotion.rows))
                self._changed.set()

    async def _run(self) -> None:
        while True:
            try:
                with one_line(self.settings, self.topic):
                    await self._read_on()
            except WeirError as error:
                if not error.retriable:
                    raise
                log.warning("changelog_asked_again", topic=self.topic, error=str(error))
                await asyncio.sleep(_RETRY_S)

    async def _read_on(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        while True:
            self._changed.clear()
            # What is promoted is waited for: the rest can wait.
            wanted = sorted(self._promotions or self._positions)
            if not wanted:
                await self._changed.wait()
                continue
            tps = [TopicPartition(self.topic, partition) for partition in wanted]
            consumer.assign(tps)
            for tp in tps:
                consumer.seek(tp, self._positions[tp.partition])
            while not self._changed.is_set():
                await self._read(consumer, tps)

    async def _read(self, consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition]) -> None:
        """One fetch, handed over; then each position, which also passes aborted records and markers."""
        fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_ROWS_MAX)
        positions = {tp: await consumer.position(tp) for tp in tps}
        if self._changed.is_set():
            # A partition may have begun anew elsewhere meanwhile, which this fetch knows nothing of. Each is
            # sought where it stands, so what is passed over here is read again.
            return
        for tp, position in positions.items():
            partition, records = tp.partition, fetched.get(tp, ())
            at, first = self._positions[partition], records[0].offset if records else position
            if first < at:
                # The client has begun again at the oldest record, because the log ends before ours did.
                end = consumer.highwater(tp)
                self._refuse(
                    partition,
                    ChangelogTooShort(self.topic, partition, at, first if end is None else int(end)),
                )
                continue
            self.apply(partition, [record.key for record in records], [record.value for record in records])
            self._note(partition, position, len(records))
        # A long tail must not hold the loop.
        await asyncio.sleep(0)

    def _refuse(self, partition: int, error: ChangelogTooShort) -> None:
        del self._positions[partition]
        self._changed.set()
        if (promotion := self._promotions.pop(partition, None)) is not None:
            promotion.done.set_exception(error)
        self.on_refused(partition, error)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            for promotion in self._promotions.values():
                promotion.done.set_exception(error)
            self._promotions.clear()
            self.on_failure(error)
