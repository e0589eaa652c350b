"""Forgetting what no window sees: no feature can tell, and a table stays whole under it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.slow_features import DAY_MS
from tests.support.states import START_MS, labels, payments, random_payments, streams, whole
from weir.features.accounts import Accounts
from weir.features.columns import Payments
from weir.features.spec import FEATURES, FeatureSpec
from weir.features.terminals import Terminals, observe
from weir.state.rows import OutOfEpoch, Rows
from weir.state.table import StateFull


@settings(deadline=None, max_examples=200)
@given(streams(accounts=5, terminals=4), st.randoms(use_true_random=False), st.sampled_from([0, 7, 30]))
def test_no_feature_tells_whether_anything_was_evicted(stream: list[tuple], random, delay: int) -> None:
    """Evicting at random moments against never; late and very late payments and labels included."""
    spec = FeatureSpec(label_delay_days=delay)
    kept = Accounts(spec, rows_max=100), Terminals(spec, rows_max=100)
    thin = Accounts(spec, rows_max=100), Terminals(spec, rows_max=100)
    for what, row in stream:
        if random.random() < 0.5:
            thin[0].evict(thin[0].expired(random.randint(1, 3)))
            thin[1].evict(random.randint(1, 3))
        if what == "label":
            assert kept[0].learn(labels([row])) == thin[0].learn(labels([row]))
            assert kept[1].learn(labels([row])) == thin[1].learn(labels([row]))
        else:
            assert np.array_equal(observe(*kept, payments([row])), observe(*thin, payments([row])))


def test_an_account_unseen_for_the_whole_ring_is_new_again() -> None:
    """38 whole days with the default delay: at 38 it is still known, on the day after it is not."""
    for days, age in ((38, 30.0), (39, 0.0)):
        accounts, terminals = Accounts(rows_max=10), Terminals(rows_max=10)
        later = START_MS + days * DAY_MS
        rows = [(1, 1, 10_000, START_MS, 0), (1, 1, 10_000, later, 0), (1, 1, 10_000, later, 0)]
        features = observe(accounts, terminals, payments(rows))
        assert features[1, FEATURES.index("account_age_days")] == age
        assert features[2, FEATURES.index("account_age_days")] == age
        assert features[2, FEATURES.index("account_count_30d")] == 1


def test_expired_accounts_are_found_in_bounded_steps_and_all_in_the_end() -> None:
    """200,000 accounts of which nine in ten are old: each call looks at a part."""
    accounts, terminals = Accounts(rows_max=200_000), Terminals(rows_max=10)
    ids = (np.arange(1, 200_001, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    old = np.arange(ids.size) % 10 != 0
    for part, day in ((np.flatnonzero(old), 0), (np.flatnonzero(~old), 60)):
        n = part.size
        observe(
            accounts,
            terminals,
            Payments(
                ids[part],
                np.ones(n, np.uint64),
                np.full(n, 10_000),
                np.full(n, START_MS + day * DAY_MS),
                np.zeros(n, np.int8),
            ),
        )
    rounds = 0
    while accounts.row_count > 20_000:
        keys = accounts.expired(30_000)
        assert keys.size <= 30_000
        tombstones = accounts.tombstones(keys)
        assert tombstones[1].to_list() == [None] * keys.size
        assert accounts.evict(keys) == keys.size
        rounds += 1
        assert rounds < 40
    assert accounts.evicted_total == 180_000
    assert (accounts.rows.find(ids[old]) == -1).all()
    assert np.array_equal(np.sort(accounts.rows.find(ids[~old])), np.arange(20_000))
    assert not accounts.rows.used(20_000, 200_000).any()
    assert accounts.expired(10).size == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=200), st.integers(2, 63))
def test_every_key_is_found_after_any_puts_and_removals(steps: list[tuple[bool, int]], shift: int) -> None:
    """Keys that share their slots' low bits and lie in long runs, against a dict."""
    table = Rows("thing", 64, row_start=1, row_max=50, hour_at=4, stamp_at=5, clock=np.zeros(1, np.int64))
    expected: dict[int, int] = {}
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    for step, (put, number) in enumerate(steps):
        # Undone, the multiplication of the slots' hash lets keys collide as one likes.
        key = (((number % 7) << 20 | number << shift) * inverse) % 2**64 or 1
        if put:
            row = np.zeros((1, 64), np.uint8)
            row.view(np.uint64)[0, :2] = key, step
            table.put(row, 0)
            expected[key] = step
        else:
            assert table.remove(np.array([key], np.uint64)) == (
                1 if expected.pop(key, None) is not None else 0
            )
        keys = np.array(list(expected), np.uint64)
        rows = table.find(keys)
        assert (rows >= 0).all()
        assert table.table.u64[rows, 1].tolist() == list(expected.values())
        assert table.row_count == len(expected)


