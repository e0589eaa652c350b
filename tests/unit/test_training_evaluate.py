"""The figures are what their sources say, checked against scikit-learn and small cases by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from services.training import evaluate as ev
from services.training.errors import TrainingError

DAY = ev.DAY_MS


def rows(seed: int = 1, row_count: int = 4000, ties: bool = False) -> ev.Sample:
    random = np.random.default_rng(seed)
    fraud = random.random(row_count) < 0.05
    score = random.normal(size=row_count) + 1.5 * fraud
    if ties:
        score = np.round(score)
    probability = 1 / (1 + np.exp(-(score - 3)))
    return ev.Sample.of(
        score, fraud, random.integers(0, 300, row_count), random.integers(0, 7 * DAY, row_count), probability
    )


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_figures_equal_scikit_learn_with_and_without_ties_and_weights(ties):
    sample = rows(ties=ties)
    weight = np.random.default_rng(3).integers(0, 4, len(sample.score)).astype(float)
    for given in (None, weight):
        assert ev.auc_roc(sample.score, sample.is_fraud, given) == pytest.approx(
            roc_auc_score(sample.is_fraud, sample.score, sample_weight=given), abs=1e-12
        )
        assert ev.average_precision(sample.score, sample.is_fraud, given) == pytest.approx(
            average_precision_score(sample.is_fraud, sample.score, sample_weight=given), abs=1e-12
        )


def test_probability_figures_equal_scikit_learn():
    sample = rows()
    assert ev.brier(sample.probability, sample.is_fraud) == pytest.approx(
        brier_score_loss(sample.is_fraud, sample.probability)
    )
    assert ev.log_loss(sample.probability, sample.is_fraud) == pytest.approx(
        log_loss(sample.is_fraud, sample.probability)
    )


def handbook_card_precision(sample: ev.Sample, k: int) -> float:
    """The Handbook's definition, card by card, with plain Python."""
    found, daily = set(), []
    day = sample.event_ms // DAY
    for one in sorted(set(day.tolist())):
        best, hit = {}, {}
        for row in np.flatnonzero(day == one).tolist():
            card = int(sample.account[row])
            if card not in found:
                best[card] = max(best.get(card, -1e9), float(sample.score[row]))
                hit[card] = hit.get(card, False) or bool(sample.is_fraud[row])
        top = sorted(best, key=lambda card: (-best[card], card))[:k]
        daily.append(sum(hit[card] for card in top) / k)
        found |= {card for card in top if hit[card]}
    return float(np.mean(daily))


@pytest.mark.parametrize("k", [5, 20, 100])
def test_card_precision_follows_the_handbook_card_by_card(k):
    sample = rows(seed=k)
    assert ev.card_precision(sample, k) == pytest.approx(handbook_card_precision(sample, k))


def test_a_found_card_is_not_found_twice():
    sample = ev.Sample.of([0.9, 0.1, 0.9, 0.1], [True, False, True, False], [1, 2, 1, 2], [0, 0, DAY, DAY])
    assert ev.card_precision(sample, 1) == 0.5


def test_perfect_probabilities_have_no_calibration_error_and_shifted_ones_do():
    random = np.random.default_rng(5)
    probability = random.random(200_000)
    fraud = random.random(200_000) < probability
    assert ev.calibration_error(probability, fraud) < 0.005
    assert ev.calibration_error(np.clip(probability + 0.1, 0, 1), fraud) == pytest.approx(0.1, abs=0.01)


def test_intervals_hold_the_value_and_repeat_with_the_seed():
    sample = rows()
    one, two = ev.evaluate(sample, draws=60, seed=4), ev.evaluate(sample, draws=60, seed=4)
    assert one == two
    assert set(one.metrics) == {
        "auc_roc", "average_precision", "card_precision_100", "calibration_error", "brier", "log_loss",
    }  # fmt: skip
    for name in ("auc_roc", "average_precision", "brier", "log_loss"):
        interval = one.metrics[name]
        assert interval.low < interval.value < interval.high


def test_intervals_widen_when_an_accounts_rows_repeat_each_other():
    """Copies within an account add no knowledge: the interval by account stays, by row it would shrink."""
    sample = rows(row_count=1000)
    copied = ev.Sample.of(
        *(
            np.repeat(column, 10)
            for column in (sample.score, sample.is_fraud, sample.account, sample.event_ms)
        )
    )
    wide, same = (ev.evaluate(s, draws=100, seed=2).metrics["auc_roc"] for s in (sample, copied))
    assert same.high - same.low == pytest.approx(wide.high - wide.low, rel=1e-6)


@pytest.mark.parametrize(
    ("score", "fraud", "words"),
    [
        ([0.1, 0.2], [False, False], "both classes"),
        ([0.1, np.nan], [True, False], "finite"),
        ([0.1], [True, False], "one entry"),
    ],
)
def test_bad_rows_are_refused_in_one_line(score, fraud, words):
    with pytest.raises(TrainingError, match=words):
        ev.Sample.of(score, fraud, np.arange(len(fraud)), np.zeros(len(fraud)))
