"""Bringing a partition's conversations to a worker: the newest row of each, from their compacted topic.

Rows and the group's offsets commit together, so what is read here is the state as of the group's offset.
"""

import time
from collections.abc import Mapping
from typing import Protocol

from services.chat.conversation import Conversation, decode
from weir.client.opening import envelope_of
from weir.config import KafkaSettings
from weir.crypto.customer import CustomerKeys
from weir.errors import IntegrityError
from weir.obs.log import get_logger
from weir.obs.stream_metrics import StreamMetrics
from weir.streams.batch import RecordBatch
from weir.streams.history import end_offsets, read_range

log = get_logger("weir.chat.restore")

PURPOSE = "state"


class Keys(Protocol):
    """`weir.crypto.keyring.Keyring`."""

    async def open(self, value: bytes, topic: str, envelope_header: bytes, *, purpose: str) -> bytes:
        """The plaintext of a sealed row."""


class Restoring:
    """Restores partitions of one worker."""

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        keys: Keys,
        customers: CustomerKeys,
        *,
        client_id: str,
        metrics: StreamMetrics,
    ) -> None:
        self._kafka, self._topic, self._keys, self._customers = kafka, topic, keys, customers
        self._client_id, self._metrics = f"{client_id}-restore", metrics

    async def __call__(self, partition: int) -> Mapping[bytes, Conversation]:
        """The conversations by their key.

        A row that does not open is said, counted and left out: its conversation begins anew.
        """
        begun_s = time.monotonic()
        # Up to what was written last: a commit is answered before its markers stand in the topic.
        ends = await end_offsets(self._kafka, self._topic, self._client_id, undecided=True)
        rows: dict[bytes, Conversation] = {}
        async for batch in read_range(
            self._kafka, self._topic, {}, {partition: ends[partition]}, self._client_id
        ):
            for row in range(len(batch)):
                await self._take_in(rows, batch, row)
        duration_s = time.monotonic() - begun_s
        self._metrics.restored("changelog", len(rows), duration_s)
        log.info(
            "partition_restored",
            partition=partition,
            conversations=len(rows),
            duration_s=round(duration_s, 3),
        )
        return rows

    async def _take_in(self, rows: dict[bytes, Conversation], batch: RecordBatch, row: int) -> None:
        key, value = batch.keys[row], batch.values[row]
        if key is None:
            return
        if value is None:
            rows.pop(key, None)
            return
        where = f"{batch.topic} {batch.partition} at {batch.offsets[row]}"
        try:
            header = envelope_of(batch.headers[row] if batch.headers is not None else ())
            opened = await self._keys.open(value, batch.topic, header, purpose=PURPOSE)
            rows[key] = decode(opened, key, self._customers, where)
        except IntegrityError as error:
            rows.pop(key, None)
            self._metrics.damaged("changelog")
            log.error("conversation_damaged", error=str(error))
