"""A guard steps back for what the workers have counted, surely and only then, and never forward."""

from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from services.training.__main__ import app
from services.training.guard.guard import Guard
from services.training.guard.rules import Counted, canary_reasons, degrades, fails
from services.training.guard.settings import GuardSettings
from services.training.guard.workers import Growth, Places, read
from services.training.stages import Signer, StageLog
from tests.support.stages import repository_of, signers, step
from weir.errors import ConfigError, WeirError
from weir.inference.stages import Act, Stage, StagesBroken, StepRefused

LIMITS = GuardSettings()
URLS = ["http://one:9101/metrics", "http://two:9101/metrics"]


def counted(decided=0, fell_back=0, **more) -> Counted:
    return Counted(decided=decided, fell_back=fell_back, **more)


def outcomes(rows: int, more: int, fewer: int = 0, what: str = "decline") -> dict[tuple[str, str], int]:
    """`more` of the rows are treated so by the canary alone, `fewer` by the champion alone."""
    return {
        ("approve", what): more,
        (what, "approve"): fewer,
        ("approve", "approve"): rows - more - fewer,
    }


# --- the limits ---


@pytest.mark.parametrize(
    ("seen", "says"),
    [
        (counted(outcomes=outcomes(5000, 250)), "declined by it and not by the champion"),
        (counted(outcomes=outcomes(5000, 700, what="review")), "not approved by it"),
        (
            counted(calls={"champion": 90, "canary": 60}, seconds={"champion": 0.09, "canary": 0.6}),
            "an answered call to it takes 10.0 ms, to the champion 1.0 ms",
        ),
    ],
)
def test_each_limit_that_is_surely_passed_is_a_reason(seen, says):
    (reason,) = canary_reasons(seen, LIMITS)
    assert says in reason


@pytest.mark.parametrize(
    "seen",
    [
        counted(),
        counted(fell_back=499),
        counted(outcomes=outcomes(499, 400)),
        counted(outcomes=outcomes(5000, 300, 290)),
        counted(outcomes=outcomes(5000, 60)),
        counted(outcomes=outcomes(5000, 0, 800)),
        counted(calls={"champion": 90, "canary": 49}, seconds={"champion": 0.09, "canary": 5.0}),
        counted(calls={"champion": 90, "canary": 60}, seconds={"champion": 0.09, "canary": 0.29}),
    ],
)
def test_what_is_too_little_too_few_or_not_sure_is_none(seen):
    assert canary_reasons(seen, LIMITS) == []


@pytest.mark.parametrize("seen", [counted(decided=300, fell_back=100), counted(fell_back=50)])
def test_batches_that_the_champion_had_to_decide_are_told_once_it_is_sure(seen):
    assert "decided by the champion in its place" in fails(seen, LIMITS)


@pytest.mark.parametrize(
    "seen",
    [counted(), counted(fell_back=49), counted(decided=99, fell_back=1), counted(decided=980, fell_back=20)],
)
def test_a_few_failed_batches_are_told_of_nobody(seen):
    assert fails(seen, LIMITS) is None


def test_a_canary_at_its_limit_is_left_alone_however_often_one_looks():
    """200 canaries whose calls fail for just the share that is allowed, each looked at 100 times."""
    random, limits = np.random.default_rng(3), GuardSettings(alpha=0.05)
    stopped = 0
    for _ in range(200):
        failed = np.cumsum(random.binomial(50, limits.fell_back_max, 100))
        stopped += any(
            fails(counted(50 * (look + 1) - int(count), int(count)), limits)
            for look, count in enumerate(failed)
        )
    # Allowed are 10; the distribution is skewed, so a few more may be.
    assert stopped <= 16


def test_rules_that_decide_too_often_are_told_only_when_it_is_sure():
    assert degrades(counted(decisions=1000, degraded=60), LIMITS) is None
    assert degrades(counted(decisions=499, degraded=499), LIMITS) is None
    assert "200 of 1,000 payments (20.00%)" in degrades(counted(decisions=1000, degraded=200), LIMITS)


# --- what workers say ---


