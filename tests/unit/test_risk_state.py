"""Labels and a partition's state: each label is learnt once, and the changelog tells what the mark claims."""

import numpy as np

from services.risk.state import MARK_KEY, Owed, RiskState, StateTopics
from weir.features.columns import Labels, Payments
from weir.kafka.records import rows_of
from weir.streams import journal
from weir.streams.journal import Mark

AT_MS = 1_700_000_000_000


def state() -> RiskState:
    return RiskState(StateTopics("accounts", "journal"), accounts_max=1000, terminals_max=1000, owner="me")


def payments(*accounts: int) -> Payments:
    count = len(accounts)
    return Payments(
        account=np.array(accounts, np.uint64),
        terminal=np.full(count, 7, np.uint64),
        amount=np.full(count, 10_000, np.int64),
        event_ms=np.full(count, AT_MS, np.int64),
        channel=np.zeros(count, np.int8),
    )


def fraud(*accounts: int) -> Labels:
    count = len(accounts)
    return Labels(
        account=np.array(accounts, np.uint64),
        terminal=np.full(count, 7, np.uint64),
        event_ms=np.full(count, AT_MS, np.int64),
        reported_ms=np.full(count, AT_MS, np.int64),
        is_fraud=np.ones(count, np.bool_),
    )


def logged(of: RiskState, epoch: int, *partitions: int) -> tuple[dict[bytes, bytes], Mark]:
    """The changelog's rows of the only partition that changed, and its mark."""
    (output,) = of.changelog(epoch, partitions, 0)
    rows = {key: value for key, value, _ in rows_of(output)}
    return rows, journal.decode(rows.pop(MARK_KEY), Mark, "test")


def test_labels_that_a_partition_is_owed_enter_its_changelog_with_the_next_group():
    elsewhere = state()
    elsewhere.attach(0, elsewhere.new_accounts(), 0, {})
    elsewhere.begin(1)
    elsewhere.observe(0, payments(1, 2), 0, 2)
    accounts = elsewhere.accounts[0]
    elsewhere.release(1)

    here = state()
    here.positions.labels[0] = 1
    here.attach(0, accounts, 2, {0: 1}, Owed({}, [fraud(1)]))
    assert here.owes
    assert here.mark(0, here.positions).labels == {}
    here.begin(2)
    here.pay()
    here.observe(0, payments(2), 2, 3)
    rows, mark = logged(here, 2, 0)
    assert {int.from_bytes(key, "little") for key in rows} == {1, 2}
    assert mark.labels == {0: 1}
    here.roll_back(2)
    assert here.owes
    assert here.mark(0, here.positions).labels == {}
    here.begin(3)
    here.pay()
    again, mark = logged(here, 3)
    assert [int.from_bytes(key, "little") for key in again] == [1]
    assert mark.labels == {0: 1}
    here.release(3)
    assert not here.owes


def test_a_label_is_learnt_once_by_a_partition_that_came_while_its_epoch_was_open():
    moved = state()
    moved.attach(1, moved.new_accounts(), 0, {})
    moved.begin(1)
    moved.observe(1, payments(5), 0, 1)
    moved.learn(fraud(5), 0, np.array([0]), 1)
    keys, values = moved.accounts[1].encode_rows(moved.accounts[1].changed_rows(1))
    moved.release(1)
    knows = moved.accounts[1].rows.content()

    here = state()
    here.begin(1)
    here.learn(fraud(5), 0, np.array([0]), 1)
    restored = here.new_accounts()
    restored.restore_rows(keys.to_list(), values.to_list())
    here.attach(1, restored, 1, {0: 1})
    here.roll_back(1)
    here.begin(2)
    here.learn(fraud(5), 0, np.array([0]), 1)
    assert here.accounts[1].rows.content() == knows
