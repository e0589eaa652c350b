"""Promotion and rollback on a real Triton while batches go on: none waits, none is without its model."""

import asyncio
from types import SimpleNamespace

import numpy as np
from prometheus_client import CollectorRegistry

from services.risk.champion import Champion
from services.risk.scoring import OUTPUTS, ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from services.risk.shadow import Shadow
from services.training.stages import StageLog
from tests.support import pauses
from tests.support.stages import repository_of, signers, step
from weir.config import TritonSettings
from weir.features.payments import FEATURES
from weir.inference import ModelClient
from weir.inference.stages import Stage
from weir.obs.metrics import Metrics

ROWS, DEADLINE_S = 64, 60.0


class Batch:
    """The part of a batch that scoring looks at."""

    features = np.random.default_rng(3).normal(size=(ROWS, len(FEATURES))).astype(np.float32)
    in_force = SimpleNamespace(
        policy=SimpleNamespace(thresholds=SimpleNamespace(review_at=0.05, decline_at=0.6))
    )


async def test_promotion_and_rollback_under_load_drop_no_batch(start_triton, tmp_path):
    home = repository_of(tmp_path / "models", "1", "2")
    people, log = signers(home, tmp_path), StageLog(home, "risk")
    for version in "12":
        log.register(version, people["anna"])
    step(log, people, "1", Stage.CHAMPION)
    step(log, people, "2", Stage.SHADOW)
    server = start_triton(home.root)
    settings = RiskSettings(model_repository=home.root)

    def client(model: ServedModel) -> ModelClient:
        return ModelClient(
            TritonSettings(endpoint=server.endpoint),
            "risk",
            model.ref.version,
            outputs=OUTPUTS,
            rows_max=ROWS,
            deadline_s=10.0,
        )

    model = ServedModel.deciding(home.root, "risk", None)
    registry = CollectorRegistry()
    shadow = Shadow(settings, client, registry)
    scoring = ModelScoring(client(model), model, Metrics("risk", CollectorRegistry()), shadow.show)
    champion = Champion(settings, scoring, client)
    await shadow.look()
    shadowing = asyncio.create_task(shadow.run())
    seen: list[tuple[str, float]] = []
    ended = asyncio.Event()

    async def batches() -> None:
        while not ended.is_set():
            scored = await scoring(Batch())
            assert scored.scores is not None, scored.degraded_reason
            seen.append((scored.scores.model.version, float(scored.scores.logit.ravel()[0])))

    async def until(version: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not seen or seen[-1][0] != version:
                await champion.look()
                await asyncio.sleep(0.01)  # between looks, as the worker's second

    running = [asyncio.create_task(batches()) for _ in range(3)]
    try:
        await until("1")
        # Not until nothing waits: the batches never end, so something always does.
        await pauses.until(
            lambda: registry.get_sample_value("weir_shadow_rows_total", {"result": "compared"}),
            "the shadow was compared",
        )
        step(log, people, "2", Stage.CHAMPION)
        await until("2")
        log.undo("1", Stage.CHAMPION, "the alarm rate tripled", people["guard"])
        await until("1")
    finally:
        ended.set()
        await asyncio.gather(*running)
        shadowing.cancel()
        await asyncio.gather(shadowing, return_exceptions=True)
        await shadow.close()
        await champion.close()
    assert registry.get_sample_value("weir_shadow_rows_total", {"result": "failed"}) is None
    # The versions differ by their base alone, so each answer shows which one gave it.
    logits = {version: {round(logit, 4) for name, logit in seen if name == version} for version in "12"}
    assert [len(values) for values in logits.values()] == [1, 1]
    assert logits["1"].pop() - logits["2"].pop() > 0.12
