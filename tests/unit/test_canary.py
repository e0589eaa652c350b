"""A canary decides for its accounts alone, always the same ones, and costs no payment its model."""

from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.risk.canary import Canary, rows_of
from services.risk.scoring import ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from services.training.stages import StageLog
from tests.support.stages import repository_of, signers, step
from tests.unit.test_champion import Answers
from weir.errors import MissingPart
from weir.features.payments import FEATURES
from weir.inference.stages import Stage
from weir.obs.metrics import Metrics

ROWS = 400
ACCOUNTS = np.random.default_rng(5).integers(0, 2**64, ROWS, np.uint64)
POLICY = SimpleNamespace(thresholds=SimpleNamespace(review_at=0.05, decline_at=0.6))
READ = SimpleNamespace(
    features=np.zeros((ROWS, len(FEATURES)), np.float32),
    payments=SimpleNamespace(account=ACCOUNTS),
    in_force=SimpleNamespace(policy=POLICY),
)


class Stand:
    """A champion 1, and 2 that stands where the test puts it."""

    def __init__(self, folder) -> None:
        home = repository_of(folder / "models", "1", "2")
        self.people, self.log = signers(home, folder), StageLog(home, "risk")
        for version in "12":
            self.log.register(version, self.people["anna"])
        step(self.log, self.people, "1", Stage.CHAMPION)
        step(self.log, self.people, "2", Stage.SHADOW)
        self.down, self.wrong, self.odd = set(), set(), set()
        self.clients, self.registry = [], CollectorRegistry()
        settings = RiskSettings(model_repository=home.root, score_deadline_ms=1)
        self.canary = Canary(settings, self.client, self.registry)
        model = ServedModel.deciding(home.root, "risk", None)
        self.scoring = ModelScoring(self.client(model), model, Metrics("risk", CollectorRegistry()))
        self.scoring.canary = self.canary

    def client(self, model: ServedModel) -> Answers:
        self.clients.append(Answers(model, self.down, self.wrong, self.odd))
        return self.clients[-1]

    async def to(self, stage: Stage, share: float | None = None) -> None:
        step(self.log, self.people, "2", stage, share)
        await self.canary.look()

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def theirs(self) -> list[int]:
        """Rows that the canary decides."""
        scored = await self.scoring(READ)
        assert scored.scores is not None
        assert scored.scores.model.version == "1"
        if scored.canary is None:
            return []
        assert scored.canary.scores.model.version == "2"
        return scored.canary.rows.tolist()


@pytest.fixture
def stand(tmp_path) -> Stand:
    return Stand(tmp_path)


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5])
def test_of_many_accounts_it_has_its_share(share):
    many = np.random.default_rng(1).integers(0, 2**64, 200_000, np.uint64)
    expected = share * len(many)
    assert abs(len(rows_of(many, "ab" * 32, share)) - expected) < 5 * np.sqrt(expected)


def test_accounts_whose_hashes_follow_one_another_are_spread_too():
    assert abs(len(rows_of(np.arange(100_000, dtype=np.uint64), "ab" * 32, 0.1)) - 10_000) < 500


def test_a_larger_share_keeps_those_of_a_smaller_one():
    small, large = (set(rows_of(ACCOUNTS, "ab" * 32, share)) for share in (0.1, 0.4))
    assert small < large


def test_another_version_has_other_accounts():
    one, two = (set(rows_of(ACCOUNTS, sha * 32, 0.5)) for sha in ("ab", "cd"))
    assert abs(len(one & two) - ROWS / 4) < 45


async def test_without_one_the_champion_decides_for_all(stand):
    await stand.canary.look()
    assert await stand.theirs() == []
    assert stand.count("weir_canary_share") == 0


async def test_it_decides_for_its_accounts_and_what_the_champion_would_have_said_is_counted(stand):
    await stand.to(Stage.CANARY, 0.25)
    theirs = await stand.theirs()
    sha256 = stand.log.read().sha256["2"]
    assert theirs == rows_of(ACCOUNTS, sha256, 0.25).tolist()
    assert 60 < len(theirs) < 140
    assert await stand.theirs() == theirs
    assert stand.count("weir_canary_rows_total", result="decided") == 2 * len(theirs)
    assert stand.count("weir_canary_outcomes_total", champion="approve", canary="approve") == 2 * len(theirs)
    assert stand.count("weir_canary_logit_difference_sum") == pytest.approx(2 * 0.125, abs=1e-4)
    assert (stand.count("weir_canary_version"), stand.count("weir_canary_share")) == (2, 0.25)


