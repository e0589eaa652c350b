"""Thresholds by cost and capacity, held to a plain loop over the payments."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.training.errors import TrainingError
from services.training.thresholds import (
    Costs,
    Judged,
    Thresholds,
    best_thresholds,
    candidates,
    outcome,
)
from tests.support.training import small_bank
from tests.unit.test_training_pipeline import call

DAY_MS = 86_400_000


def drawn(seed: int, count: int = 400) -> Judged:
    random = np.random.default_rng(seed)
    fraud = random.random(count) < 0.1
    score = np.clip(random.normal(0.2 + 0.3 * fraud, 0.2), 0, 1).round(2)  # rounded: many ties
    return Judged(score, fraud, random.gamma(1, 100, count), random.integers(0, 5 * DAY_MS, count))


@given(
    st.integers(0, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_an_outcome_is_what_a_loop_over_the_payments_counts(seed, one, two, share, found):
    judged, costs = drawn(seed, 60), Costs(share, 30.0, 5.0, found)
    at = Thresholds(min(one, two), max(one, two))
    lost = cost = reviewed = declined = stopped = 0.0
    for p, fraud, amount in zip(judged.probability, judged.is_fraud, judged.amount, strict=True):
        if p >= at.decline_at:
            declined += 1
            stopped += fraud
            cost += 0 if fraud else 30.0
        elif p >= at.review_at:
            reviewed += 1
            cost += 5.0
            stopped += found * fraud
            lost += (1 - found) * amount * share * fraud
        elif fraud:
            lost += amount * share
    made = outcome(judged, at, costs)
    days = judged.days
    assert made.reviewed_day == pytest.approx(reviewed / days)
    assert made.declined_day == pytest.approx(declined / days)
    assert made.money_lost_day == pytest.approx(lost / days)
    assert made.cost_day == pytest.approx((cost + lost) / days)
    assert made.frauds_stopped == pytest.approx(stopped / max(judged.is_fraud.sum(), 1))


@pytest.mark.parametrize("room", [0.0, 3.0, 50.0])
def test_no_thresholds_within_the_capacity_are_cheaper(room):
    judged, costs = drawn(3), Costs()
    best = outcome(judged, best_thresholds(judged, costs, reviews_day=room), costs)
    assert best.reviewed_day <= room
    steps = candidates(judged)
    for low in steps:
        for high in steps:
            if low <= high:
                other = outcome(judged, Thresholds(low, high), costs)
                assert other.reviewed_day > room or other.cost_day >= best.cost_day - 1e-9


def test_more_room_for_reviews_never_costs_more_where_it_is_chosen():
    judged, costs = drawn(4), Costs()
    spent = [
        outcome(judged, best_thresholds(judged, costs, reviews_day=room), costs).cost_day
        for room in (0, 1, 5, 20, 80)
    ]
    assert spent == sorted(spent, reverse=True)


def test_where_mistakes_are_dear_and_people_are_none_everything_passes():
    judged = drawn(5)
    best = best_thresholds(judged, Costs(fraud_loss_share=0.0), reviews_day=0)
    assert outcome(judged, best, Costs()).declined_day == 0
    assert best.review_at == float("inf")


@pytest.mark.parametrize(
    "wrong", [{"found": 1.2}, {"fraud_loss_share": -0.1}, {"decline": -1.0}, {"review": -1.0}]
)
def test_costs_that_mean_nothing_are_refused(wrong):
    with pytest.raises(TrainingError, match="Costs"):
        Costs(**wrong)


def test_the_command_tells_what_to_put_into_the_policy(tmp_path):
    bank, home, plot = small_bank(tmp_path / "bank"), tmp_path / "models", tmp_path / "cost.svg"
    call("train", "risk", "--data", bank, "--quick", "--repository", home)
    words = ("evaluate", "thresholds", "--data", bank, "--model", "1", "--repository", home)
    told = call(*words, "--reviews-day", "5", "--plot", plot)
    assert "[thresholds]\nreview_at = 0." in told
    assert plot.read_text().startswith("<?xml")
    about = json.loads(call(*words, "--reviews-day", "5", "--json"))
    assert about["chosen"]["thresholds"]["review_at"] <= about["chosen"]["thresholds"]["decline_at"]
    assert about["no person"]["reviewed_day"] == 0
    costs = [each["reviewed_day"] for each in about["curve"]]
    assert costs == sorted(costs, reverse=True)
