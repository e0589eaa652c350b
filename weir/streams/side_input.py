"""A topic that every worker follows in whole, outside the group: pulled into the state between two batches.

The state says from where; what was fetched waits here, bounded, until the state takes it. After a roll back
the state's positions are older than what was taken: `rewind` reads them again.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from weir.client.connection import as_weir, one_line, stop
from weir.config import KafkaSettings
from weir.errors import WeirError
from weir.obs.log import get_logger
from weir.streams.batch import RecordBatch
from weir.streams.history import open_consumer, partitions

log = get_logger("weir.streams.side_input")

_POLL_MS = 200
# How long the broker gathers what comes before it answers: an answer costs as much as many records.
_LINGER_MS = 100
# So much is worth an answer before the linger has passed.
_GATHERED_BYTES = 65_536
_RETRY_S = 0.5


class SideInput:
    """Follows all partitions of `topic`, committed records only.

    Args:
        since_ms: where to begin in a partition of which nothing is known, ms since the epoch; 0 is its start.
        rows_waiting_max: beyond it nothing more is fetched until the state has taken some.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        client_id: str,
        *,
        since_ms: int = 0,
        rows_waiting_max: int = 20_000,
    ) -> None:
        self._settings, self.topic, self._client_id = settings, topic, client_id
        self._since_ms, self._rows_max = since_ms, rows_waiting_max
        self._waiting: deque[RecordBatch] = deque()
        self._rows = 0
        self._fetched: dict[int, int] = {}
        self._wanted: dict[int, int] | None = None
        self._changed = asyncio.Condition()
        self._ends: dict[int, int] = {}
        self._arrivals = asyncio.Event()

    def rewind(self, positions: Mapping[int, int]) -> None:
        """Forget what waits and read on from these offsets; a partition without one begins at `since_ms`."""
        self._waiting.clear()
        self._rows = 0
        self._wanted = dict(positions)
        self._fetched = {}
        self._arrivals.set()

    def take(self) -> tuple[list[RecordBatch], dict[int, int]]:
        """What has come since the last call, each partition in order, and the positions after it."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._rows = 0
        self._arrivals.set()
        return taken, dict(self._fetched)

    @property
    def waiting(self) -> Sequence[RecordBatch]:
        """What `take` would bring."""
        return self._waiting

    @property
    def has_some(self) -> bool:
        """Whether `take` would bring something."""
        return bool(self._waiting)

    async def reach(self, floor: Mapping[int, int]) -> None:
        """Return when everything before these offsets has been taken, or waits to be taken."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: all(self._fetched.get(number, 0) >= offset for number, offset in floor.items())
            )

    async def follow(self) -> None:
        """Fetch until cancelled; begins with the first `rewind`.

        Raises:
            WeirError: what waiting does not mend.
        """
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError) as error:
                said = as_weir(error, self._settings, self.topic)
                if not said.retriable:
                    raise said from error
                await self._again(said)
            except WeirError as said:
                if not said.retriable:
                    raise
                await self._again(said)

    async def _again(self, said: WeirError) -> None:
        log.warning("side_input_again", topic=self.topic, error=str(said))
        if self._wanted is None:
            # Go on behind what was fetched: it is here, or in the state.
            self._wanted = dict(self._fetched)
        await asyncio.sleep(_RETRY_S)

    async def _follow(self) -> None:
        consumer = await open_consumer(
            self._settings,
            self._client_id,
            fetch_min_bytes=_GATHERED_BYTES,
            fetch_max_wait_ms=_LINGER_MS,
        )
        try:
            with one_line(self._settings, self.topic):
                tps = await partitions(consumer, self.topic)
                consumer.assign(tps)
            while True:
                if self._wanted is not None:
                    wanted, self._wanted = self._wanted, None
                    await self._seek(consumer, tps, wanted)
                    await self._note_positions(consumer, tps)
                if self._rows >= self._rows_max or not self._fetched:
                    self._arrivals.clear()
                    await self._arrivals.wait()
                    continue
                fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=self._rows_max)
                await self._note_positions(consumer, tps, fetched)
        finally:
            await stop(consumer)

    async def _seek(
        self, consumer: AIOKafkaConsumer, tps: list[TopicPartition], wanted: Mapping[int, int]
    ) -> None:
        unknown = [tp for tp in tps if tp.partition not in wanted]
        starts = await consumer.offsets_for_times(dict.fromkeys(unknown, self._since_ms)) if unknown else {}
        ends = await consumer.end_offsets(unknown) if unknown else {}
        for tp in tps:
            if tp.partition in wanted:
                consumer.seek(tp, wanted[tp.partition])
            else:
                start = starts.get(tp)
                consumer.seek(tp, start.offset if start is not None else ends[tp])

    async def _note_positions(
        self,
        consumer: AIOKafkaConsumer,
        tps: list[TopicPartition],
        fetched: Mapping[TopicPartition, list[Any]] = {},
    ) -> None:
        # A position passes the markers of transactions, which are never handed out.
        positions = {tp.partition: await consumer.position(tp) for tp in tps}
        if self._rewound:
            return
        for tp, records in fetched.items():
            if records:
                self._waiting.append(RecordBatch(tp.topic, tp.partition, records))
                self._rows += len(records)
        self._fetched = positions
        async with self._changed:
            self._changed.notify_all()

    @property
    def _rewound(self) -> bool:
        return self._wanted is not None
