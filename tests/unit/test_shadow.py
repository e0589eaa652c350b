"""The shadow sees what the champion has scored, decides nothing, and holds nothing up."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.risk.decide import Scores
from services.risk.scoring import ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from services.risk.shadow import Shadow
from services.training.stages import StageLog
from tests.support.stages import repository_of, signers, step
from tests.unit.test_champion import Answers
from weir.errors import MissingPart
from weir.features.payments import FEATURES
from weir.inference.stages import Stage
from weir.obs.metrics import Metrics

POLICY = SimpleNamespace(thresholds=SimpleNamespace(review_at=0.05, decline_at=0.6))
READ = SimpleNamespace(
    features=np.zeros((4, len(FEATURES)), np.float32), in_force=SimpleNamespace(policy=POLICY)
)


class Stand:
    """A champion 1 and, once promoted, a shadow 2 whose logits lie where `Answers` puts them."""

    def __init__(self, folder) -> None:
        home = repository_of(folder / "models", "1", "2")
        self.people, self.log = signers(home, folder), StageLog(home, "risk")
        for version in "12":
            self.log.register(version, self.people["anna"])
        step(self.log, self.people, "1", Stage.CHAMPION)
        self.down, self.wrong, self.registry = set(), set(), CollectorRegistry()
        settings = RiskSettings(model_repository=home.root)
        self.shadow = Shadow(settings, self.client, self.registry)
        model = ServedModel.deciding(home.root, "risk", None)
        self.scoring = ModelScoring(
            self.client(model), model, Metrics("risk", CollectorRegistry()), self.shadow.show
        )

    def client(self, model: ServedModel) -> Answers:
        return Answers(model, self.down, self.wrong, set())

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def compare(self) -> None:
        """Let the shadow take what waits."""
        running = asyncio.create_task(self.shadow.run())
        async with asyncio.timeout(10):
            await self.shadow.compared()
        running.cancel()
        with suppress(asyncio.CancelledError):  # it was asked to end
            await running


@pytest.fixture
def stand(tmp_path) -> Stand:
    return Stand(tmp_path)


async def test_without_a_shadow_nothing_is_shown(stand):
    await stand.shadow.look()
    await stand.scoring(READ)
    await stand.compare()
    assert stand.count("weir_shadow_rows_total", result="compared") == 0


async def test_the_shadow_is_compared_and_decides_nothing(stand):
    step(stand.log, stand.people, "2", Stage.SHADOW)
    await stand.shadow.look()
    scored = await stand.scoring(READ)
    await stand.compare()
    assert scored.scores.model.version == "1"
    assert stand.count("weir_shadow_version") == 2
    assert stand.count("weir_shadow_rows_total", result="compared") == 4
    assert stand.count("weir_shadow_outcomes_total", champion="approve", shadow="approve") == 4
    assert stand.count("weir_shadow_logit_difference_sum") == pytest.approx(0.125, abs=1e-4)


async def test_what_the_thresholds_would_do_otherwise_is_counted(stand):
    step(stand.log, stand.people, "2", Stage.SHADOW)
    await stand.shadow.look()
    model = stand.scoring.model
    high = np.full((4, 1), 0.7, np.float32)
    scores = Scores(high, high, np.zeros((4, len(FEATURES)), np.float32), model.base_logit, model.ref)
    stand.shadow.show(READ, scores)
    await stand.compare()
    assert stand.count("weir_shadow_outcomes_total", champion="decline", shadow="approve") == 4


async def test_a_shadow_without_an_answer_costs_the_champion_nothing(stand):
    step(stand.log, stand.people, "2", Stage.SHADOW)
    await stand.shadow.look()
    stand.down.add("2")
    assert (await stand.scoring(READ)).scores is not None
    await stand.compare()
    assert stand.count("weir_shadow_rows_total", result="failed") == 4


async def test_what_the_shadow_has_no_time_for_is_skipped_and_counted(stand):
    step(stand.log, stand.people, "2", Stage.SHADOW)
    await stand.shadow.look()
    for _ in range(11):
        await stand.scoring(READ)
    assert stand.count("weir_shadow_rows_total", result="skipped") == 3 * 4


async def test_a_shadow_that_left_its_place_is_asked_no_more(stand):
    step(stand.log, stand.people, "2", Stage.SHADOW)
    await stand.shadow.look()
    step(stand.log, stand.people, "2", Stage.RETIRED)
    await stand.shadow.look()
    assert stand.count("weir_shadow_version") == 0
    await stand.scoring(READ)
    await stand.compare()
    assert stand.count("weir_shadow_rows_total", result="compared") == 0


async def test_a_client_that_cannot_be_made_shows_no_shadow_and_ends_nothing(stand):
    def no_certificate(model: ServedModel) -> Answers:
        raise MissingPart("triton.crt is gone")

    stand.shadow._open = no_certificate
    step(stand.log, stand.people, "2", Stage.SHADOW)
    await stand.shadow.look()
    assert stand.count("weir_shadow_version") == 0
    assert (await stand.scoring(READ)).scores is not None


async def test_a_log_that_somebody_changed_shows_no_shadow(stand):
    step(stand.log, stand.people, "2", Stage.SHADOW)
    stand.log.path.write_bytes(stand.log.path.read_bytes()[:-9])
    await stand.shadow.look()
    await stand.scoring(READ)
    await stand.compare()
    assert stand.count("weir_shadow_rows_total", result="compared") == 0
