"""Batches to the partitions' leaders: in order, each acknowledged by all replicas in sync, none twice."""

import asyncio
from collections import deque
from collections.abc import Sequence

from weir.errors import WeirError
from weir.kafka import _codes as codes
from weir.kafka._codes import Code, name_of
from weir.kafka._waiting import Backoff, Deadline
from weir.kafka.errors import Unavailable, of_topic
from weir.kafka.link import Link, Lost
from weir.kafka.protocol import Identity, Place, produce
from weir.kafka.record_batch import ProduceBatch, batches_of
from weir.kafka.records import AnyOutput

# Below what a broker takes in one request (socket.request.max.bytes, 100 MiB).
_REQUEST_BYTES_MAX = 16 * 1024 * 1024
# Sequence numbers go on from 0 after this.
_SEQUENCES = 2**31
_ACCEPTED = frozenset({Code.NONE, Code.DUPLICATE_SEQUENCE_NUMBER})

Queues = dict[Place, deque[ProduceBatch]]


class ProducerRefused(Exception):
    """A leader refuses the producer rather than the batch; its caller knows what that means."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(name_of(code))


_OF_PRODUCER = codes.FENCED | {
    Code.OUT_OF_ORDER_SEQUENCE_NUMBER,
    Code.UNKNOWN_PRODUCER_ID,
    Code.INVALID_TXN_STATE,
    Code.TRANSACTION_ABORTABLE,
    Code.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    Code.CLUSTER_AUTHORIZATION_FAILED,
}


def queues_of(outputs: Sequence[AnyOutput], bytes_max: int) -> Queues:
    """Each partition's batches, in the order of the outputs.

    Raises:
        ValueError: a record never fits.
    """
    queues: Queues = {}
    for output in outputs:
        batches = batches_of(output, bytes_max=bytes_max)
        if batches:
            queues.setdefault((output.topic, output.partition), deque()).extend(batches)
    return queues


class Sender:
    """Numbers batches and sends them, under one identity at a time.

    A partition has one batch on its way at most: sent again after a lost answer it has the same number, by
    which the leader knows it.
    """

    def __init__(self, link: Link, transactional_id: str | None, *, verified: bool) -> None:
        self._link, self._transactional_id, self._verified = link, transactional_id, verified
        self._identity = Identity(-1, -1)
        self._sequences: dict[Place, int] = {}

    @property
    def identity(self) -> Identity:
        """Who sends."""
        return self._identity

    def take(self, identity: Identity) -> None:
        """Send as another from here on: every partition's numbers begin at 0."""
        if identity != self._identity:
            self._identity, self._sequences = identity, {}

    async def send(self, queues: Queues, deadline: Deadline) -> None:
        """Return when all is acknowledged; the queues are emptied as it goes.

        One request at a time to each leader, with one batch for each partition.

        Raises:
            ProducerRefused: a leader does not take this producer.
            TopicMissing, TopicDenied, PartitionMissing, RecordTooLarge, Refused: not for this topic.
            Unavailable: not all is acknowledged; what was, and what is on its way, is not known.
        """
        backoff = Backoff()
        homeless = [place for place in queues if self._link.leader(place) is None]
        while queues:
            if homeless:
                await self._link.find_leaders(homeless, deadline)
            rounds = [
                self._ask(node, {place: queues[place][0] for place in places}, deadline)
                for node, places in self._by_leader(queues).items()
            ]
            again: dict[Place, int | None] = {}
            error: Exception | None = None
            for answers in await asyncio.gather(*rounds):
                for place, code in answers.items():
                    if code in _ACCEPTED:
                        self._acknowledged(queues, place)
                    elif code is None or code in codes.RETRIABLE:
                        again[place] = code
                    elif error is None:
                        error = self._error(code, place, queues[place][0])
            if error is not None:
                raise error
            if again and deadline.passed:
                last = next(iter(again.values()))
                raise Unavailable(
                    self._link.settings,
                    "take records",
                    deadline.waited_s(),
                    "no answer" if last is None else name_of(last),
                )
            homeless = [
                place for place, code in again.items() if code is None or code in codes.STALE_LEADER
            ] + [place for place in queues if place not in again and self._link.leader(place) is None]
            if again:
                await backoff.wait(deadline, lost=None in again.values())

    def _by_leader(self, queues: Queues) -> dict[int, list[Place]]:
        """Whom to send which partitions' first batches; what is too much for a request waits for the next."""
        nodes: dict[int, list[Place]] = {}
        room: dict[int, int] = {}
        for place, queue in queues.items():
            node = self._link.leader(place)
            if node is None:
                continue
            left = room.get(node, _REQUEST_BYTES_MAX) - len(queue[0].data)
            if left >= 0 or node not in nodes:
                nodes.setdefault(node, []).append(place)
                room[node] = left
        return nodes

    async def _ask(
        self, node: int, heads: dict[Place, ProduceBatch], deadline: Deadline
    ) -> dict[Place, int | None]:
        """Each partition's code; None where the answer was lost."""
        identity = self._identity
        for place, batch in heads.items():
            batch.stamp(
                identity.producer_id,
                identity.epoch,
                self._sequences.get(place, 0),
                transactional=self._transactional_id is not None,
            )
        call = produce(
            self._transactional_id,
            self._link.request_timeout_ms,
            {place: batch.data for place, batch in heads.items()},
            verified=self._verified,
        )
        try:
            answer = await self._link.ask(node, call, deadline)
        except Lost:
            return dict.fromkeys(heads)
        return {place: answer.by_place.get(place) for place in heads}

    def _acknowledged(self, queues: Queues, place: Place) -> None:
        queue = queues[place]
        sequence = self._sequences.get(place, 0) + queue.popleft().record_count
        self._sequences[place] = sequence % _SEQUENCES
        if not queue:
            del queues[place]

    def _error(self, code: int, place: Place, batch: ProduceBatch) -> WeirError | ProducerRefused:
        if code in _OF_PRODUCER:
            return ProducerRefused(code)
        return of_topic(code, self._link.settings, place[0], len(batch.data))