def test_nothing_is_forgotten_while_a_change_is_outstanding_or_a_snapshot_runs() -> None:
    accounts, terminals = Accounts(rows_max=10), Terminals(rows_max=10)
    rows = [(1, 1, 10_000, START_MS, 0), (2, 2, 10_000, START_MS + 90 * DAY_MS, 0)]
    accounts.begin(1)
    terminals.begin(1)
    observe(accounts, terminals, payments(rows))
    with pytest.raises(OutOfEpoch, match="while changes are outstanding"):
        accounts.evict(np.array([1], np.uint64))
    accounts.release(1)
    terminals.release(1)
    with accounts.pin():
        assert accounts.expired(10).size == 0
        with pytest.raises(OutOfEpoch, match="while changes are outstanding"):
            accounts.restore_rows([b"x" * 8], [None])
    assert accounts.expired(10).tolist() == [1]
    assert accounts.evict(accounts.expired(10)) == 1
    assert terminals.evict() == 1
    assert accounts.evicted_total == terminals.evicted_total == 1


def test_memory_of_what_was_forgotten_is_given_back() -> None:
    """Rows behind the last one are zero, and new accounts take their place."""
    accounts, terminals = Accounts(rows_max=50_000), Terminals(rows_max=1_000)
    observe(accounts, terminals, random_payments(1, 100_000, accounts=40_000, terminals=900, days=2))
    before = whole(accounts)
    newest = random_payments(2, 10, accounts=10, terminals=5, days=1, first_day=90)
    observe(accounts, terminals, newest)
    keys = accounts.expired(100_000)
    while keys.size:
        accounts.evict(keys)
        keys = accounts.expired(100_000)
    assert accounts.row_count < 20
    assert not accounts.rows.used(accounts.row_count, 50_000).any()
    again, other = Accounts(rows_max=50_000), Terminals(rows_max=1_000)
    observe(again, other, random_payments(1, 100_000, accounts=40_000, terminals=900, days=2))
    assert whole(again) == before


def test_a_changelog_of_more_accounts_than_fit_is_restored_without_those_that_expired() -> None:
    """Three crowds, fifty days apart, that fill the table in turn; nobody wrote a tombstone."""
    keys: list[bytes | None] = []
    values: list[bytes | None] = []
    live, terminals = Accounts(rows_max=30), Terminals(rows_max=10)
    for crowd in range(3):
        names = np.arange(1 + 100 * crowd, 31 + 100 * crowd, dtype=np.uint64)
        at = START_MS + 50 * crowd * DAY_MS
        observe(live, terminals, payments([(int(name), 1, 10_000, at, 0) for name in names]))
        columns = live.encode_rows(live.rows.find(names))
        keys += columns[0].to_list()
        values += columns[1].to_list()
    assert live.evicted_total == 60
    for batch in (7, 90):
        restored = Accounts(rows_max=30, rows_start=1)
        taken = [
            restored.restore_rows(keys[at : at + batch], values[at : at + batch])
            for at in range(0, 90, batch)
        ]
        assert sum(taken) == 90
        assert restored.rows.content() == live.rows.content()
    with pytest.raises(StateFull, match="all 29 rows"):
        Accounts(rows_max=29).restore_rows(keys, values)


def test_a_full_table_leaves_out_rows_that_no_window_sees_and_refuses_those_that_one_does() -> None:
    """A row's hour is its third 64-bit word here; the table holds two of hour 9."""
    table = Rows("thing", 64, row_start=1, row_max=2, hour_at=4, stamp_at=6, clock=np.zeros(1, np.int64))

    def put(*rows: tuple[int, int]) -> None:
        block = np.zeros((len(rows), 64), np.uint8)
        block.view(np.uint64)[:, 0] = [key for key, _ in rows]
        block.view(np.int32)[:, 4] = [hour for _, hour in rows]
        table.put(block, before_hour=5)

    put((1, 9), (2, 9))
    put((3, 4), (4, 4), (1, 10), (5, 0))
    assert sorted(table.content()) == [1, 2]
    assert table.table.i32[table.find(np.array([1], np.uint64)), 4] == 10
    with pytest.raises(StateFull):
        put((3, 4), (6, 5))
