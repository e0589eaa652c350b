"""The risk service as a Faust application: payments in, decisions out. Alone knows Faust."""

import asyncio
import gc
from contextlib import AsyncExitStack
from typing import Any

from faust.types import TP

from services.risk.settings import RiskSettings
from services.risk.wiring import (
    CLIENT_ID,
    Connections,
    Worker,
    every,
    now_ms,
    open_worker,
    schemas_at_hand,
)
from weir.errors import WeirError
from weir.obs.http import serve
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.streams import BatchApp, Gatherer, RecordBatch
from weir.streams.history import Broadcast, read_until

log = get_logger("weir.risk.app")

_DAY_MS = 86_400_000
_POLICY_CHECK_S = 1.0
# Without labels the risk windows are empty, not wrong: after this the worker decides without waiting on.
_LABELS_DEADLINE_S = 60.0


class RiskApp(BatchApp):
    """A worker of the group `[risk] group`; opens its parts before it joins the group."""

    def __init__(self, settings: RiskSettings, to: Connections) -> None:
        self.settings, self.to = settings, to
        self.metrics = Metrics("risk")
        self._parts = AsyncExitStack()
        self._opened: Worker | None = None
        # Partition to the offset after the last payment that entered the windows.
        self._in_windows: dict[int, int] = {}
        self._labels = Broadcast(
            to.kafka, to.topics.labels, now_ms() - settings.restore_days * 2 * _DAY_MS, f"{CLIENT_ID}-labels"
        )
        self._gatherer = Gatherer(settings.batch_rows_max, settings.gather_ms / 1000)
        self._aside: list[asyncio.Task[None]] = []
        super().__init__(
            settings.group,
            kafka=to.kafka,
            batch_rows_max=settings.batch_rows_max,
            drain_deadline_s=settings.drain_deadline_s,
            commit_interval_s=settings.commit_interval_s,
            session_timeout_s=settings.session_timeout_s,
            datadir=str(settings.data_dir),
            web_enabled=settings.web_port is not None,
            web_port=settings.web_port or 6066,
            web_bind=settings.metrics_host,
        )
        self.agent(self.batch_topic(to.topics.transactions), name="risk")(self._decide)

    @property
    def worker(self) -> Worker:
        """The opened parts."""
        if self._opened is None:
            raise RuntimeError("the risk worker was not started")
        return self._opened

    async def open(self) -> None:
        """Open every part and learn the labels so far."""
        settings = self.settings
        await self._parts.enter_async_context(
            await serve(settings.metrics_host, settings.metrics_port, self._health)
        )
        self._opened = await self._parts.enter_async_context(
            open_worker(settings, self.to, self.metrics, self._give_up)
        )
        self._start_aside(self._follow_labels())
        try:
            await asyncio.wait_for(self._labels.caught_up.wait(), _LABELS_DEADLINE_S)
        except TimeoutError:
            log.warning("labels_not_caught_up", waited_s=_LABELS_DEADLINE_S)
        self._start_aside(self._submit_groups())
        self._start_aside(every(_POLICY_CHECK_S, self.worker.policy.reload_if_changed))
        # What was loaded so far stays: the collector need not walk it again in the middle of a batch.
        gc.collect()
        gc.freeze()
        log.info("risk_worker_opened", group=settings.group, model=self.worker.model.model)

    def _start_aside(self, work: Any) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(self._aside_ended)
        self._aside.append(task)

    def _aside_ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(error)

    async def _follow_labels(self) -> None:
        async for batch in self._labels.batches():
            await schemas_at_hand(self.worker.registry, batch.values)
            self.worker.labels(batch.values)

    async def _decide(self, stream: Any) -> None:
        try:
            async for taken in self.batches(stream):
                await self._gatherer.put(taken)
        except Exception as error:  # noqa: BLE001 - Faust would start the agent again and say nothing
            self._give_up(error)

    async def _submit_groups(self) -> None:
        while True:
            group = await self._gatherer.take()
            for taken in group:
                await self._restore(taken.batch)
                # Before the next of the group: it may be of the same partition, and this one is no gap.
                self._in_windows[taken.batch.partition] = taken.batch.offset_last + 1
            await self.worker.pipeline.submit(group)

    async def _restore(self, batch: RecordBatch) -> None:
        """Let what came before the batch enter the windows, when this worker did not see it itself."""
        seen = self._in_windows.get(batch.partition)
        if batch.offset_first == 0 or self.settings.restore_days == 0:
            return
        if seen is not None and seen >= batch.offset_first:
            return
        since_ms = now_ms() - self.settings.restore_days * _DAY_MS
        count = 0
        ends = {batch.partition: batch.offset_first}
        async for past in read_until(self.to.kafka, batch.topic, ends, since_ms, f"{CLIENT_ID}-restore"):
            fresh = [
                value
                for offset, value in zip(past.offsets, past.values, strict=True)
                if seen is None or offset >= seen
            ]
            count += self.worker.reading.absorb(fresh, now_ms()) if fresh else 0
        log.info("windows_restored", partition=batch.partition, row_count=count)

    def _give_up(self, error: BaseException) -> None:
        if self.fatal is None:
            log.error("risk_worker_failed", error=str(error) if isinstance(error, WeirError) else repr(error))
        self.give_up(error)

    async def _health(self) -> dict[str, Any]:
        if self._opened is None:
            return {"ready": False, "state": "opening"}
        # A worker beyond the number of partitions has none, and is ready all the same.
        joined = self._assignment is not None
        return {
            "ready": joined and not self.rebalancing,
            "state": "rebalancing" if self.rebalancing else "deciding" if joined else "joining",
            "partitions": sorted(tp.partition for tp in self._assigned()),
            "model_ready": await self.worker.model.ready(),
            "policy": self.worker.policy.policy.version,
            "accounts": self.worker.state.account_count,
            "terminals": self.worker.state.terminal_count,
            "groups_in_flight": self.worker.pipeline.in_flight,
        }

    def _assigned(self) -> set[TP]:
        return {tp for tp in (self._assignment or set()) if tp.topic == self.to.topics.transactions}

    async def on_stop(self) -> None:
        """Finish what is in flight, leave the group, then close the parts."""
        await super().on_stop()
        for task in self._aside:
            task.cancel()
        if self._aside:
            await asyncio.wait(self._aside)
        await self._parts.aclose()


def create_app() -> RiskApp:
    """The application from the settings in force.

    Raises:
        ConfigError: what is wrong, and where.
    """
    return RiskApp(RiskSettings.load(), Connections.load())
