"""What noise buys is computed exactly: against integrals, published values, and a count of what was drawn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from services.training.errors import TrainingError
from services.training.privacy.accountant import (
    best_auc,
    best_rate,
    composed,
    delta_of,
    epsilon_of,
    mu_of,
    noise_multiplier,
)

EPSILONS = st.floats(0.01, 20)
DELTAS = st.floats(1e-12, 1e-2)


@pytest.mark.parametrize("mu", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0, 4.0])
def test_delta_is_the_mass_by_which_one_gaussian_stands_above_the_other(mu, epsilon):
    """The definition itself: the integral of p - e^epsilon q where it is positive."""
    edge = epsilon / mu + mu / 2  # where the two densities meet

    def gap(at):
        return stats.norm.pdf(at, mu) - math.exp(epsilon) * stats.norm.pdf(at)

    mass, error = integrate.quad(gap, edge, max(edge, mu) + 30, epsabs=1e-14, limit=200)
    assert delta_of(epsilon, mu) == pytest.approx(mass, abs=1e-12 + 2 * error)


def test_the_noise_is_that_of_the_published_analytic_mechanism():
    """Balle and Wang's own program gives these standard deviations for sensitivity 1."""
    assert noise_multiplier(1.0, 1e-5) == pytest.approx(3.7306, abs=1e-4)
    assert delta_of(1.0, 1.0) == pytest.approx(0.12693674, abs=1e-8)


@given(EPSILONS, DELTAS)
def test_there_and_back_gives_no_more_privacy_than_was_asked_for(epsilon, delta):
    mu = mu_of(epsilon, delta)
    assert delta_of(epsilon, mu) <= delta
    assert delta_of(epsilon, mu * (1 + 1e-6)) > delta
    assert epsilon_of(mu, delta) == pytest.approx(epsilon, rel=1e-6)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=8), DELTAS)
def test_releases_together_cost_more_than_each_and_less_than_their_sum(spent, delta):
    total = composed(spent)
    assert max(spent) <= total <= sum(spent) + 1e-12
    assert epsilon_of(total, delta) >= epsilon_of(max(spent), delta)


def test_two_gaussian_releases_are_told_apart_as_one_of_the_composed_mu():
    """Two draws of N(mu_i, 1) hold, along their best direction, one of N(total, 1)."""
    one, two = 0.6, 0.8
    random = np.random.default_rng(1)
    away, home = random.normal((one, two), size=(200_000, 2)), random.normal(size=(200_000, 2))
    direction = np.array([one, two]) / composed((one, two))
    cut = 1.0
    assert (away @ direction > cut).mean() == pytest.approx(stats.norm.sf(cut - 1.0), abs=0.005)
    assert (home @ direction > cut).mean() == pytest.approx(stats.norm.sf(cut), abs=0.005)
    assert composed((one, two)) == pytest.approx(1.0)


@pytest.mark.parametrize("mu", [0.2, 1.0, 2.5])
def test_the_best_attack_is_that_of_a_threshold_between_two_gaussians(mu):
    random = np.random.default_rng(2)
    inside, outside = random.normal(mu, size=100_000), random.normal(size=100_000)
    assert best_auc(mu) == pytest.approx((inside > outside).mean(), abs=0.006)
    cut = np.quantile(outside, 0.99)
    assert best_rate(mu, 0.01) == pytest.approx((inside > cut).mean(), abs=0.02)
    assert best_auc(0.0) == 0.5


def test_a_hundred_releases_take_ten_times_the_noise_of_one():
    assert noise_multiplier(2, 1e-6, 100) == pytest.approx(10 * noise_multiplier(2, 1e-6))


def test_extremes_neither_overflow_nor_turn_into_nothing():
    assert delta_of(90.0, 0.01) == 0.0
    assert delta_of(90.0, 30.0) == pytest.approx(1.0, abs=1e-9)
    assert epsilon_of(1e3, 1e-6) == math.inf
    assert epsilon_of(0.0, 1e-6) == 0.0
    assert composed(()) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 101.0, math.nan])
def test_an_epsilon_that_is_none_is_refused(epsilon):
    with pytest.raises(TrainingError, match="Epsilon must"):
        mu_of(epsilon, 1e-6)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, math.nan])
def test_a_delta_that_is_none_is_refused(delta):
    with pytest.raises(TrainingError, match="Delta must"):
        epsilon_of(1.0, delta)


def test_no_release_needs_no_multiplier():
    with pytest.raises(TrainingError, match="at least one"):
        noise_multiplier(1.0, 1e-6, 0)
