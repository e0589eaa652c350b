"""Attacks find what was learnt by heart, and find nothing where nothing was learnt."""

import numpy as np
import pytest

from services.training.errors import TrainingError
from services.training.evaluate import Ranking
from services.training.privacy.accountant import mu_of
from services.training.privacy.boost import PrivateRecipe
from services.training.privacy.membership import Pool, attack, caught, overfitted, private
from services.training.privacy.units import Unit

ABC = ("a", "b", "c")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """100 accounts of 12 payments whose frauds nothing foretells: they can only be learnt by heart."""
    random = np.random.default_rng(4)
    account = np.repeat(np.arange(100, dtype=np.uint64), 12)
    x = random.normal(size=(len(account), 3)).astype(np.float32)
    return Pool.of(x, random.random(len(account)) < 0.2, account, 100, 1)


@pytest.fixture(scope="module")
def found(pool):
    """Both attacks on an overfitted and on a private model."""
    makers = {
        "overfitted": overfitted(1),
        "private": private(ABC, mu_of(1.0, 1e-6), Unit.ACCOUNT, 12, PrivateRecipe(rounds=4)),
    }
    every = attack(pool, makers, shadows=4, draws=50)
    return {(each.model, each.attack, each.of): each for each in every}


@pytest.mark.parametrize("name", ["loss", "likelihood"])
def test_both_attacks_find_the_members_of_an_overfitted_model(found, name):
    assert found["overfitted", name, "payments"].auc.low > 0.7
    assert found["overfitted", name, "frauds"].auc.low > 0.7
    assert found["overfitted", name, "accounts"].auc.low > 0.8
    assert found["overfitted", name, "accounts"].caught.value > 0.2


@pytest.mark.parametrize("name", ["loss", "likelihood"])
def test_neither_attack_finds_the_members_of_a_private_model(found, name):
    for what in ("payments", "frauds", "accounts"):
        each = found["private", name, what]
        assert each.auc.value == pytest.approx(0.5, abs=0.15)
        assert each.auc.high < found["overfitted", name, what].auc.low


def test_a_model_that_ignores_its_rows_gives_nothing_away(pool):
    blind = attack(pool, {"blind": lambda *_: lambda x: x[:, 0].astype(float)}, shadows=2, draws=20)
    rows = [each for each in blind if each.of == "payments"]
    assert [each.attack for each in rows] == ["loss", "likelihood"]
    assert rows[0].auc.low < 0.5 < rows[0].auc.high
    assert rows[1].auc.value == pytest.approx(0.5, abs=0.05)


def test_members_caught_at_one_percent_count_tied_rows_together():
    score = np.array([3.0, 2.0, 2.0, 1.0, 0.0])
    member = np.array([True, True, False, True, False])
    assert caught(Ranking(score, member), false_alarms=0.0) == pytest.approx(1 / 3)
    assert caught(Ranking(score, member), false_alarms=0.5) == pytest.approx(1.0)
    assert caught(Ranking(np.zeros(5), member), false_alarms=0.01) == 0.0


def test_a_row_is_outside_half_of_the_shadow_models(pool):
    seen = []

    def make(pool, inside, seed):
        seen.append(inside.copy())
        return lambda x: np.zeros(len(x))

    attack(pool, {"watched": make}, shadows=6, draws=1)
    assert (np.sum(seen[1:], axis=0) == 3).all()
    for inside in seen:
        whole = np.bincount(pool.owner, inside) / np.bincount(pool.owner)
        assert set(whole.tolist()) == {0.0, 1.0}  # accounts are never torn


def test_too_few_accounts_or_frauds_and_odd_shadows_are_refused(pool):
    account = np.arange(30, dtype=np.uint64)
    with pytest.raises(TrainingError, match="20 accounts and 20 known frauds"):
        Pool.of(np.zeros((30, 1), np.float32), np.arange(30) < 5, account, 30, 1)
    with pytest.raises(TrainingError, match="come in pairs"):
        attack(pool, {}, shadows=3)
