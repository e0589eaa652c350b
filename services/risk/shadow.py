"""The version in the shadow's place sees the same batches, decides nothing, and is compared.

It is asked beside the champion and after it: a batch never waits for it. What it has no time for is skipped
and counted.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.risk.champion import Leaving, LogFiles
from services.risk.decide import Scores
from services.risk.places import PlaceMetrics
from services.risk.policy import Policy
from services.risk.reading import ReadBatch
from services.risk.scoring import ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from weir.errors import IntegrityError, WeirError
from weir.inference.client import ModelClient
from weir.inference.errors import ModelRejected, ModelUnavailable
from weir.inference.stages import Stage
from weir.obs.log import get_logger

log = get_logger("weir.risk.shadow")

_WAITING_MAX = 8


@dataclass(frozen=True, slots=True)
class _Shown:
    features: NDArray[np.float32]
    scores: Scores
    policy: Policy


class Shadow:
    """Follows the log of stages; `show` takes batches, `run` compares them.

    Args:
        open_client: a client of a version, not connected yet.
    """

    def __init__(
        self,
        settings: RiskSettings,
        open_client: Callable[[ServedModel], ModelClient],
        registry: CollectorRegistry,
    ) -> None:
        self._settings, self._open = settings, open_client
        self._files = LogFiles(settings)
        self._metrics = PlaceMetrics(
            registry,
            "shadow",
            "Payments shown to the shadow: compared, skipped (no time), failed (no answer).",
        )
        self._waiting: asyncio.Queue[_Shown] = asyncio.Queue(_WAITING_MAX)
        self._model: ServedModel | None = None
        self._client: ModelClient | None = None
        self._leaving = Leaving(settings)
        self._failed = ""

    def show(self, read: ReadBatch, scores: Scores) -> None:
        """A batch that the champion has scored; returns at once."""
        if self._model is None:
            return
        if self._waiting.full():
            self._metrics.rows.labels("skipped").inc(len(scores.logit))
            return
        self._waiting.put_nowait(_Shown(read.features.copy(), scores, read.in_force.policy))

    async def look(self) -> None:
        """Ask another version, or none, where the log says so."""
        await self._leaving.close_old()
        if not self._files.changed():
            return
        settings = self._settings
        try:
            model = ServedModel.standing(settings.model_repository, settings.model, Stage.SHADOW)
            if (model and model.ref) == (self._model and self._model.ref):
                return
            client = None if model is None else self._open(model)
        except WeirError as error:
            self._files.forget()
            if str(error) != self._failed:
                log.warning("shadow_refused", error=str(error))
                self._failed = str(error)
            model = client = None
            if self._model is None:
                return
        if self._client is not None:
            self._leaving.add(self._client)
        self._model, self._client = model, client
        self._metrics.version.set(0 if model is None else int(model.ref.version))
        log.info("shadow_changed", version=None if model is None else model.ref.version)

    async def run(self) -> None:
        """Compare batch after batch until cancelled."""
        while True:
            shown = await self._waiting.get()
            try:
                await self._compare(shown)
            finally:
                self._waiting.task_done()

    async def compared(self) -> None:
        """Return once nothing waits any more; `run` must be running."""
        await self._waiting.join()

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._leaving.close()
        client, self._model, self._client = self._client, None, None
        if client is not None:
            await client.close()

    async def _compare(self, shown: _Shown) -> None:
        model, client = self._model, self._client
        if model is None or client is None:
            return
        try:
            scores = ModelScoring.checked(await client.score(shown.features), model)
        except (ModelUnavailable, ModelRejected, IntegrityError) as error:
            self._metrics.rows.labels("failed").inc(len(shown.features))
            if type(error).__name__ != self._failed:
                # Once for each kind of trouble, not for each batch: how long it took differs each time.
                log.warning("shadow_failed", error=str(error))
                self._failed = type(error).__name__
            return
        self._failed = ""
        self._metrics.rows.labels("compared").inc(len(shown.features))
        self._metrics.compared(shown.scores, scores, shown.policy)
