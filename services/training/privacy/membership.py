"""Can a model tell whose payments it was trained on? Two attacks, on models with and without noise.

Half of the accounts are members: a model is trained on their rows of the training window. The rows of the
other half, of the same window, are the non-members. The attacker holds rows of both and asks which is which.

    loss        a row on which the model errs little is taken for a member (Yeom et al. 2018)
    likelihood  how much surer the model is of a row's label than models trained without it (LiRA, offline)

For the second, shadow models are trained on halves of the same accounts, always two halves that complete each
other: so each row is outside half of them. The spread is that of all rows together, as the paper advises for
few shadow models. An account's score is the mean of its rows'.

This finds leaks and proves no privacy: a stronger attack may do better, where the guarantee bounds all.

Sources:
    Yeom, Giacomelli, Fredrikson, Jha 2018, Privacy risk in machine learning, CSF.
    Carlini, Chien, Nasr, Song, Terzis, Tramèr 2022, Membership inference attacks from first principles, S&P.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray

from services.training.additive import Floats, Floats32
from services.training.errors import TrainingError
from services.training.evaluate import Interval, Ranking
from services.training.fit import Plan, Recipe, Rows, grow
from services.training.privacy.boost import PrivateRecipe, Protected, boost
from services.training.privacy.noise import Noise
from services.training.privacy.units import Unit

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
FALSE_ALARMS = 0.01
SHADOWS = 8

Logits = Callable[[Floats32], Floats]
Maker = Callable[["Pool", Bools, int], Logits]


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows of accounts that may or may not be trained on.

    x: (n, F) float32. is_fraud: (n,) bool. owner: (n,) int64 from 0, without gaps.
    """

    x: Floats32
    is_fraud: Bools
    owner: Ints

    @classmethod
    def of(
        cls, x: Floats32, is_fraud: Bools, account: NDArray[np.uint64], accounts_max: int, seed: int
    ) -> "Pool":
        """The rows of at most `accounts_max` accounts, drawn at random.

        Raises:
            TrainingError: fewer than 20 accounts, or fewer than 20 frauds among their payments.
        """
        owner = np.unique(account, return_inverse=True)[1].astype(np.int64)
        size = int(owner.max()) + 1 if len(owner) else 0
        drawn = np.random.default_rng(seed).permutation(size)[:accounts_max]
        kept = np.isin(owner, drawn)
        frauds = int(is_fraud[kept].sum())
        if len(drawn) < 20 or frauds < 20:
            raise TrainingError(
                f"An attack needs 20 accounts and 20 known frauds; there are {len(drawn):,} and {frauds:,}."
            )
        return cls(x[kept], is_fraud[kept], np.unique(owner[kept], return_inverse=True)[1].astype(np.int64))

    @property
    def size(self) -> int:
        """Accounts."""
        return int(self.owner.max()) + 1

    def half(self, seed: int) -> Bools:
        """(size,) bool: half of the accounts, at random; frauds are in both halves, or it draws again."""
        random = np.random.default_rng(seed)
        while True:
            chosen = random.permutation(self.size) < self.size // 2
            inside = chosen[self.owner]
            if self.is_fraud[inside].any() and self.is_fraud[~inside].any():
                return chosen

    def sure(self, logits: Logits) -> Floats:
        """(n,) the logit of the probability that the model gives each row's own label."""
        return np.where(self.is_fraud, 1.0, -1.0) * logits(self.x)


@dataclass(frozen=True, slots=True)
class Attack:
    """How well one attack tells members of one model.

    of: what is guessed about: payments, frauds alone, or accounts. auc: 0.5 is guessing. caught: share of
    members found at 1 % false alarms; 0.01 is guessing.
    """

    model: str
    attack: str
    of: str
    auc: Interval
    caught: Interval

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def caught(ranking: Ranking, weight: Floats | None = None, false_alarms: float = FALSE_ALARMS) -> float:
    """Share of members found while at most `false_alarms` of the non-members are taken for one, 0 to 1."""
    drawn = np.ones(len(ranking.order)) if weight is None else weight[ranking.order]
    member = np.cumsum(drawn * ranking.is_fraud)[ranking.last]
    other = np.cumsum(drawn * (1 - ranking.is_fraud))[ranking.last]
    allowed = other <= false_alarms * other[-1]
    return float(member[allowed][-1] / member[-1]) if allowed.any() else 0.0


