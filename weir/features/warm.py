"""Loads the state's compiled loops before a batch waits for one: each takes tens of milliseconds."""

import tempfile
from pathlib import Path

import numpy as np

from weir.features.accounts import Accounts
from weir.features.columns import Labels, Payments
from weir.features.spec import DEFAULT, FeatureSpec
from weir.features.terminals import Terminals, observe


def warm(spec: FeatureSpec = DEFAULT) -> None:
    """Take two made-up payments the whole way, through tables of their own: undo, log, snapshot, eviction."""
    accounts, terminals = Accounts(spec, rows_max=4, rows_start=1), Terminals(spec, rows_max=4, rows_start=1)
    who = np.array([1, 2], np.uint64)
    payments = Payments(who, who, np.array([1, 2]), np.array([0, 0]), np.zeros(2, np.int8))
    frauds = Labels(who, who, payments.event_ms, payments.event_ms, np.ones(2, np.bool_))
    for epoch in (1, 2):
        accounts.begin(epoch)
        terminals.begin(epoch)
        observe(accounts, terminals, payments)
        accounts.learn(frauds)
        terminals.learn(frauds)
        terminals.enter(who, np.zeros(2, np.int32))
    keys, values = accounts.encode_rows(accounts.changed_rows(1))
    accounts.release(1)
    with tempfile.TemporaryDirectory() as folder, accounts.pin() as saving:
        # Some rows have changed since: the writer gives their copies back.
        saving.write(Path(folder) / "warm")
    accounts.roll_back(2)
    terminals.roll_back(1)
    accounts.restore_rows(keys.to_list(), values.to_list())
    accounts.evict(who)