class Worker:
    """What a worker's /metrics says."""

    def __init__(self, champion: int = 1, canary: int = 2) -> None:
        self.registry = registry = CollectorRegistry()
        self.champion = Gauge("weir_champion_version", "x", registry=registry)
        self.canary = Gauge("weir_canary_version", "x", registry=registry)
        self.at(champion, canary)
        self.rows = Counter("weir_canary_rows_total", "x", ["result"], registry=registry)
        self.calls = Counter("weir_canary_calls_total", "x", ["result"], registry=registry)
        self.outcomes = Counter("weir_canary_outcomes_total", "x", ["champion", "canary"], registry=registry)
        self.decisions = Counter(
            "weir_decisions_total", "x", ["service", "outcome", "basis"], registry=registry
        )
        self.took = Histogram("weir_model_request_duration_seconds", "x", ["model"], registry=registry)

    def at(self, champion: int, canary: int) -> None:
        self.champion.set(champion)
        self.canary.set(canary)

    def decide(self, rows: int, fell_back: int = 0, degraded: int = 0) -> None:
        for result, count in (("decided", rows), ("fell_back", fell_back)):
            self.rows.labels(result).inc(count)
            # Ten payments a batch.
            self.calls.labels(result).inc(-(-count // 10))
        self.outcomes.labels("approve", "approve").inc(rows)
        self.decisions.labels("risk", "approve", "model").inc(10 * rows)
        self.decisions.labels("risk", "review", "degraded").inc(degraded)
        self.took.labels("risk").observe(0.001)
        self.took.labels("risk:canary").observe(0.002)

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()


def test_growth_is_added_up_over_workers_and_a_restart():
    one, two, growth = Worker(), Worker(), Growth("risk")
    growth.begin(Places(1, 2))
    one.decide(1000, 1000)
    for name, worker in (("one", one), ("two", two)):
        growth.take(name, read(worker.text))
    one.decide(30, 1)
    two.decide(20, 2, degraded=4)
    for name, worker in (("one", one), ("two", two)):
        growth.take(name, read(worker.text))
    again = Worker()
    again.decide(5)
    growth.take("one", read(again.text))
    seen = growth.counted
    assert (seen.decided, seen.fell_back, seen.rows, seen.degraded) == (6, 2, 58, 4)
    assert seen.decisions == 10 * 55 + 4
    assert seen.outcomes == {("approve", "approve"): 55}
    assert seen.calls == {"champion": 3, "canary": 3}
    assert seen.seconds == pytest.approx({"champion": 0.003, "canary": 0.006})


def test_a_sample_that_is_no_number_is_passed_over():
    worker, growth = Worker(), Growth("risk")
    Gauge("weir_idle_seconds", "x", registry=worker.registry).set(float("nan"))
    worker.decisions.labels("risk", "approve", "model").inc(float("inf"))
    growth.begin(Places(1, 2))
    for _ in range(2):
        worker.decide(10)
        growth.take("one", read(worker.text))
    assert growth.counted.rows == 10


def test_what_a_worker_counts_under_other_versions_is_not_the_canarys():
    worker, growth = Worker(1, 0), Growth("risk")
    growth.begin(Places(1, 2))
    growth.take("one", read(worker.text))
    worker.decide(100, 50, degraded=3)
    worker.at(1, 2)
    growth.take("one", read(worker.text))
    assert (growth.counted.rows, growth.counted.fell_back) == (0, 0)
    # What it says of the champion holds, whoever is canary.
    assert growth.counted.degraded == 3
    worker.decide(70)
    growth.take("one", read(worker.text))
    assert (growth.counted.rows, growth.counted.fell_back) == (70, 0)


# --- the guard ---


class Stand:
    """Versions 1 (champion before), 2 (champion), 3 (canary), two workers, a Triton that answers for some."""

    def __init__(self, folder) -> None:
        self.home = home = repository_of(folder / "models", "1", "2", "3")
        self.people, self.log = signers(home, folder), StageLog(home, "risk")
        for version in "123":
            self.log.register(version, self.people["anna"])
        step(self.log, self.people, "1", Stage.CHAMPION)
        step(self.log, self.people, "2", Stage.CHAMPION)
        self.workers = [Worker(2, 0), Worker(2, 0)]
        self.down, self.answering, self.later = set(), {"1", "2", "3"}, timedelta()
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        self.guard = Guard(
            self.log,
            self.people["guard"],
            GuardSettings(workers=URLS),
            client,
            self.answers,
            lambda: datetime.now(UTC) + self.later,
        )

    def answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        if name in self.down:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, text=self.workers[["one", "two"].index(name)].text)

    async def answers(self, version: str) -> bool:
        return version in self.answering

    async def canary(self) -> None:
        step(self.log, self.people, "3", Stage.SHADOW)
        step(self.log, self.people, "3", Stage.CANARY)
        for worker in self.workers:
            worker.at(2, 3)
        await self.guard.look()

    async def look_after(self, *, looks: int = 1, **what: int):
        for _ in range(looks):
            for worker in self.workers:
                worker.decide(**what)
            found = await self.guard.look()
        return found


@pytest.fixture
def stand(tmp_path) -> Stand:
    return Stand(tmp_path)


async def test_a_good_canary_stays(stand):
    await stand.canary()
    look = await stand.look_after(rows=5000)
    assert (look.champion, look.canary, look.step) == ("2", "3", None)
    assert (look.workers, look.behind, look.canary_payments) == (2, 0, 10_000)
    assert stand.log.read().at(Stage.CANARY) == "3"


async def test_a_canary_without_answers_goes_back_to_shadow_with_the_reason_in_the_signed_log(stand):
    await stand.canary()
    assert (await stand.look_after(rows=100, fell_back=900, looks=2)).step is None
    look = await stand.look_after(rows=100, fell_back=900)
    assert (look.step.version, look.step.to) == ("3", Stage.SHADOW)
    state = stand.log.read()
    assert state.stages["3"] is Stage.SHADOW
    assert state.at(Stage.CHAMPION) == "2"
    entry = state.history[-1]
    assert (entry["act"], entry["by"]) == ("undo", "guard")
    assert "540 of its 600 batches (90.00%)" in entry["why"]
    assert (await stand.guard.look()).step is None


async def test_a_canary_whose_files_were_changed_goes_back_all_the_same(stand):
    await stand.canary()
    (stand.home.root / "risk" / "3" / "model.onnx").write_bytes(b"\x00")
    assert (await stand.look_after(rows=100, fell_back=900, looks=3)).step.to is Stage.SHADOW


async def test_an_outage_that_is_over_is_not_held_against_a_canary(stand):
    await stand.canary()
    await stand.look_after(rows=100, fell_back=900, looks=2)
    assert (await stand.look_after(rows=100, looks=5)).step is None
    assert (await stand.look_after(rows=100, fell_back=10)).step is None
    assert stand.log.read().at(Stage.CANARY) == "3"


async def test_what_was_counted_before_the_canary_stood_is_no_reason(stand):
    await stand.guard.look()
    await stand.look_after(rows=100, fell_back=900, looks=3)
    await stand.canary()
    assert (await stand.look_after(rows=1000, fell_back=1, looks=4)).step is None


async def test_a_new_champion_for_which_triton_has_no_answer_gives_way_to_the_last_one(stand):
    await stand.guard.look()
    stand.answering.discard("2")
    assert (await stand.look_after(rows=50, degraded=900, looks=2)).step is None
    look = await stand.look_after(rows=50, degraded=900)
    assert (look.step.version, look.step.to) == ("1", Stage.CHAMPION)
    assert stand.log.read().at(Stage.CHAMPION) == "1"
    assert "Triton answers for 1 but not for it" in stand.log.read().history[-1]["why"]


async def test_a_canary_that_no_worker_has_taken_up_blinds_nobody_for_the_champion(stand):
    step(stand.log, stand.people, "3", Stage.SHADOW)
    step(stand.log, stand.people, "3", Stage.CANARY)
    await stand.guard.look()
    stand.answering = {"1"}
    look = await stand.look_after(rows=50, degraded=900, looks=3)
    assert (look.behind, look.step.version) == (2, "1")


async def test_a_triton_that_comes_back_between_two_questions_costs_the_champion_nothing(stand):
    """Away when it is asked for the champion, back when it is asked for the last one: at each look anew."""
    await stand.guard.look()
    asked = []

    async def comes_back(version: str) -> bool:
        asked.append(version)
        return len(asked) % 3 != 1

    stand.guard._answers = comes_back
    assert (await stand.look_after(rows=50, degraded=900, looks=6)).step is None
    assert asked[:3] == ["2", "1", "2"]


async def test_an_outage_that_is_over_is_not_held_against_a_champion(stand):
    await stand.guard.look()
    stand.answering.clear()
    await stand.look_after(rows=50, degraded=900, looks=3)
    stand.answering.add("1")
    assert (await stand.look_after(rows=50, looks=5)).step is None


async def test_where_triton_itself_is_away_nothing_is_put_back(stand):
    await stand.guard.look()
    stand.answering.clear()
    assert (await stand.look_after(rows=50, degraded=900, looks=5)).step is None
    assert stand.log.read().at(Stage.CHAMPION) == "2"


async def test_a_champion_that_answers_is_left_alone(stand):
    """Rules may decide for other reasons: a network, a deadline that is too short."""
    await stand.guard.look()
    assert (await stand.look_after(rows=50, degraded=900, looks=5)).step is None


async def test_a_champion_of_long_standing_is_for_people_to_take_back(stand):
    await stand.guard.look()
    stand.answering.discard("2")
    stand.later = timedelta(hours=73)
    assert (await stand.look_after(rows=50, degraded=900, looks=5)).step is None


async def test_a_worker_that_is_away_or_behind_is_told_and_not_counted(stand):
    await stand.canary()
    stand.workers[0].at(2, 0)
    stand.down.add("two")
    look = await stand.look_after(rows=10, fell_back=900, looks=4)
    assert (look.workers, look.behind, look.step) == (1, 1, None)
    assert look.away == {URLS[1]: "refused"}
    assert look.canary_payments == 0


@pytest.mark.parametrize(
    ("status", "text", "says"),
    [
        (503, "", "it answered 503"),
        (200, "<html>", "something else than metrics"),
        (200, "a{b=", "metrics"),
    ],
)
async def test_an_answer_that_is_no_metrics_is_a_worker_that_is_away(stand, status, text, says):
    stand.answer = None
    client = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(status, text=text)))
    guard = Guard(stand.log, stand.people["guard"], GuardSettings(workers=URLS), client, stand.answers)
    away = (await guard.look()).away
    assert len(away) == 2
    assert all(says in why for why in away.values())


