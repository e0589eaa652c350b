"""Updates in the clear: what is refused, what is cut, who is an outlier; and votes."""

import numpy as np
import pytest

from services.training.federate import aggregate
from services.training.federate.aggregate import Parts
from services.training.federate.errors import UpdateRefused
from services.training.federate.layout import Layout
from services.training.federate.plan import Plan

LAYOUT = Layout(("a", "b"), "spec")


def parts(weight: float = 10, seed: int = 1) -> Parts:
    random = np.random.default_rng(seed)
    counts = random.integers(0, 9, LAYOUT.cell_count).astype(np.float64)
    return Parts(weight, random.normal(size=LAYOUT.size), counts, np.array([0.5]))


def test_the_sum_of_packed_updates_is_the_mean_by_rows():
    one, two = parts(10, 1), parts(30, 2)
    both = aggregate.unpacked(one.packed() + two.packed(), LAYOUT, with_gains=True)
    assert both.weight == 40
    assert both.update == pytest.approx((10 * one.update + 30 * two.update) / 40)
    assert both.counts == pytest.approx(one.counts + two.counts)
    assert both.gains == pytest.approx([0.5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values[:-1], "an update here has"),
        (lambda values: np.append(values, 0), "an update here has"),
        (lambda values: np.where(np.arange(len(values)) == 7, np.nan, values), "not finite"),
        (lambda values: np.where(np.arange(len(values)) == 7, np.inf, values), "not finite"),
        (lambda values: np.where(np.arange(len(values)) == 0, -1, values), "fewer than no rows"),
        (lambda values: np.where(np.arange(len(values)) == 7, 1e9, values), "moves a logit"),
        (lambda values: np.where(np.arange(len(values)) > LAYOUT.size, -1, values), "fewer than no rows"),
    ],
)
def test_a_malformed_update_is_refused_in_one_line(change, words):
    with pytest.raises(UpdateRefused, match=words) as refused:
        aggregate.unpacked(change(parts().packed()), LAYOUT, with_gains=True)
    assert "\n" not in str(refused.value)


def test_other_features_order_cells_or_specification_make_another_layout():
    known = {
        LAYOUT.id,
        Layout(("b", "a"), "spec").id,
        Layout(("a", "b"), "other").id,
        Layout(("a", "b"), "spec", ((0, 1),)).id,
        Plan.layout().id,
    }
    assert len(known) == 5
    assert Layout(("a", "b"), "spec").id == LAYOUT.id


@pytest.mark.parametrize("banks", [3, 5])
def test_one_bank_that_sends_anything_cannot_leave_the_range_of_the_others(banks):
    random = np.random.default_rng(banks)
    honest = random.normal(size=(banks - 1, 200))
    for poison in (np.full(200, 1e9), np.full(200, -1e9), -honest[0] * 100):
        mean = aggregate.robust_mean(np.vstack([honest, poison]))
        assert (mean >= honest.min(axis=0)).all()
        assert (mean <= honest.max(axis=0)).all()


def test_an_update_scaled_by_100_is_cut_to_twice_the_median_length():
    random = np.random.default_rng(5)
    updates = random.normal(size=(3, 100))
    updates[1] *= 100
    lengths = np.linalg.norm(updates, axis=1)
    cut = np.linalg.norm(aggregate.clipped(updates), axis=1)
    assert cut[1] == pytest.approx(2 * np.median(lengths))
    assert cut[[0, 2]] == pytest.approx(lengths[[0, 2]])


def test_the_bank_far_from_all_others_is_the_outlier_and_unlike_banks_are_none():
    random = np.random.default_rng(6)
    common = random.normal(size=300)
    updates = common + random.normal(0, 0.5, (4, 300))
    assert not aggregate.outliers(updates, np.full(300, 1 / 300)).any()
    updates[2] *= 100
    assert aggregate.outliers(updates, np.full(300, 1 / 300)).tolist() == [False, False, True, False]


def test_cells_that_hardly_occur_make_no_outlier():
    random = np.random.default_rng(7)
    updates = random.normal(0, 0.1, (3, 50))
    updates[1, 49] = 20.0
    mass = np.full(50, 0.02)
    assert aggregate.outliers(updates, mass)[1]
    mass[49] = 1e-7
    assert not aggregate.outliers(updates, mass).any()


def test_of_two_banks_neither_is_called_an_outlier():
    assert not aggregate.outliers(np.array([[1.0, 2.0], [100.0, -50.0]]), np.ones(2)).any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (0.9, "better"),
        (1.0, "same"),
        (1.009, "same"),
        (1.2, "worse"),
        (float("nan"), "worse"),
        (float("inf"), "worse"),
    ],
)
def test_a_bank_votes_by_its_own_validation_losses(change, said):
    before = np.random.default_rng(1).uniform(0.01, 0.1, 1000)
    assert aggregate.vote(None, before, np.ones(1000)) == "first"
    assert aggregate.vote(before, before * change, np.ones(1000)) == said


def test_a_loss_that_one_row_of_few_makes_is_no_reason_to_vote_a_model_down():
    before = np.full(50, 0.05)
    now = before - 0.001
    now[7] = 0.5
    assert now.mean() > before.mean() * 1.01
    assert aggregate.vote(before, now, np.ones(50)) == "same"
    assert aggregate.vote(before, before + 0.01, np.ones(50)) == "worse"


def test_half_is_no_majority():
    assert not aggregate.majority(["worse", "same"], "worse")
    assert aggregate.majority({"A": "worse", "B": "worse", "C": "better"}, "worse")
    assert not aggregate.majority([], "worse")
