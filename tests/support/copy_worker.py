"""A worker that copies a batch topic, partition by partition; run as a process by the stream tests.

python -m tests.support.copy_worker SERVERS GROUP SOURCE TARGET [DELAY_MS] [SEEK_BACK_AT] [GUARANTEE]

DELAY_MS: how long each group takes. SEEK_BACK_AT: once this offset is read, its partition is sought to its
beginning, once; -1 never. GUARANTEE: at_least_once (the default) or exactly_once.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from faust.types import TP

from weir.config import KafkaSettings, LogSettings
from weir.kafka.idempotent import IdempotentProducer
from weir.kafka.producer import TransactionalProducer
from weir.kafka.records import AnyOutput
from weir.obs.log import configure
from weir.streams import BatchGroup, Output
from weir.streams.at_least_once import AtLeastOnce
from weir.streams.engine import Engine
from weir.streams.engine_app import AT_LEAST_ONCE, EXACTLY_ONCE, EngineApp
from weir.streams.exactly_once import ExactlyOnce
from weir.streams.ports import Delivery, Place
from weir.streams.transactions import GroupOffsets, ProducerLane, transactional_ids
from weir.streams.worker import run_worker


class Copying:
    """`weir.streams.ports.Processor`: the state is how far it has copied."""

    def __init__(self, app: "CopyApp", target: str, delay_s: float, seek_back_at: int | None) -> None:
        self._app, self._target, self._delay_s, self._seek_back_at = app, target, delay_s, seek_back_at
        self._positions: dict[Place, int] = {}
        self._before: list[tuple[int, dict[Place, int]]] = []

    async def prepare(self, group: BatchGroup) -> None:
        for batch in group.batches:
            if self._seek_back_at is not None and batch.offset_last >= self._seek_back_at:
                self._seek_back_at = None
                await self._app.consumer.seek(TP(batch.topic, batch.partition), 0)

    def read(self, epoch: int, group: BatchGroup) -> BatchGroup:
        self._before.append((epoch, dict(self._positions)))
        for batch in group.batches:
            print(f"TAKEN {batch.partition} {batch.offset_first} {len(batch)}", flush=True)
            self._positions[batch.topic, batch.partition] = batch.offset_last + 1
        return group

    def touched(self, read: BatchGroup) -> Mapping[Place, int]:
        return {}

    async def score(self, read: BatchGroup) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)

    async def write(self, group: BatchGroup, read: Any, scored: Any) -> tuple[Sequence[AnyOutput], None]:
        return [
            Output(self._target, each.partition, each.keys, each.values, [[]] * len(each), each.timestamps_ms)
            for each in group.batches
        ], None

    def counted(self, group: BatchGroup, counts: Any, send_s: float) -> None:
        pass  # nothing is counted

    def has_side_inputs(self) -> bool:
        return False

    def roll_back(self, epoch: int) -> None:
        while self._before and self._before[-1][0] >= epoch:
            _, self._positions = self._before.pop()

    def release(self, epoch: int) -> None:
        self._before = [each for each in self._before if each[0] > epoch]

    def position(self, place: Place) -> int:
        return self._positions[place]

    async def restore(self, place: Place, committed: int | None) -> int:
        self._positions[place] = committed or 0
        for _, before in self._before:
            before[place] = committed or 0
        return committed or 0

    def drop(self, place: Place) -> None:
        self._positions.pop(place, None)


class CopyApp(EngineApp):
    def __init__(
        self,
        servers: str,
        group: str,
        source: str,
        target: str,
        delay_ms: str = "0",
        seek_back_at: str = "-1",
        guarantee: str = AT_LEAST_ONCE,
    ) -> None:
        self._kafka, self._group = KafkaSettings(bootstrap_servers=servers), group
        # Every process is another worker; the group knows it by this name too, or it would be thought gone.
        self._name = f"{group}.{os.getpid()}"
        seek_at = int(seek_back_at)
        self._processor = Copying(self, target, float(delay_ms) / 1000, seek_at if seek_at >= 0 else None)
        super().__init__(
            group,
            source,
            kafka=self._kafka,
            guarantee=guarantee,
            broker_client_id=self._name,
            web_enabled=False,
            datadir="/tmp/weir-copy-worker",
            batch_rows_max=500,
            session_timeout_s=6.0,
            commit_interval_s=0.3,
        )

    async def open_engine(self) -> Engine:
        return Engine(
            self.source,
            self._processor,
            self._delivery,
            rows_in_flight_max=500,
            group_rows_max=500,
            linger_s=0.0,
            drain_deadline_s=10.0,
            on_fatal=self.give_up,
        )

    def _delivery(
        self, on_failure: Callable[[BaseException], None], on_committed: Callable[[int], None]
    ) -> Delivery:
        name = self._name
        offsets = GroupOffsets(self._kafka, self._group, name)
        if self.guarantee == EXACTLY_ONCE:
            lanes = [
                ProducerLane(
                    TransactionalProducer(self._kafka, transactional_id=each, client_id=name),
                    self._group,
                    self.source,
                    f"{name}/1",
                )
                for each in transactional_ids(name)
            ]
            return ExactlyOnce(
                lanes,
                committed=offsets,
                rows_max=2000,
                on_failure=on_failure,
                on_committed=on_committed,
            )
        publisher = IdempotentProducer(self._kafka, client_id=name)
        return AtLeastOnce(publisher, committed=offsets, on_failure=on_failure, on_committed=on_committed)


if __name__ == "__main__":
    configure(LogSettings(), service="copy")
    sys.exit(run_worker(CopyApp(*sys.argv[1:])))
