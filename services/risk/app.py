"""The risk service as a Faust application: payments in, decisions out. Alone knows Faust."""

import gc
from collections.abc import Collection
from contextlib import AsyncExitStack
from typing import Any, cast

from faust.types import TP

from services.risk.settings import RiskSettings
from services.risk.wiring import Worker, open_worker
from weir.obs.http import serve
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.streams.assignor import Warmth
from weir.streams.engine import Engine
from weir.streams.engine_app import EngineApp
from weir.streams.neighbours import Connections, Identity, every
from weir.streams.ports import Place

log = get_logger("weir.risk.app")

_POLICY_CHECK_S = 1.0
_STAGES_CHECK_S = 1.0
_GC_THRESHOLDS = (50_000, 20, 50)


class RiskApp(EngineApp):
    """A worker of the group `[risk] group`; opens its parts before it joins the group."""

    def __init__(self, settings: RiskSettings, to: Connections) -> None:
        self.settings, self.to = settings, to
        self.metrics = Metrics("risk")
        self.identity = Identity.of(settings.group, settings.data_dir)
        self._parts = AsyncExitStack()
        self._opened: Worker | None = None
        super().__init__(
            settings.group,
            to.topics.transactions,
            kafka=to.kafka,
            guarantee=settings.processing_guarantee,
            batch_rows_max=settings.batch_rows_max,
            drain_deadline_s=settings.drain_deadline_s,
            commit_interval_s=settings.commit_interval_s,
            session_timeout_s=settings.session_timeout_s,
            standby_replicas=settings.standby_replicas,
            standby_lag_max=settings.standby_lag_max,
            broker_client_id=self.identity.name,
            datadir=str(settings.data_dir),
            web_enabled=settings.web_port is not None,
            web_port=settings.web_port or 6066,
            web_bind=settings.metrics_host,
        )

    async def open_engine(self) -> Engine:
        """Open every part; the partitions' state comes with the partitions."""
        settings = self.settings
        await self._parts.enter_async_context(
            await serve(settings.metrics_host, settings.metrics_port, self._health)
        )
        self._opened = worker = await self._parts.enter_async_context(
            open_worker(settings, self.to, self.identity, self.metrics, self.source, self.give_up)
        )
        for follower in worker.followers:
            self.beside(follower.follow())
        self.beside(every(_POLICY_CHECK_S, worker.policy.reload_if_changed))
        self.beside(every(_STAGES_CHECK_S, worker.champion.look))
        self.beside(every(_STAGES_CHECK_S, worker.canary.look))
        self.beside(every(_STAGES_CHECK_S, worker.shadow.look))
        self.beside(worker.shadow.run())
        self.beside(worker.keep_snapshots())
        if worker.standbys is not None:
            self.beside(worker.standbys.run())
        # What was loaded so far stays: the collector need not walk it again in the middle of a batch.
        gc.collect()
        gc.freeze()
        # A batch makes thousands of objects and no cycle: the default looks for cycles several times a batch.
        gc.set_threshold(*_GC_THRESHOLDS)
        log.info("risk_worker_opened", group=settings.group, model=worker.scoring.model.ref.name)
        return worker.engine

    async def assigned(self, new: set[TP], kept: set[TP]) -> None:
        """Bring what is new here, and keep warm what the group says."""
        await super().assigned(new, kept)
        if self._opened is not None and self._opened.standbys is not None:
            told = cast(Any, self.consumer).told
            self._opened.standbys.tell(
                _numbers(told.standby),
                _numbers(told.active),
                settled=not told.unsettled,
                awaited=told.awaited,
            )

    async def close_parts(self) -> None:
        """Disconnect."""
        await self._parts.aclose()

    def warmth(self) -> Warmth:
        """Which partitions' state is in memory, or on disk."""
        return Warmth() if self._opened is None else self._opened.warmth()

    async def _health(self) -> dict[str, Any]:
        standing = self.standing("deciding")
        if self._opened is None:
            return standing
        worker, engine = self._opened, self._opened.engine
        return {
            **standing,
            "standby": sorted(worker.standbys.positions) if worker.standbys is not None else [],
            "guarantee": self.settings.processing_guarantee,
            "model_ready": await worker.scoring.client.ready(),
            "model_version": worker.scoring.model.ref.version,
            "canary_version": worker.canary.version,
            "policy": worker.policy.policy.version,
            "accounts": worker.state.account_count,
            "terminals": worker.state.terminals.row_count,
            "groups_in_flight": engine.in_flight,
            "rows_in_flight": engine.rows_in_flight,
        }


def _numbers(places: Collection[Place]) -> list[int]:
    return [partition for _, partition in places]


def create_app() -> RiskApp:
    """The application from the settings in force.

    Raises:
        ConfigError: what is wrong, and where.
    """
    return RiskApp(RiskSettings.load(), Connections.load())
