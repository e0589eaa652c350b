"""Champion and challenger: one may look after every week, and is still rarely wrong."""

import json

import numpy as np
import pytest

from services.training.compare import Figure, Verdict, compare, half_width
from services.training.errors import TrainingError
from services.training.evaluate import Sample
from tests.support.training import small_bank
from tests.unit.test_training_pipeline import call

DAY_MS = 86_400_000


def two_models(seed: int, accounts: int, *, better: float = 0.0) -> tuple[Sample, Sample]:
    """Payments of that many accounts, each with a chance of fraud; two noisy scores of one truth."""
    random = np.random.default_rng(seed)
    account = np.repeat(np.arange(accounts), 4)
    fraud = random.random(len(account)) < 0.08
    event_ms = np.sort(random.integers(0, 7 * DAY_MS, len(account)))
    scores = [fraud * (1.2 + lift) + random.normal(size=len(account)) for lift in (0.0, better)]
    one, two = (Sample.of(score, fraud, account, event_ms) for score in scores)
    return one, two


def part(sample: Sample, accounts: int) -> Sample:
    rows = sample.account < accounts
    return Sample.of(sample.score[rows], sample.is_fraud[rows], sample.account[rows], sample.event_ms[rows])


def test_looking_again_and_again_finds_no_difference_where_there_is_none():
    wrong = ordinary = 0
    for seed in range(60):
        one, two = two_models(seed, 800)
        looks = [
            compare(part(one, count), part(two, count), draws=60, frauds_planned=200, margin=0.0)
            for count in range(160, 801, 80)
        ]
        wrong += any(look.verdict in (Verdict.BETTER, Verdict.WORSE) for look in looks)
        # The same looks by an interval for one look: here the difference is "found" far too often.
        widths = [half_width(1.0, look.defrauded, 0.05, 200) for look in looks]
        ordinary += any(
            abs(look.difference) > 1.96 * (look.high - look.difference) / width
            for look, width in zip(looks, widths, strict=True)
        )
    assert wrong <= 3
    assert ordinary > 6


def test_a_better_challenger_is_found_and_the_other_way_round_it_is_worse():
    one, two = two_models(3, 3000, better=1.0)
    assert compare(one, two, draws=100).verdict is Verdict.BETTER
    assert compare(two, one, draws=100).verdict is Verdict.WORSE


@pytest.mark.parametrize("figure", list(Figure))
def test_a_model_compared_with_itself_is_as_good(figure):
    one, _ = two_models(4, 400)
    found = compare(one, one, figure=figure, draws=20)
    assert (found.difference, found.verdict, found.needed) == (0.0, Verdict.AS_GOOD, None)


def test_where_it_is_not_enough_it_says_how_much_would_be():
    one, two = two_models(5, 400, better=0.1)
    found = compare(one, two, draws=100, margin=0.0)
    assert found.verdict is Verdict.NOT_YET
    assert found.low < 0 < found.high
    assert found.needed is not None
    assert found.needed > found.defrauded


def test_the_interval_is_narrowest_about_where_it_was_planned_to_be():
    """Against an interval for one look, by count: the ratio has its least near the plan."""
    ratio = {count: half_width(1.0, count, 0.05, 500) for count in (5, 50, 500, 5000, 50_000)}
    assert min(ratio, key=lambda count: ratio[count]) == 500
    assert ratio[500] > 1.96


def test_too_few_frauds_and_other_rows_are_refused():
    one, two = two_models(6, 30)
    with pytest.raises(TrainingError, match="too few"):
        compare(one, two)
    large, other = two_models(7, 400)[0], two_models(8, 400)[1]
    with pytest.raises(TrainingError, match="same payments"):
        compare(large, other)


def test_the_command_judges_only_what_neither_version_learnt_from(tmp_path):
    bank, home = small_bank(tmp_path / "bank"), tmp_path / "models"
    for seed in ("7", "8"):
        call("train", "risk", "--data", bank, "--quick", "--seed", seed, "--repository", home)
    words = ("models", "compare", "1", "2", "--repository", home)
    with pytest.raises(TrainingError, match="neither 1 nor 2 has learnt from"):
        call(*words, "--data", small_bank(tmp_path / "earlier", days=40))
    later = small_bank(tmp_path / "later", days=80)
    about = json.loads(call(*words, "--data", later, "--json"))
    first = about["versions"]["window"].split("..")[0]
    learnt = json.loads((home / "risk/1/model.json").read_text())["trained"]["split"]["validation"]
    assert first > learnt.split("..")[1]
    assert about["low"] <= about["difference"] <= about["high"]
    assert "difference" in call(*words, "--data", later)
