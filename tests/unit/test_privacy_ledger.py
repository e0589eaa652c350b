"""The budget ledger: set once, spent before it is used, never exceeded, and refused when it was changed."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.training.errors import TrainingError
from services.training.privacy import ledger as module
from services.training.privacy.accountant import epsilon_of, mu_of
from services.training.privacy.ledger import HEAD, LEDGER, Budget, BudgetRefused, Ledger, LedgerDamaged
from services.training.privacy.units import Unit

ONE, GROWN = "a" * 64, "b" * 64
BUDGET = Budget(Unit.ACCOUNT, 4.0, 1e-6)
AT = "2026-11-01T12:00:00+00:00"


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    """A ledger with a budget and two spends of epsilon 1."""
    ledger = Ledger(tmp_path)
    ledger.set_budget(ONE, BUDGET, at=AT)
    for _ in range(2):
        ledger.reserve(ONE, Unit.ACCOUNT, mu_of(1.0, 1e-6), at=AT)
    return ledger


def test_what_is_spent_and_left_composes_to_the_budget(ledger):
    account = ledger.account(ONE)
    assert account.mu == pytest.approx(2**0.5 * mu_of(1.0, 1e-6))
    assert 1.0 < account.epsilon_spent < 2.0  # composition costs less than the sum
    assert account.mu**2 + account.mu_left**2 == pytest.approx(BUDGET.mu**2)
    ledger.reserve(ONE, Unit.ACCOUNT, account.mu_left, at=AT)
    assert ledger.account(ONE).epsilon_left == pytest.approx(0.0, abs=1e-3)
    assert ledger.account(ONE).epsilon_spent == pytest.approx(4.0)


def test_a_run_beyond_the_budget_is_refused_with_what_is_left_and_spends_nothing(ledger):
    before = ledger.path.read_bytes()
    left = ledger.account(ONE).epsilon_left
    with pytest.raises(BudgetRefused, match=f"{left:.3f} is left of 4 at delta 1e-06") as caught:
        ledger.reserve(ONE, Unit.ACCOUNT, mu_of(4.0, 1e-6), at=AT)
    assert "\n" not in str(caught.value)
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("mu", [0.0, -1.0, float("nan"), float("inf")])
def test_a_run_whose_cost_is_no_cost_is_refused(ledger, mu):
    with pytest.raises(BudgetRefused):
        ledger.reserve(ONE, Unit.ACCOUNT, mu, at=AT)


def test_a_budget_is_set_once(ledger):
    with pytest.raises(BudgetRefused, match="set once"):
        ledger.set_budget(ONE, Budget(Unit.ACCOUNT, 50.0, 1e-6), at=AT)
    assert ledger.account(ONE).budget == BUDGET


def test_without_a_budget_nothing_is_spent(tmp_path):
    with pytest.raises(BudgetRefused, match="no budget is set"):
        Ledger(tmp_path).reserve(ONE, Unit.ACCOUNT, 0.1, at=AT)
    assert not list(tmp_path.iterdir())


def test_units_do_not_add_up(ledger):
    with pytest.raises(BudgetRefused, match="of one account, the run of one payment"):
        ledger.reserve(ONE, Unit.PAYMENT, 0.1, at=AT)
    with pytest.raises(BudgetRefused, match="another unit"):
        ledger.set_budget(GROWN, Budget(Unit.PAYMENT, 9.0, 1e-6), at=AT)


def test_events_that_grew_need_a_budget_of_their_own_and_bear_what_was_spent_before(ledger):
    with pytest.raises(BudgetRefused, match="as they are now"):
        ledger.reserve(GROWN, Unit.ACCOUNT, 0.01, at=AT)
    with pytest.raises(BudgetRefused, match="already, more than 1"):
        ledger.set_budget(GROWN, Budget(Unit.ACCOUNT, 1.0, 1e-6), at=AT)
    ledger.set_budget(GROWN, BUDGET, at=AT)
    assert ledger.account(GROWN).mu == ledger.account(ONE).mu
    ledger.reserve(GROWN, Unit.ACCOUNT, ledger.account(GROWN).mu_left, at=AT)
    with pytest.raises(BudgetRefused, match=r"0\.000 is left"):
        ledger.reserve(ONE, Unit.ACCOUNT, mu_of(0.5, 1e-6), at=AT)


def edit(ledger):
    text = ledger.path.read_text()
    mu = json.loads(text.splitlines()[1])["mu"]
    ledger.path.write_text(text.replace(str(mu), str(mu / 10), 1))


def edit_last(ledger):
    lines = ledger.path.read_text().splitlines()
    entry = json.loads(lines[-1])
    lines[-1] = json.dumps(entry | {"mu": entry["mu"] / 10}, sort_keys=True)
    ledger.path.write_text("\n".join(lines) + "\n")


def cut(ledger, first, last):
    lines = ledger.path.read_text().splitlines(keepends=True)
    ledger.path.write_text("".join(lines[:first] + lines[last:]))


DAMAGE = {
    "edited": edit,
    "last line edited": edit_last,
    "line cut out": lambda ledger: cut(ledger, 1, 2),
    "budget cut off": lambda ledger: cut(ledger, 0, 1),
    "end cut off": lambda ledger: cut(ledger, 2, 3),
    "torn": lambda ledger: ledger.path.write_bytes(ledger.path.read_bytes()[:-20]),
    "emptied": lambda ledger: ledger.path.write_bytes(b""),
    "deleted": lambda ledger: ledger.path.unlink(),
    "head deleted": lambda ledger: ledger.head_path.unlink(),
    "head of nothing": lambda ledger: ledger.head_path.write_text("0 " + "0" * 64),
    "no JSON": lambda ledger: ledger.path.write_bytes(b"\xff\xfe\n" + ledger.path.read_bytes()),
    "not a number": lambda ledger: ledger.path.write_text(
        ledger.path.read_text().replace('"epsilon": 4.0', '"epsilon": NaN')
    ),
    "no object": lambda ledger: ledger.path.write_text('["kind"]\n' + ledger.path.read_text()),
    "unknown kind": lambda ledger: ledger.path.write_text(
        ledger.path.read_text().replace('"kind": "spend"', '"kind": ["refund"]', 1)
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_changed_ledger_is_refused_and_never_begun_anew(ledger, case):
    DAMAGE[case](ledger)
    before = {path.name: path.read_bytes() for path in ledger.path.parent.iterdir()}
    for call in (
        lambda: ledger.account(ONE),
        lambda: ledger.reserve(ONE, Unit.ACCOUNT, 0.01, at=AT),
        lambda: ledger.set_budget(GROWN, BUDGET, at=AT),
    ):
        with pytest.raises(LedgerDamaged, match="restored from a copy"):
            call()
    assert {path.name: path.read_bytes() for path in ledger.path.parent.iterdir()} == before


def test_a_line_whose_head_the_power_took_still_counts(ledger):
    head = ledger.head_path.read_bytes()
    ledger.reserve(ONE, Unit.ACCOUNT, 0.1, at=AT)
    after = ledger.account(ONE)
    ledger.head_path.write_bytes(head)
    assert ledger.account(ONE) == after
    ledger.reserve(ONE, Unit.ACCOUNT, 0.1, at=AT)
    assert len(ledger.account(ONE).spent) == 4


def test_a_full_disk_leaves_the_ledger_as_it_was_and_pays_for_no_run(ledger, monkeypatch):
    before, write = ledger.path.read_bytes(), os.write
    monkeypatch.setattr(module.os, "write", lambda to, line: write(to, line[:10]))
    with pytest.raises(TrainingError, match="disk is full"):
        ledger.reserve(ONE, Unit.ACCOUNT, 0.1, at=AT)
    monkeypatch.undo()
    assert ledger.path.read_bytes() == before
    assert len(ledger.account(ONE).spent) == 2


def test_of_many_runs_at_once_only_those_that_fit_are_paid_for(tmp_path):
    """Each opens the ledger itself, so that the lock alone stands between them."""
    Ledger(tmp_path).set_budget(ONE, BUDGET, at=AT)
    mu = BUDGET.mu / 3**0.5  # three fit

    def run(_):
        try:
            return Ledger(tmp_path).reserve(ONE, Unit.ACCOUNT, mu, at=AT)
        except BudgetRefused:
            return None

    with ThreadPoolExecutor(8) as pool:
        paid = [name for name in pool.map(run, range(16)) if name]
    assert len(set(paid)) == 3
    account = Ledger(tmp_path).account(ONE)
    assert len(account.spent) == 3
    assert epsilon_of(account.mu, 1e-6) == pytest.approx(4.0)


def test_the_spend_is_on_the_disk_before_its_id_is_given(ledger, monkeypatch):
    synced = []
    monkeypatch.setattr(module.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    name = ledger.reserve(ONE, Unit.ACCOUNT, 0.1, at=AT)
    assert ledger.path.stat().st_ino in synced
    assert name in ledger.path.read_text()


def test_the_head_names_the_last_line_for_somebody_to_note(ledger):
    account = ledger.account(ONE)
    assert ledger.head_path.read_text() == f"{account.lines} {account.head}\n"
    assert {LEDGER, HEAD} == {path.name for path in ledger.path.parent.iterdir()}


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 1e-6), (1.0, 0.0), (1.0, 1.0), (1e9, 1e-6)])
def test_a_budget_out_of_range_is_refused_and_leaves_no_file(tmp_path, epsilon, delta):
    with pytest.raises(TrainingError, match="must lie"):
        Ledger(tmp_path).set_budget(ONE, Budget(Unit.ACCOUNT, epsilon, delta), at=AT)
    assert not list(tmp_path.iterdir())
