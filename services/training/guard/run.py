"""The guard as a process: looks at an interval, shows how it stands, ends when it is told to."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from typing import Any

import httpx
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.training.guard.guard import Guard, Look
from services.training.guard.settings import GuardSettings
from services.training.stages import Signer, StageLog
from weir.config import TritonSettings
from weir.errors import WeirError
from weir.inference.client import ModelClient
from weir.inference.stages import Act
from weir.obs.http import serve
from weir.obs.log import get_logger

log = get_logger("weir.guard")

_ANSWER_DEADLINE_S = 5.0
# As a worker's scoring: float32 sums of a few dozen terms.
_SUM_TOLERANCE_LOGIT = 1e-3


class GuardMetrics:
    """How the guard itself stands: who watches it watches these."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.looked = Gauge(
            "weir_guard_look_timestamp_seconds",
            "When it last looked, unix time.",
            registry=registry,
        )
        self.workers = Gauge(
            "weir_guard_workers",
            "Workers by how they answered: current, behind (other versions than the log says), away.",
            ["state"],
            registry=registry,
        )
        self.steps = Counter("weir_guard_steps_total", "Steps back that it took.", ["to"], registry=registry)

    def found(self, look: Look, now_s: float) -> None:
        """Adds a look."""
        self.looked.set(now_s)
        self.workers.labels("current").set(look.workers - look.behind)
        self.workers.labels("behind").set(look.behind)
        self.workers.labels("away").set(len(look.away))
        if look.step is not None:
            self.steps.labels(look.step.to.value).inc()


async def run(
    stages: StageLog,
    signer: Signer,
    limits: GuardSettings,
    triton: TritonSettings,
    now_s: Callable[[], float],
) -> None:
    """Guards until SIGTERM or SIGINT.

    Args:
        now_s: the clock, unix time.
    Raises:
        StepRefused, ConfigError: the key may not undo, or the port is taken; nothing is guarded.
    """
    stages.check(signer, Act.UNDO)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    registry = CollectorRegistry()
    metrics, last = GuardMetrics(registry), dict[str, Any](ready=False)
    async with AsyncExitStack() as stack:
        server = await serve(limits.metrics_host, limits.metrics_port, lambda: last, registry=registry)
        stack.push_async_callback(server.close)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=limits.timeout_s, trust_env=False))
        guard = Guard(stages, signer, limits, client, lambda version: answers(stages, triton, version))
        log.info("guard_started", model=stages.name, workers=len(limits.workers), metrics_port=server.port)
        said = ""
        while not stop.is_set():
            try:
                look = await guard.look()
                metrics.found(look, now_s())
                last = {"ready": not look.away and not look.behind, **asdict(look)}
                said = ""
            except (WeirError, OSError) as error:
                # A log that somebody is repairing, or a disk that is full, ends no guard.
                last = {"ready": False, "error": str(error)}
                if str(error) != said:
                    log.error("guard_cannot_look", error=str(error))
                    said = str(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), limits.interval_s)
    log.info("guard_stopping", model=stages.name)


async def answers(stages: StageLog, triton: TritonSettings, version: str) -> bool:
    """Whether Triton scores a row by this version, with contributions that add up to its logit."""
    about = stages.repository.about(stages.name, version)
    try:
        async with ModelClient(
            triton,
            stages.name,
            version,
            outputs=("logit", "contributions"),
            rows_max=1,
            deadline_s=_ANSWER_DEADLINE_S,
        ) as client:
            found = await client.score(np.zeros((1, len(about["features"])), np.float32))
    except WeirError as error:
        log.warning("version_gives_no_answer", version=version, error=str(error))
        return False
    total = about["base_logit"] + float(found["contributions"].sum(dtype=np.float64))
    return bool(abs(total - float(found["logit"].ravel()[0])) <= _SUM_TOLERANCE_LOGIT)
