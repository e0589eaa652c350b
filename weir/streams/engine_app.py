"""A Faust application whose batches an engine drives: what every stream processing service is built on."""

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from faust.types import TP

from weir.config import KafkaSettings
from weir.errors import WeirError
from weir.obs.log import get_logger
from weir.streams.app import BatchApp
from weir.streams.engine import Engine, Phase
from weir.streams.source import BatchSource

log = get_logger("weir.streams.app")

EXACTLY_ONCE, AT_LEAST_ONCE = "exactly_once", "at_least_once"


class EngineApp(BatchApp):
    """Hands the batches of one topic, and what becomes of its partitions, to an engine.

    Args:
        id: the consumer group.
        topic: of the batches.
        guarantee: `EXACTLY_ONCE`: offsets are committed by transactions; `AT_LEAST_ONCE`: by the consumer.
    """

    def __init__(self, id: str, topic: str, *, kafka: KafkaSettings, guarantee: str, **options: Any) -> None:
        self.source = BatchSource(self)
        self.guarantee = guarantee
        self._engine: Engine | None = None
        self._aside: list[asyncio.Task[None]] = []
        super().__init__(id, kafka=kafka, commits_offsets=guarantee == AT_LEAST_ONCE, **options)
        self.agent(self.batch_topic(topic), name=f"{id}-batches")(self._hand_over)

    def give_up(self, error: BaseException) -> None:
        """Say what ended the worker, and end it."""
        if self.fatal is None:
            log.error("worker_failed", error=str(error) if isinstance(error, WeirError) else repr(error))
        super().give_up(error)

    def standing(self, doing: str) -> dict[str, Any]:
        """What `/healthz` says of any worker; a worker beyond the number of partitions is ready all the same.

        Args:
            doing: what the service does while all is well.
        """
        if self._engine is None:
            return {"ready": False, "state": "opening"}
        joined = self._assignment is not None
        restoring = sorted(partition for _, partition in self._engine.restoring)
        states = {Phase.CLOSED: "opening", Phase.ABORTING: "rolling back", Phase.STOPPED: "stopped"}
        state = states.get(self._engine.phase, doing)
        return {
            "ready": joined and not restoring,
            "state": "restoring" if restoring else state if joined else "joining",
            "partitions": sorted(partition for _, partition in self._engine.ready),
            "restoring": restoring,
        }

    async def open_engine(self) -> Engine:
        """Override: open the service's parts; the engine is started afterwards."""
        raise NotImplementedError

    async def close_parts(self) -> None:
        """Override: close what `open_engine` opened; the engine is shut down by then."""

    @property
    def engine(self) -> Engine:
        """Once the app has started."""
        if self._engine is None:
            raise RuntimeError("the worker was not started")
        return self._engine

    async def open(self) -> None:
        """Open the parts, then start the engine; the group is joined afterwards."""
        self._engine = await self.open_engine()
        await self._engine.start()

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run until the app stops; an error ends the worker."""
        task = asyncio.create_task(work)
        task.add_done_callback(self._beside_ended)
        self._aside.append(task)

    def _beside_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.give_up(error)

    async def _hand_over(self, stream: Any) -> None:
        try:
            async for taken in self.batches(stream):
                await self.engine.put(taken)
        except Exception as error:  # noqa: BLE001 - Faust would start the agent again and say nothing
            self.give_up(error)

    async def assigned(self, new: set[TP], kept: set[TP]) -> None:
        """Bring the new partitions' state here, beside the deciding."""
        await self.engine.assigned(_places(new | kept))

    async def revoked(self, lost: set[TP]) -> None:
        """Commit what was read of `lost`; it is another's when this returns."""
        await self.engine.revoked(_places(lost))
        if self.guarantee == AT_LEAST_ONCE:
            await cast(Any, self.consumer).commit(lost)

    async def evicted(self, lost: set[TP]) -> None:
        """Roll back what was read of `lost`."""
        await self.engine.evicted(_places(lost))

    async def drain(self) -> None:
        """The consumer is about to stop: commit what is in flight while this worker is still a member."""
        if self._engine is not None:
            await self._engine.shutdown()

    async def on_stop(self) -> None:
        """Hand the partitions over or finish them, leave the group, then close the parts."""
        await super().on_stop()
        await self.drain()
        for task in self._aside:
            task.cancel()
        if self._aside:
            await asyncio.wait(self._aside)
        await self.close_parts()


def _places(tps: set[TP]) -> list[tuple[str, int]]:
    return [(tp.topic, tp.partition) for tp in tps]
