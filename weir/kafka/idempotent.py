"""A producer for at-least-once: each batch arrives once and in order, as long as the producer lives."""

import asyncio
from collections.abc import Sequence

from weir.config import KafkaSettings
from weir.errors import AccessDenied, NeighbourUnavailable
from weir.kafka._codes import Code, name_of
from weir.kafka._sender import ProducerRefused, Queues, Sender, queues_of
from weir.kafka._waiting import Deadline
from weir.kafka.errors import Refused, Unavailable, denied
from weir.kafka.link import Link
from weir.kafka.protocol import Place, init_producer_id
from weir.kafka.record_batch import BATCH_BYTES_MAX, load_loops
from weir.kafka.records import AnyOutput

_NO_TRANSACTION_MS = 10_000  # asked for with an id, and of no use without a transaction


class IdempotentProducer:
    """Publishes without transactions. Several calls may be under way; each partition keeps their order.

    A call that fails takes those along that wait behind it for one of its partitions: nothing overtakes what
    may be published again.

    Args:
        deadline_s: of each call.
        batch_bytes_max: of a record batch; below the smallest max.message.bytes of the topics.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        client_id: str,
        deadline_s: float = 30,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        self._settings, self._deadline_s, self._batch_bytes_max = settings, deadline_s, batch_bytes_max
        self._link = Link(settings, client_id=client_id, deadline_s=deadline_s)
        self._sender = Sender(self._link, None, verified=False)
        # The last call for each partition; true once all of it is acknowledged.
        self._last: dict[Place, asyncio.Future[bool]] = {}
        self._sending = 0
        self._nothing_sent = asyncio.Event()
        self._nothing_sent.set()
        self._number_lost = False
        self._entering = asyncio.Lock()

    async def start(self) -> None:
        """Connect, and take a producer id.

        Raises:
            NeighbourUnavailable, AccessDenied, ConfigError: no broker takes this client.
            BrokerTooOld: a broker before 2.8.
        """
        load_loops()
        await self._link.start()
        try:
            await self._new_id(Deadline(self._deadline_s))
        except (NeighbourUnavailable, AccessDenied, Refused):
            await self._link.stop()
            raise

    async def stop(self) -> None:
        """Let the calls that are under way end, then disconnect."""
        while self._last:
            await asyncio.wait(set(self._last.values()))
        await self._link.stop()

    async def produce(self, outputs: Sequence[AnyOutput]) -> None:
        """Publish, in order for each partition; return when all replicas in sync have all of it.

        Raises:
            Unavailable: not all of it is acknowledged; publish it again.
            TopicMissing, TopicDenied, PartitionMissing, RecordTooLarge: a retry is no use.
        """
        queues = queues_of(outputs, self._batch_bytes_max)
        if not queues:
            return
        deadline, places = Deadline(self._deadline_s), tuple(queues)
        before = {self._last[place] for place in places if place in self._last}
        mine = asyncio.get_running_loop().create_future()
        self._last.update(dict.fromkeys(places, mine))
        done = False
        try:
            if before:
                await asyncio.wait(before)
            if not all(call.result() for call in before):
                raise Unavailable(self._settings, "take records", deadline.waited_s(), "one before it failed")
            await self._produce(queues, deadline)
            done = True
        finally:
            mine.set_result(done)
            for place in places:
                if self._last[place] is mine:
                    del self._last[place]

    async def _produce(self, queues: Queues, deadline: Deadline) -> None:
        await self._enter(deadline)
        done = False
        try:
            await self._sender.send(queues, deadline)
            done = True
        except ProducerRefused as refused:
            if refused.code == Code.CLUSTER_AUTHORIZATION_FAILED:
                raise denied(self._settings, "publish") from refused
            # Its numbers are of no use any more; under a new id they begin again.
            raise Unavailable(
                self._settings, "take records", deadline.waited_s(), name_of(refused.code)
            ) from refused
        finally:
            self._sending -= 1
            if not self._sending:
                self._nothing_sent.set()
            # Whether the last batch has arrived is not known, and so neither is the next one's number.
            self._number_lost |= not done

    async def _enter(self, deadline: Deadline) -> None:
        """Wait for a producer id whose numbers are known; it changes when nothing is on its way."""
        async with self._entering:
            if self._number_lost:
                await self._nothing_sent.wait()
                await self._new_id(deadline)
            self._sending += 1
            self._nothing_sent.clear()

    async def _new_id(self, deadline: Deadline) -> None:
        call = init_producer_id(None, _NO_TRANSACTION_MS)
        answer = await self._link.ask_any(call, "give a producer id", deadline)
        if answer.code == Code.CLUSTER_AUTHORIZATION_FAILED:
            raise denied(self._settings, "publish to any topic")
        if answer.code:
            raise Refused(self._settings, "give a producer id", answer.code)
        self._sender.take(answer.identity)
        self._number_lost = False
