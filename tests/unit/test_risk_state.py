"""Labels and a partition's state: each label is learnt once, and the changelog tells what the mark claims."""

import random

import numpy as np
import pytest

from services.risk.changelog import MARK_KEY
from services.risk.positions import Owed
from services.risk.state import RiskState, StateTopics
from weir.features.accounts import Accounts
from weir.features.columns import Labels, Payments
from weir.kafka.records import ColumnOutput, rows_of
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


# -- against a state without epochs ------------------------------------------------------------------------


class Play:
    """Groups that touch few of many partitions, labels, and their undoing; and what has been committed."""

    def __init__(self, seed: int, partitions: int = 6) -> None:
        self.chance, self.partitions = random.Random(seed), partitions
        self.state, self.epoch, self.offset = state(), 0, 0
        self.labels = 0
        # What was done by now: for good, and by each epoch that may still be undone.
        self.done: list[tuple] = []
        self.open: list[tuple[int, list[tuple], list[ColumnOutput]]] = []
        self.logs: dict[int, list[tuple[bytes, bytes | None]]] = {number: [] for number in range(partitions)}
        for number in range(partitions):
            self.state.attach(number, self.state.new_accounts(), 0, {})

    def group(self) -> None:
        self.epoch += 1
        self.state.begin(self.epoch)
        deeds: list[tuple] = []
        for _ in range(self.chance.choice([0, 0, 1])):
            deeds.append(("learn", fraud(self.chance.randrange(1, 40)), self.labels))
            self.labels += 1
        for number in self.chance.sample(range(self.partitions), self.chance.randrange(3)):
            # An account pays by one partition.
            who = [self.partitions * self.chance.randrange(1, 6) + number for _ in range(2)]
            deeds.append(("pay", number, payments(*who), self.offset))
            self.offset += 2
        for deed in deeds:
            apply(self.state, deed)
        batches = [deed[1] for deed in deeds if deed[0] == "pay"]
        self.open.append((self.epoch, deeds, self.state.changelog(self.epoch, batches, 0)))

    def release(self) -> None:
        count = self.chance.randrange(1, len(self.open) + 1)
        self.state.release(self.open[count - 1][0])
        for _, deeds, outputs in self.open[:count]:
            self.done += deeds
            for output in outputs:
                self.logs[output.partition] += [(key, value) for key, value, _ in rows_of(output)]
        del self.open[:count]

    def roll_back(self) -> None:
        at = self.chance.randrange(len(self.open))
        self.state.roll_back(self.open[at][0])
        del self.open[at:]
        # What was undone is read again.
        self.labels = self.state.positions.labels.get(0, 0)

    def move_away_and_back(self) -> None:
        """Only what is committed comes back, so nothing may be in flight."""
        number = self.chance.randrange(self.partitions)
        accounts, at = self.state.accounts[number], self.state.positions.inputs[number]
        labels = dict(self.state.mark(number, self.state.positions).labels)
        self.state.drop(number)
        self.state.attach(number, accounts, at, labels)


def apply(to: RiskState, deed: tuple) -> None:
    if deed[0] == "learn":
        to.learn(deed[1], 0, np.array([deed[2]]), deed[2] + 1)
    else:
        _, number, batch, offset = deed
        to.observe(number, batch, offset, offset + 2)


def plain(deeds: list[tuple], partitions: int) -> RiskState:
    """The same without epochs, from the beginning."""
    found = state()
    for number in range(partitions):
        found.attach(number, found.new_accounts(), 0, {})
    for deed in deeds:
        apply(found, deed)
    return found


def tables(of: RiskState) -> list[dict[int, bytes]]:
    return [
        of.terminals.rows.content(),
        *(of.accounts[number].rows.content() for number in sorted(of.accounts)),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_a_state_of_many_partitions_is_what_was_done_less_what_was_undone(seed, tmp_path):
    """A partition begins an epoch only when it is touched; snapshot and changelog are as of the commit."""
    play = Play(seed)
    for step in range(50):
        deed = play.chance.random()
        if deed < 0.6 or not play.open:
            play.group()
        elif deed < 0.8:
            play.release()
        elif deed < 0.95:
            play.roll_back()
        if not play.open:
            play.move_away_and_back()
        if step % 5:
            continue
        expected = plain(
            [*play.done, *(each for _, deeds, _ in play.open for each in deeds)], play.partitions
        )
        assert tables(play.state) == tables(expected)
        assert play.state.positions.inputs == expected.positions.inputs
        assert play.state.positions.labels == expected.positions.labels
        committed = plain(play.done, play.partitions)
        for number, accounts in play.state.accounts.items():
            accounts.save(tmp_path / "accounts")
            saved, _ = Accounts.load(tmp_path / "accounts", rows_max=1000)
            assert saved.rows.content() == committed.accounts[number].rows.content()
            restored = play.state.new_accounts()
            rows = [(key, value) for key, value in play.logs[number] if key != MARK_KEY]
            restored.restore_rows([key for key, _ in rows], [value for _, value in rows])
            assert restored.rows.content() == committed.accounts[number].rows.content()
    assert {part.number for part in play.state._open} == {epoch for epoch, _, _ in play.open}


def test_a_group_touches_only_the_partitions_that_it_changes():
    """Of 64 partitions one has a payment and another a label; the others' tables see no epoch."""
    many = state()
    for number in range(64):
        many.attach(number, many.new_accounts(), 0, {})
    for number in (0, 3, 5):
        many.begin(number + 1)
        many.observe(number, payments(64 + number), 0, 1)
        many.release(number + 1)
    many.begin(10)
    many.learn(fraud(64 + 3), 0, np.array([0]), 1)
    many.observe(5, payments(64 + 5), 1, 2)
    assert {number for number, accounts in many.accounts.items() if accounts.rows.outstanding} == {3, 5}
    assert [output.partition for output in many.changelog(10, [5], 0)] == [3, 5]