def attack(
    pool: Pool, makers: Mapping[str, Maker], *, shadows: int = SHADOWS, draws: int = 200, seed: int = 7
) -> list[Attack]:
    """Both attacks on every kind of model, with 95 % intervals from `draws` resamplings of the accounts.

    Args:
        makers: by name, what trains on the rows marked True and gives logits.
        shadows: models a kind, an even number from 2.
    Raises:
        TrainingError: no even number of shadow models.
    """
    if shadows < 2 or shadows % 2:
        raise TrainingError(f"Shadow models come in pairs: an even number from 2, not {shadows}.")
    member = pool.half(seed)
    inside = member[pool.owner]
    halves = [pool.half(seed + 1 + pair) for pair in range(shadows // 2)]
    found = []
    for name, make in makers.items():
        sure = pool.sure(make(pool, inside, seed))
        total, squares = np.zeros(len(sure)), np.zeros(len(sure))
        for number, half in enumerate([side for chosen in halves for side in (chosen, ~chosen)]):
            trained_on = half[pool.owner]
            outside = np.where(trained_on, 0.0, pool.sure(make(pool, trained_on, seed + 101 + number)))
            total += outside
            squares += outside**2
        mean = total / (shadows // 2)
        spread = float(np.sqrt(np.maximum(squares / (shadows // 2) - mean**2, 0).mean()))
        scores = {"loss": sure, "likelihood": (sure - mean) / max(spread, 1e-9)}
        for each, score in scores.items():
            found += _judged(name, each, score, pool, member, draws, seed)
    return found


def _judged(
    model: str, name: str, score: Floats, pool: Pool, member: Bools, draws: int, seed: int
) -> list[Attack]:
    """One figure pair each for payments, frauds and accounts."""
    payments = np.bincount(pool.owner, minlength=pool.size)
    everyone = np.arange(pool.size)
    frauds = np.flatnonzero(pool.is_fraud)
    views = {
        "payments": (score, pool.owner),
        "frauds": (score[frauds], pool.owner[frauds]),
        "accounts": (np.bincount(pool.owner, score, pool.size) / payments, everyone),
    }
    found = []
    for what, (told, owner) in views.items():
        ranking, random = Ranking(told, member[owner]), np.random.default_rng(seed)
        drawn = []
        for _ in range(draws):
            copies = np.bincount(random.integers(0, pool.size, pool.size), minlength=pool.size)
            weight = copies.astype(np.float64)[owner]
            drawn.append((ranking.auc_roc(weight), caught(ranking, weight)))
        low, high = np.nanpercentile(np.array(drawn), (2.5, 97.5), axis=0)
        area = Interval(ranking.auc_roc(), float(low[0]), float(high[0]))
        found.append(
            Attack(model, name, what, area, Interval(caught(ranking), float(low[1]), float(high[1])))
        )
    return found


def overfitted(threads: int) -> Maker:
    """Free trees that learn every row by heart: what the attacks must find, or they are worth nothing."""

    def make(pool: Pool, inside: Bools, seed: int) -> Logits:
        parameters = {
            "objective": "binary", "learning_rate": 0.2, "num_leaves": 127, "min_data_in_leaf": 1,
            "min_sum_hessian_in_leaf": 1e-6, "num_threads": threads, "seed": seed, "deterministic": True,
            "force_col_wise": True, "verbosity": -1,
        }  # fmt: skip
        data = lightgbm.Dataset(pool.x[inside], pool.is_fraud[inside].astype(np.int8))
        booster = lightgbm.train(parameters, data, 100)

        def logits(x: Floats32) -> Floats:
            return np.asarray(booster.predict(x, raw_score=True), np.float64)

        return logits

    return make


def usual(features: tuple[str, ...], plan: Plan, recipe: Recipe) -> Maker:
    """The additive model of `weir train risk`, by a plan that was made once."""

    def make(pool: Pool, inside: Bools, seed: int) -> Logits:
        return grow(Rows.of(pool.x[inside], pool.is_fraud[inside]), features, plan, recipe).logit

    return make


def private(
    features: tuple[str, ...], mu: float, unit: Unit, per_account: int, recipe: PrivateRecipe
) -> Maker:
    """The private model; its noise is seeded, since nothing of it leaves the attack."""

    def make(pool: Pool, inside: Bools, seed: int) -> Logits:
        noise = Noise(seed)
        owner = pool.owner[inside].astype(np.uint64)
        rows = Protected.of(pool.x[inside], pool.is_fraud[inside], owner, unit, per_account, noise)
        return boost(rows, features, mu, recipe, noise).model.logit

    return make
