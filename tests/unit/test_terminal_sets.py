"""A terminals' table is a function of the set of payments and labels that entered it."""

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.slow_features import DAY_MS, HOUR_MS
from tests.support.states import START_MS, labels, payments, streams
from weir.features.accounts import Accounts
from weir.features.spec import FeatureSpec
from weir.features.terminals import Terminals, observe


def held(terminals: Terminals) -> dict[int, bytes]:
    """What is known of each terminal: rows brought to the floor, expired ones left out, stamps zero."""
    while terminals.evict():
        pass
    # A fraud label at the row's newest hour touches it, which empties what lies before the floor.
    rows = terminals.rows.block.copy()
    names, hours = rows.view(np.uint64)[:, 0].copy(), rows.view(np.int32)[:, 2].astype(np.int64)
    if names.size:
        terminals.learn(
            labels(
                [
                    (1, int(n), int(h) * HOUR_MS, int(h) * HOUR_MS, True)
                    for n, h in zip(names, hours, strict=True)
                ]
            )
        )
    return terminals.rows.content()


@settings(deadline=None, max_examples=250)
@given(streams(terminals=3, size=40), st.randoms(use_true_random=False), st.sampled_from([0, 7, 30]))
def test_any_order_gives_the_same_table(stream: list[tuple], random, delay: int) -> None:
    """Own and foreign batches, labels before and after their payments, very late ones, evictions between."""
    spec = FeatureSpec(label_delay_days=delay)
    tables = []
    for shuffled in (False, True, True):
        terminals, accounts = Terminals(spec, rows_max=50, rows_start=1), Accounts(spec, rows_max=50)
        steps = list(stream)
        if shuffled:
            random.shuffle(steps)
        for what, row in steps:
            if shuffled and random.random() < 0.2:
                terminals.evict()
            if what == "label":
                terminals.learn(labels([row]))
            elif random.random() < 0.5:
                observe(accounts, terminals, payments([row]))
            else:
                batch = payments([row])
                terminals.enter(batch.terminal, (batch.event_ms // HOUR_MS).astype(np.int32))
        tables.append((held(terminals), terminals.clock.tolist()))
    assert tables[0] == tables[1] == tables[2]


@settings(deadline=None, max_examples=100)
@given(streams(terminals=3, size=40), st.randoms(use_true_random=False))
def test_two_workers_that_read_the_same_know_the_same(stream: list[tuple], random) -> None:
    """Each decides half and lets the other's half enter; then both see a payment with the same features."""
    workers = [(Accounts(rows_max=50), Terminals(rows_max=50)) for _ in range(2)]
    backlog: list[list[tuple]] = [[], []]

    def catch_up(worker: int, count: int) -> None:
        for what, row in backlog[worker][:count]:
            if what == "label":
                workers[worker][1].learn(labels([row]))
            else:
                batch = payments([row])
                workers[worker][1].enter(batch.terminal, (batch.event_ms // HOUR_MS).astype(np.int32))
        del backlog[worker][:count]

    for what, row in stream:
        if what == "label":
            backlog[0].append((what, row))
            backlog[1].append((what, row))
        else:
            mine = row[0] % 2
            observe(*workers[mine], payments([row]))
            backlog[1 - mine].append((what, row))
        catch_up(random.randint(0, 1), random.randint(0, 5))
    catch_up(0, len(stream))
    catch_up(1, len(stream))
    newest = max(row[3] for what, row in stream if what == "pay")
    probes = payments([(9, terminal, 10_000, newest + at, 0) for terminal in (1, 2, 3) for at in (0, DAY_MS)])
    seen = [observe(Accounts(rows_max=10), terminals, probes) for _, terminals in workers]
    assert np.array_equal(*seen)


def test_a_terminal_that_has_fallen_behind_holds_no_day_before_the_floor() -> None:
    """Days 61 and 70 of one terminal, day 100 of another, whose floor is day 62: in any order the same."""
    days = {"old": (1, 61), "late": (1, 70), "newest": (2, 100)}
    tables, seen = [], []
    for order in permutations(days):
        terminals = Terminals(rows_max=10)
        for name in order:
            terminal, day = days[name]
            observe(
                Accounts(rows_max=10),
                terminals,
                payments([(1, terminal, 10_000, START_MS + day * DAY_MS, 0)]),
            )
        probe = payments([(1, 1, 10_000, START_MS + 71 * DAY_MS, 0)])
        seen.append(observe(Accounts(rows_max=10), terminals, probe)[0].tolist())
        tables.append(held(terminals))
    assert all(table == tables[0] for table in tables)
    assert all(features == seen[0] for features in seen)


def test_a_foreign_batch_enters_as_an_own_one() -> None:
    """In one call, with growth, against observing the same payments."""
    rng = np.random.default_rng(4)
    rows = [
        (1, int(rng.integers(1, 400)), 10_000, START_MS + int(rng.integers(0, 50 * DAY_MS)), 0)
        for _ in range(5000)
    ]
    own, foreign = Terminals(rows_max=1000, rows_start=1), Terminals(rows_max=1000, rows_start=1)
    batch = payments(rows)
    observe(Accounts(rows_max=10), own, batch)
    foreign.enter(batch.terminal, (batch.event_ms // HOUR_MS).astype(np.int32))
    assert held(own) == held(foreign)
