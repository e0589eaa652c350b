"""Undo: a rolled-back epoch has never been, row by row, slot by slot and feature by feature."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.slow_features import DAY_MS
from tests.support.states import START_MS, frauds_of, labels, payments, random_payments, streams, whole
from weir.features.accounts import Accounts
from weir.features.columns import Payments
from weir.features.terminals import Terminals, observe
from weir.state import undo
from weir.state.rows import OutOfEpoch
from weir.state.table import StateFull


class Pair:
    """An `Accounts` and a `Terminals`, driven in step; what they were when each open epoch began."""

    def __init__(self, rows_start: int = 1) -> None:
        self.accounts = Accounts(rows_max=64, rows_start=rows_start)
        self.terminals = Terminals(rows_max=64, rows_start=rows_start)

    def begin(self, epoch: int) -> None:
        self.accounts.begin(epoch)
        self.terminals.begin(epoch)

    def roll_back(self, epoch: int) -> None:
        self.accounts.roll_back(epoch)
        self.terminals.roll_back(epoch)

    def release(self, epoch: int) -> None:
        self.accounts.release(epoch)
        self.terminals.release(epoch)

    def apply(self, what: str, row: tuple) -> list[float]:
        if what == "pay":
            return observe(self.accounts, self.terminals, payments([row]))[0].tolist()
        if what == "label":
            return [self.accounts.learn(labels([row])), self.terminals.learn(labels([row]))]
        batch = payments([row])
        self.terminals.enter(batch.terminal, (batch.event_ms // 3_600_000).astype(np.int32))
        return []

    @property
    def whole(self) -> tuple:
        return whole(self.accounts), whole(self.terminals)


@settings(deadline=None, max_examples=200)
@given(
    streams(accounts=12, terminals=8),
    st.lists(
        st.sampled_from(["", "", "", "begin", "begin", "release", "back", "back all", "pin"]), max_size=60
    ),
    st.integers(0, 2**16),
)
def test_what_was_rolled_back_has_never_been(stream: list[tuple], orders: list[str], foreign: int) -> None:
    """The same steps without those of rolled-back epochs give the same rows, slots, clocks and features."""
    undone, plain = Pair(), Pair(rows_start=64)
    epoch, released = 0, 0
    open_epochs: list[tuple[int, list[tuple]]] = []
    pin = None

    def settle(steps: list[tuple]) -> None:
        for what, row, got in steps:
            assert plain.apply(what, row) == got

    for index, (what, row) in enumerate(stream):
        order = orders[index] if index < len(orders) else ""
        if order == "begin" or not open_epochs:
            epoch += 1
            undone.begin(epoch)
            open_epochs.append((epoch, []))
        elif order == "release":
            released, steps = open_epochs.pop(0)
            undone.release(released)
            settle(steps)
            if not open_epochs:
                assert undone.whole == plain.whole
                continue
        elif order.startswith("back"):
            first = 0 if order == "back all" else len(open_epochs) - 1
            epoch = open_epochs[first][0]
            undone.roll_back(epoch)
            del open_epochs[first:]
            epoch -= 1  # its number comes again, as after an aborted transaction
            if not open_epochs:
                assert undone.whole == plain.whole
                continue
        elif order == "pin":
            if pin is not None:
                pin.close()
            pin = undone.accounts.pin()
        if what == "pay" and (foreign >> index % 16) & 1:
            what = "enter"
        open_epochs[-1][1].append((what, row, undone.apply(what, row)))
    for _, steps in open_epochs:
        settle(steps)
    assert undone.whole == plain.whole


@settings(deadline=None, max_examples=60)
@given(streams(accounts=12, terminals=8, size=40), st.integers(1, 6))
def test_changed_rows_are_those_that_changed(stream: list[tuple], steps: int) -> None:
    """Against a comparison of all rows, over one epoch and over several."""
    pair = Pair()
    before: dict[int, list[bytes]] = {}
    for epoch, at in enumerate(range(0, len(stream), steps), 1):
        before[epoch] = whole(pair.accounts)[0]
        pair.begin(epoch)
        for what, row in stream[at : at + steps]:
            pair.apply(what, row)
        now = whole(pair.accounts)[0]
        for since in (epoch, 1):
            old = before[since]
            changed = [row for row, each in enumerate(now) if row >= len(old) or old[row] != each]
            got = pair.accounts.changed_rows(since).tolist()
            assert len(got) == len(set(got))
            # A second payment may put back what was there (a saturated count); it is still written.
            assert set(changed) <= set(got)
            assert set(got) <= {int(row) for row in range(len(now))}


def test_an_epoch_larger_than_many_segments_is_undone() -> None:
    """Twenty thousand accounts in two epochs; growth, several segments, new rows in the second."""
    accounts, terminals = Accounts(rows_max=50_000, rows_start=1), Terminals(rows_max=5_000)
    first = random_payments(1, 60_000, accounts=20_000, terminals=2_000, days=20)
    accounts.begin(1)
    terminals.begin(1)
    observe(accounts, terminals, first)
    accounts.release(1)
    terminals.release(1)
    held = whole(accounts), whole(terminals)
    for epoch in (2, 3):
        accounts.begin(epoch)
        terminals.begin(epoch)
        batch = random_payments(epoch, 60_000, accounts=30_000, terminals=3_000, days=5, first_day=20)
        observe(accounts, terminals, batch)
        accounts.learn(frauds_of(batch, 3))
        terminals.learn(frauds_of(batch, 3))
    assert accounts.row_count > 25_000
    assert accounts.rows.capacity >= accounts.row_count
    accounts.roll_back(2)
    terminals.roll_back(2)
    assert (whole(accounts), whole(terminals)) == held
    assert not accounts.rows.used(accounts.row_count, 50_000).any()


def test_what_is_kept_is_given_up_on_release() -> None:
    """A thousand epochs, each released two later: memory stays that of a few."""
    accounts, terminals = Accounts(rows_max=5_000), Terminals(rows_max=500)
    sizes = []
    for epoch in range(1, 1_001):
        accounts.begin(epoch)
        terminals.begin(epoch)
        observe(
            accounts,
            terminals,
            random_payments(epoch, 200, accounts=3_000, terminals=300, days=0.01, first_day=epoch / 100),
        )
        accounts.release(epoch - 2)
        terminals.release(epoch - 2)
        sizes.append(accounts.nbytes - accounts.row_count * accounts.rows.row_bytes)
    assert max(sizes[100:]) - min(sizes[100:]) <= 6 * undo.SEGMENT_ROWS * 520


def test_epochs_out_of_turn_are_refused() -> None:
    accounts = Accounts(rows_max=10)
    accounts.begin(3)
    with pytest.raises(OutOfEpoch, match="epoch 3 cannot begin after 3"):
        accounts.begin(3)
    accounts.release(3)
    with pytest.raises(OutOfEpoch, match="is released"):
        accounts.roll_back(3)
    with pytest.raises(OutOfEpoch, match="has not begun"):
        accounts.changed_rows(3)
    accounts.roll_back(9)
    accounts.begin(9)
    accounts.begin(10)
    accounts.roll_back(9)
    accounts.begin(9)


def test_a_full_table_says_whether_changes_are_outstanding() -> None:
    """With an epoch open nothing is evicted; once released, what no window sees makes room."""
    accounts, terminals = Accounts(rows_max=4), Terminals(rows_max=10)
    accounts.begin(1)
    terminals.begin(1)
    observe(accounts, terminals, payments([(each, 1, 10_000, START_MS, 0) for each in (1, 2, 3, 4)]))
    late = payments([(4, 1, 10_000, START_MS + 50 * DAY_MS, 0), (5, 1, 10_000, START_MS + 50 * DAY_MS, 0)])
    with pytest.raises(StateFull, match="uncommitted changes keep old ones") as caught:
        observe(accounts, terminals, late)
    assert caught.value.outstanding
    accounts.release(1)
    terminals.release(1)
    observe(accounts, terminals, late.rows(slice(1, 2)))
    assert accounts.row_count == 2


def test_stamps_that_come_round_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last generation the next epoch must keep every row, whatever its stamp was."""
    monkeypatch.setattr(undo, "GENERATION_MAX", 3)
    pair = Pair()
    row = (1, 1, 10_000, START_MS, 0)
    for epoch in range(1, 12):
        pair.begin(epoch)
        held = pair.whole
        pair.apply("pay", row)
        pair.roll_back(epoch)
        assert pair.whole == held
        pair.begin(epoch)
        pair.apply("pay", row)
        pair.release(epoch)


def test_nothing_is_kept_where_no_epoch_ever_began() -> None:
    accounts, terminals = Accounts(rows_max=1000), Terminals(rows_max=1000)
    batch: Payments = random_payments(5, 20_000, accounts=900, terminals=900, days=3)
    observe(accounts, terminals, batch)
    assert accounts.nbytes == accounts.row_count * 512 + accounts.rows.table.slots.nbytes