async def test_a_password_in_a_workers_address_is_told_nobody(stand):
    stand.down.update(("one", "two"))
    worker = "http://prometheus:hunter2@one:9101/metrics"
    client = httpx.AsyncClient(transport=httpx.MockTransport(stand.answer))
    guard = Guard(stand.log, stand.people["guard"], GuardSettings(workers=[worker]), client, stand.answers)
    with capture_logs() as said:
        assert list((await guard.look()).away) == [URLS[0]]
    assert [each["event"] for each in said] == ["worker_away"]
    assert "hunter2" not in str(said)


async def test_a_person_who_was_faster_is_no_error(stand, monkeypatch):
    await stand.canary()
    undo = stand.log.undo

    def too_late(version, to, why, signer):
        step(stand.log, stand.people, "3", Stage.RETIRED)
        undo(version, to, why, signer)

    monkeypatch.setattr(stand.log, "undo", too_late)
    assert (await stand.look_after(rows=100, fell_back=900, looks=3)).step is None
    assert stand.log.read().stages["3"] is Stage.RETIRED


async def test_a_log_that_somebody_changed_is_said_and_nothing_is_signed_on_top_of_it(stand):
    await stand.canary()
    stand.log.path.write_bytes(broken := stand.log.path.read_bytes()[:-9])
    with pytest.raises(StagesBroken):
        await stand.look_after(rows=100, fell_back=900)
    assert stand.log.path.read_bytes() == broken


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--by", "anna"), "anna may not undo"),
        (("--by", "guard"), "The key is not the one"),
        (("--by", "guard", "--model", "credit"), "holds no model 'credit'"),
    ],
)
def test_a_guard_that_could_not_step_in_does_not_start_and_says_why(stand, words, says):
    given = ["models", "guard", "--key", str(stand.log.people.parent.parent / "anna.pem")]
    done = CliRunner().invoke(app, [*given, *words, "--repository", str(stand.home.root)])
    assert isinstance(done.exception, WeirError)
    assert says in str(done.exception)


def test_a_key_that_may_not_undo_is_found_at_the_start(stand, tmp_path):
    stand.log.check(stand.people["guard"], Act.UNDO)
    with pytest.raises(StepRefused, match="anna may not undo"):
        stand.log.check(stand.people["anna"], Act.UNDO)
    false = Signer.create("guard", tmp_path / "false.pem", None)
    with pytest.raises(StepRefused, match="not the one"):
        stand.log.check(false, Act.UNDO)
    with pytest.raises(StepRefused, match="not in people"):
        stand.log.check(Signer.create("nobody", tmp_path / "nobody.pem", None), Act.UNDO)
    stand.log.people.unlink()
    with pytest.raises(ConfigError):
        stand.log.check(stand.people["guard"], Act.UNDO)
