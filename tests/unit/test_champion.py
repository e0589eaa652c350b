"""A new champion takes over between batches, only when it answers, never because an unsigned file says so."""

import asyncio

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.risk.champion import Champion
from services.risk.scoring import ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from services.training.stages import StageLog
from tests.support.stages import repository_of, signers, step
from weir.errors import ConfigError, MissingPart
from weir.features.payments import FEATURES
from weir.inference.errors import ModelUnavailable
from weir.inference.stages import Stage
from weir.obs.metrics import Metrics


class Answers:
    """A client of one version: what Triton would say of rows."""

    def __init__(self, model: ServedModel, down: set[str], wrong: set[str], odd: set[str]) -> None:
        self.model, self.down, self.wrong, self.odd = model, down, wrong, odd
        self.closed = False

    async def score(self, features: np.ndarray) -> dict[str, np.ndarray]:
        await asyncio.sleep(0)
        version = self.model.ref.version
        if version in self.down:
            raise ModelUnavailable("it is loading", "triton:8001", 0.1)
        off = 1.0 if version in self.wrong else 0.0
        logit = np.full((len(features), 1), self.model.base_logit + off, np.float32)
        if version in self.odd:
            logit = logit.astype(np.float64)
        return {
            "logit": logit,
            "probability": 1 / (1 + np.exp(-logit)),
            "contributions": np.zeros(features.shape, np.float32),
        }

    async def close(self) -> None:
        self.closed = True


class Read:
    """The part of a batch that scoring looks at."""

    features = np.zeros((4, len(FEATURES)), np.float32)


class Bench:
    """A scoring with its champion, over a repository of three versions of which 1 decides."""

    def __init__(self, folder) -> None:
        home = repository_of(folder / "models", "1", "2", "3")
        self.people, self.log = signers(home, folder), StageLog(home, "risk")
        for version in "123":
            self.log.register(version, self.people["anna"])
        step(self.log, self.people, "1", Stage.CHAMPION)
        self.down, self.wrong, self.odd, self.clients = set(), set(), set(), []
        settings = RiskSettings(model_repository=home.root, score_deadline_ms=1)
        model = ServedModel.deciding(home.root, "risk", None)
        self.scoring = ModelScoring(self.client(model), model, Metrics("risk", CollectorRegistry()))
        self.champion = Champion(settings, self.scoring, self.client)

    def client(self, model: ServedModel) -> Answers:
        self.clients.append(Answers(model, self.down, self.wrong, self.odd))
        return self.clients[-1]

    async def decides(self) -> str:
        """The version that a batch's scores name."""
        scored = await self.scoring(Read())
        assert scored.scores is not None
        return scored.scores.model.version


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


async def test_a_promotion_takes_over_without_a_restart(bench):
    await bench.champion.look()
    assert await bench.decides() == "1"
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    assert await bench.decides() == "1"
    await bench.champion.look()
    assert await bench.decides() == "2"


async def test_the_version_before_decides_until_the_new_one_answers(bench):
    bench.down.add("2")
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    for _ in range(3):
        await bench.champion.look()
        assert await bench.decides() == "1"
    bench.down.clear()
    await bench.champion.look()
    assert await bench.decides() == "2"


async def test_a_client_that_cannot_be_made_leaves_the_version_that_decides(bench):
    def no_certificate(model: ServedModel) -> Answers:
        raise MissingPart("triton.crt is gone")

    made, bench.champion._open = bench.champion._open, no_certificate
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    await bench.champion.look()
    assert await bench.decides() == "1"
    bench.champion._open = made
    await bench.champion.look()
    assert await bench.decides() == "2"


async def test_a_version_whose_reasons_do_not_add_up_never_takes_over(bench):
    bench.wrong.add("2")
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    await bench.champion.look()
    assert await bench.decides() == "1"


async def test_a_version_that_answers_in_another_form_never_takes_over_and_ends_no_worker(bench):
    bench.odd.add("2")
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    await bench.champion.look()
    assert await bench.decides() == "1"
    bench.odd.add("1")
    scored = await bench.scoring(Read())
    assert (scored.scores, scored.degraded_reason) == (None, "model_rejected")


async def test_a_guards_step_back_takes_over_too(bench):
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    await bench.champion.look()
    bench.log.undo("1", Stage.CHAMPION, "alarms tripled", bench.people["guard"])
    await bench.champion.look()
    assert await bench.decides() == "1"


async def test_a_log_that_somebody_changed_leaves_the_version_that_decides(bench):
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    held = bench.log.path.read_bytes()
    bench.log.path.write_bytes(held[:-40])
    await bench.champion.look()
    assert await bench.decides() == "1"
    bench.log.path.write_bytes(held)
    await bench.champion.look()
    assert await bench.decides() == "2"


async def test_a_log_that_is_gone_has_no_unsigned_version_decide(bench):
    bench.log.path.rename(bench.log.path.with_suffix(".moved"))
    await bench.champion.look()
    assert await bench.decides() == "1"
    with pytest.raises(ConfigError, match="is not there"):
        ServedModel.deciding(bench.log.repository.root, "risk", None)


async def test_what_could_not_be_read_for_a_moment_is_read_again(bench):
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    folder = bench.log.repository.root / "risk" / "2"
    moved = folder.rename(folder.with_name("away"))
    await bench.champion.look()
    assert await bench.decides() == "1"
    moved.rename(folder)
    await bench.champion.look()
    assert await bench.decides() == "2"


async def test_a_batch_is_scored_whole_by_the_version_that_it_was_begun_with(bench):
    under_way = asyncio.create_task(bench.decides())
    await asyncio.sleep(0)
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    await bench.champion.look()
    assert await under_way == "1"
    assert await bench.decides() == "2"


async def test_clients_that_are_asked_no_more_are_closed(bench, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("services.risk.champion.time.monotonic", lambda: now[0])
    step(bench.log, bench.people, "2", Stage.CHAMPION)
    await bench.champion.look()
    first = bench.clients[0]
    assert not first.closed
    now[0] = 1.0
    await bench.champion.look()
    assert first.closed
    await bench.champion.close()
    assert all(client.closed for client in bench.clients)
