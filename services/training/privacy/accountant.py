"""What Gaussian noise buys: Gaussian differential privacy, whose conversion and composition are exact.

A release is mu-GDP where telling two neighbouring data sets apart by it is no easier than telling N(0, 1)
from N(mu, 1) by one draw. A Gaussian mechanism of noise multiplier z (standard deviation over L2 sensitivity)
is 1/z-GDP, and releases one after another, each chosen by the ones before, compose to
mu_total^2 = sum of mu_i^2. Nothing is lost to a bound, as it is with Rényi or moments accountants.

Sources:
    Dong, Roth, Su 2022, Gaussian differential privacy, JRSS B 84 (Theorem 2.7, Corollaries 2.13 and 3.3).
    Balle and Wang 2018, Improving the Gaussian mechanism for differential privacy, ICML (Theorem 8).
"""

import math
from collections.abc import Callable, Iterable

from scipy.special import log_ndtr, ndtr, ndtri

from services.training.errors import TrainingError

EPSILON_MAX = 100.0  # e^-100 of doubt is no privacy, and far below what a float can tell apart
_HALVINGS = 200  # a bisection of floats is over long before


def delta_of(epsilon: float, mu: float) -> float:
    """The smallest delta with which mu-GDP is (epsilon, delta)-DP: 0 to 1."""
    if mu <= 0:
        return 0.0
    above = math.exp(log_ndtr(-epsilon / mu + mu / 2))
    # e^epsilon overflows where its partner underflows: they meet as logarithms.
    below = math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
    return max(above - below, 0.0)


def epsilon_of(mu: float, delta: float) -> float:
    """The smallest epsilon >= 0 with which mu-GDP is (epsilon, delta)-DP, rounded up; inf above 100.

    Raises:
        TrainingError: delta is not between 0 and 1.
    """
    _check_delta(delta)
    if delta_of(EPSILON_MAX, mu) > delta:
        return math.inf
    if delta_of(0.0, mu) <= delta:
        return 0.0
    return _bisect(lambda epsilon: delta_of(epsilon, mu) > delta, 0.0, EPSILON_MAX)[1]


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu whose GDP is (epsilon, delta)-DP, rounded down.

    Raises:
        TrainingError: epsilon is not above 0 and at most 100, or delta not between 0 and 1.
    """
    _check_delta(delta)
    if not 0 < epsilon <= EPSILON_MAX:
        raise TrainingError(f"Epsilon must lie above 0 and at most {EPSILON_MAX:g}, not {epsilon:g}.")
    return _bisect(lambda mu: delta_of(epsilon, mu) <= delta, 0.0, 2 * EPSILON_MAX)[0]


def noise_multiplier(epsilon: float, delta: float, releases: int = 1) -> float:
    """Standard deviation over L2 sensitivity that `releases` equal Gaussian mechanisms need together.

    Raises:
        TrainingError: as `mu_of`; or no release.
    """
    if releases < 1:
        raise TrainingError("A noise multiplier is of at least one release.")
    return math.sqrt(releases) / mu_of(epsilon, delta)


def composed(spent: Iterable[float]) -> float:
    """The mu of all releases together, each of which may have been chosen by the ones before."""
    return math.hypot(*spent)


def best_auc(mu: float) -> float:
    """What no attack on one unit exceeds, whatever else the attacker knows: an AUC, 0.5 to 1."""
    return float(ndtr(mu / math.sqrt(2)))


def best_rate(mu: float, false_alarms: float) -> float:
    """The share of units present that no attack exceeds at this share of false alarms, 0 to 1."""
    return float(ndtr(mu + ndtri(false_alarms)))


def _bisect(is_low: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """The neighbouring floats between which `is_low` turns from true to false."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if is_low(middle) else (low, middle)
    return low, high


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise TrainingError(f"Delta must lie between 0 and 1, not {delta:g}.")