async def test_a_batch_without_its_accounts_asks_it_nothing(stand):
    await stand.to(Stage.CANARY, 0.25)
    theirs = rows_of(ACCOUNTS, stand.log.read().sha256["2"], 0.25)
    others = np.setdiff1d(np.arange(ROWS), theirs)
    stand.down.add("2")
    read = SimpleNamespace(**vars(READ) | {"payments": SimpleNamespace(account=ACCOUNTS[others])})
    assert await stand.canary.ask(read) is None
    assert stand.count("weir_canary_rows_total", result="fell_back") == 0


@pytest.mark.parametrize("trouble", ["down", "wrong", "odd"])
async def test_where_it_has_no_answer_or_none_that_fits_the_champion_decides(stand, trouble):
    await stand.to(Stage.CANARY, 0.25)
    getattr(stand, trouble).add("2")
    assert await stand.theirs() == []
    assert stand.count("weir_canary_rows_total", result="fell_back") > 60
    assert stand.count("weir_canary_calls_total", result="fell_back") == 1
    getattr(stand, trouble).clear()
    assert await stand.theirs()


async def test_it_decides_only_once_triton_answers_for_it(stand):
    stand.down.add("2")
    await stand.to(Stage.CANARY, 0.25)
    assert await stand.theirs() == []
    assert stand.count("weir_canary_rows_total", result="fell_back") == 0
    stand.down.clear()
    await stand.canary.look()
    assert await stand.theirs()


async def test_without_the_champions_answer_rules_decide_for_all_alike(stand):
    await stand.to(Stage.CANARY, 0.25)
    stand.down.add("1")
    scored = await stand.scoring(READ)
    assert (scored.scores, scored.canary) == (None, None)
    stand.down.add("2")
    await stand.scoring(READ)
    # The champion has decided nothing in its place.
    assert stand.count("weir_canary_rows_total", result="fell_back") == 0
    assert scored.degraded_reason


async def test_a_share_that_grows_needs_no_new_connection(stand):
    await stand.to(Stage.CANARY, 0.05)
    few, connected = set(await stand.theirs()), len(stand.clients)
    await stand.to(Stage.CANARY, 0.5)
    assert few < set(await stand.theirs())
    assert len(stand.clients) == connected


async def test_a_guards_step_back_takes_its_accounts_back_to_the_champion(stand):
    await stand.to(Stage.CANARY, 0.25)
    stand.log.undo("2", Stage.SHADOW, "it declines too many", stand.people["guard"])
    await stand.canary.look()
    assert await stand.theirs() == []
    assert stand.count("weir_canary_version") == 0


async def test_a_log_that_somebody_changed_leaves_no_canary(stand):
    await stand.to(Stage.CANARY, 0.25)
    stand.log.path.write_bytes(stand.log.path.read_bytes()[:-9])
    await stand.canary.look()
    assert await stand.theirs() == []


async def test_a_client_that_cannot_be_made_leaves_no_canary_and_ends_nothing(stand):
    made = stand.canary._open

    def no_certificate(model: ServedModel) -> Answers:
        raise MissingPart("triton.crt is gone")

    stand.canary._open = no_certificate
    await stand.to(Stage.CANARY, 0.25)
    assert await stand.theirs() == []
    stand.canary._open = made
    await stand.canary.look()
    assert await stand.theirs()


async def test_a_client_that_may_still_be_asked_is_not_closed_yet(stand, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("services.risk.champion.time.monotonic", lambda: now[0])
    await stand.to(Stage.CANARY, 0.25)
    asked = stand.clients[-1]
    await stand.to(Stage.SHADOW)
    assert not asked.closed
    now[0] = 1.0
    await stand.canary.look()
    assert asked.closed
