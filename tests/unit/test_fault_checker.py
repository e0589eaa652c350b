"""The checker of the fault tests finds each anomaly by its name, and nothing in a history without one."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.faults.checker import (
    Anomaly,
    Batch,
    Decided,
    History,
    Input,
    Letter,
    Place,
    Row,
    Sent,
    Wire,
    anomalies,
    check,
)
from tests.faults.schedule import FAULTS, Kind, Part, Schedule

PARTITIONS, PER_PARTITION = 2, 6
POISON = Place(1, 3)
SECRET = b"an account number"


def account(place):
    return f"account-{place.partition}-{place.offset % 2}"


def clean() -> History:
    """Two partitions of six payments of two accounts each, one of them poison; markers between decisions."""
    places = [Place(part, number) for part in range(PARTITIONS) for number in range(PER_PARTITION)]
    inputs = [
        Input(place, f"event-{place}", account(place)) if place != POISON else Input(place, decidable=False)
        for place in places
    ]
    decisions = [
        Decided(
            Place(each.place.partition, 2 * each.place.offset),
            each.place,
            each.event_id,
            each.account,
            f"id of {each.place}".encode(),
            float(each.place.offset),
        )
        for each in inputs
        if each.decidable
    ]
    ids = {each.place: each.record_id for each in decisions}
    rows = [
        Row(Place(part, number), account(Place(part, number)).encode(), number)
        for part in range(PARTITIONS)
        for number in range(PER_PARTITION)
    ]
    return History(
        sent=[Sent(each.event_id, each.place, each.decidable) for each in inputs],
        inputs=inputs,
        decisions=decisions,
        letters=[Letter(Place(1, 0), POISON, "not_avro", b"id of the poison")],
        decisions_uncommitted={**ids, Place(0, 1): b"aborted"},
        seen_live=dict(ids),
        committed=dict.fromkeys(range(PARTITIONS), PER_PARTITION),
        expected_logits={each.source: float(each.source.offset) for each in decisions},
        rows=rows,
        expected_rows={(each.place.partition, each.key): each.state for each in rows},
        marks=dict.fromkeys(range(PARTITIONS), PER_PARTITION),
        journal=[
            Batch(Place(part, number), 3 * number, 3 * number + 3)
            for part in range(PARTITIONS)
            for number in range(PER_PARTITION // 3)
        ],
        wire=[Wire("decisions", each.place, b"sealed " + each.record_id) for each in decisions],
        secrets={"an account": SECRET},
    )


def found(history):
    return anomalies(check(history))


def test_a_history_without_an_anomaly_has_no_finding():
    assert check(clean()) == []


def test_a_payment_without_an_acknowledgement_may_be_missing():
    history = clean()
    history.sent = [*history.sent, Sent("never answered", None)]
    assert check(history) == []


def test_an_acknowledged_payment_that_is_not_on_its_topic_is_a_lost_write():
    history = clean()
    history.sent = [*history.sent, Sent("acknowledged", Place(0, PER_PARTITION))]
    assert found(history) == {Anomaly.LOST_WRITE}


def test_another_payment_where_an_acknowledged_one_should_lie_is_a_lost_write():
    history = clean()
    history.sent = [*history.sent[1:], Sent("overwritten", Place(0, 0))]
    assert found(history) == {Anomaly.LOST_WRITE}


def test_an_input_that_was_passed_without_a_decision_is_a_lost_write():
    history = clean()
    gone = history.decisions[2]
    history.decisions = [each for each in history.decisions if each is not gone]
    history.seen_live = {place: seen for place, seen in history.seen_live.items() if place != gone.place}
    (finding,) = check(history)
    assert finding.anomaly is Anomaly.LOST_WRITE
    assert finding.examples == (str(gone.source),)


def test_an_input_that_nobody_came_to_is_unseen():
    history = clean()
    history.inputs = [*history.inputs, Input(Place(0, PER_PARTITION), "late", "account-0-0")]
    assert found(history) == {Anomaly.UNSEEN}


def test_two_decisions_for_one_input_are_a_duplicate_and_no_order_error():
    history = clean()
    again = replace(history.decisions[0], place=Place(0, 100))
    history.decisions = [*history.decisions, again]
    assert found(history) == {Anomaly.DUPLICATE}


def test_the_same_event_sent_twice_is_two_inputs_and_no_duplicate():
    history = clean()
    place = Place(0, PER_PARTITION)
    again = replace(history.decisions[0], place=Place(0, 100), source=place, logit=None)
    history.inputs = [*history.inputs, replace(history.inputs[0], place=place)]
    history.decisions = [*history.decisions, again]
    history.committed = history.marks = {0: PER_PARTITION + 1, 1: PER_PARTITION}
    history.journal = [*history.journal, Batch(Place(0, 9), PER_PARTITION, PER_PARTITION + 1)]
    assert check(history) == []


@pytest.mark.parametrize("source", [POISON, Place(0, 0)], ids=["again", "beside its decision"])
def test_a_second_end_of_an_input_among_the_dead_letters_is_a_duplicate(source):
    history = clean()
    history.letters = [*history.letters, Letter(Place(1, 1), source, "event_in_future", b"another")]
    history.letters_may_hold = frozenset({"event_in_future"})
    assert found(history) == {Anomaly.DUPLICATE}


def test_a_decision_of_an_aborted_transaction_that_a_committed_reader_saw_is_an_aborted_read():
    history = clean()
    history.seen_live = {**history.seen_live, Place(0, 1): b"aborted"}
    (finding,) = check(history)
    assert finding.anomaly is Anomaly.ABORTED_READ
    assert "aborted" in finding.what


def test_a_decision_that_a_committed_reader_saw_and_that_is_gone_is_an_aborted_read():
    history = clean()
    history.seen_live = {**history.seen_live, Place(0, 99): b"gone"}
    assert found(history) == {Anomaly.ABORTED_READ}


def test_a_decision_beyond_the_committed_offset_is_inconsistent():
    history = clean()
    history.committed = {0: PER_PARTITION - 1, 1: PER_PARTITION}
    assert found(history) == {Anomaly.INCONSISTENT_OFFSETS}


def test_a_group_without_any_offset_though_it_decided_is_inconsistent():
    history = clean()
    history.committed = {}
    assert found(history) == {Anomaly.INCONSISTENT_OFFSETS}


def test_an_offset_behind_the_end_of_the_input_is_inconsistent():
    history = clean()
    history.committed = history.marks = {0: PER_PARTITION + 50, 1: PER_PARTITION}
    assert found(history) == {Anomaly.INCONSISTENT_OFFSETS}


def test_decisions_of_an_account_out_of_the_order_of_its_payments_are_an_order_error():
    history = clean()
    first, second = (
        each for each in history.decisions if each.account == "account-0-0" and each.source.offset < 4
    )
    swapped = [replace(first, place=second.place), replace(second, place=first.place)]
    history.decisions = [*swapped, *(each for each in history.decisions if each not in (first, second))]
    history.seen_live = {each.place: each.record_id for each in history.decisions}
    assert found(history) == {Anomaly.ORDER_ERROR}


def test_an_account_in_two_partitions_is_an_order_error():
    history = clean()
    moved = replace(history.decisions[0], place=Place(1, 200))
    history.decisions = [moved, *history.decisions[1:]]
    history.seen_live = {each.place: each.record_id for each in history.decisions}
    assert found(history) == {Anomaly.ORDER_ERROR}


def test_a_score_on_another_state_than_the_recomputed_one_is_a_different_state():
    history = clean()
    history.decisions = [replace(history.decisions[0], logit=0.001), *history.decisions[1:]]
    assert found(history) == {Anomaly.STATE_DIFFERS}


def test_a_decision_without_a_model_has_no_score_to_compare():
    history = clean()
    history.decisions = [replace(history.decisions[0], logit=None), *history.decisions[1:]]
    assert check(history) == []


@pytest.mark.parametrize(
    "rows",
    [
        lambda rows: [replace(rows[-1], state="another"), *rows[:-1]],
        lambda rows: [each for each in rows if each.key != rows[-1].key],
        lambda rows: [*rows, Row(Place(0, 99), b"account of nobody", 1)],
        lambda rows: [*rows, replace(rows[0], place=Place(0, 99))],
        lambda rows: [*rows, Row(Place(0, 99), rows[0].key, None)],
    ],
    ids=["another row", "a row missing", "a row too many", "an old row over a new one", "a tombstone"],
)
def test_a_changelog_that_differs_from_the_recomputed_rows_is_a_different_state(rows):
    history = clean()
    history.rows = rows(list(history.rows))
    assert found(history) == {Anomaly.STATE_DIFFERS}


def test_a_state_that_stands_for_another_offset_than_the_group_committed_is_inconsistent():
    history = clean()
    history.marks = {0: PER_PARTITION, 1: PER_PARTITION - 2}
    assert found(history) == {Anomaly.INCONSISTENT_OFFSETS}


def test_a_batch_that_stands_in_the_journal_twice_is_a_duplicate():
    history = clean()
    history.journal = [*history.journal, Batch(Place(0, 9), 3, 6)]
    assert found(history) == {Anomaly.DUPLICATE}


def test_a_batch_that_is_missing_in_the_journal_is_a_lost_write():
    history = clean()
    history.journal = [each for each in history.journal if each.place != Place(0, 0)]
    assert found(history) == {Anomaly.LOST_WRITE}


def test_a_known_secret_in_any_byte_is_plaintext_on_the_wire():
    history = clean()
    history.wire = [*history.wire, Wire("journal", Place(1, 7), b"\0\1" + SECRET + b"\2")]
    (finding,) = check(history)
    assert finding.anomaly is Anomaly.PLAINTEXT
    assert finding.examples == ("journal 1/7",)
    assert SECRET.decode() not in str(finding)


@pytest.mark.parametrize(
    "change",
    [
        {"source": Place(0, 77)},
        {"source": POISON},
        {"event_id": "another's"},
        {"account": "another's"},
    ],
)
def test_a_decision_without_its_input_is_unfounded(change):
    history = clean()
    moved = replace(history.decisions[-1], place=Place(1, 300), logit=None, **change)
    history.decisions = [*history.decisions, moved]
    history.committed = history.marks = {0: 78, 1: PER_PARTITION}
    assert Anomaly.UNFOUNDED in found(history)


def test_a_dead_letter_of_a_sound_payment_is_unfounded_unless_the_run_allows_its_reason():
    history = clean()
    odd = history.decisions[0]
    history.decisions = history.decisions[1:]
    history.seen_live = {each.place: each.record_id for each in history.decisions}
    history.letters = [*history.letters, Letter(Place(1, 1), odd.source, "event_in_future", b"x")]
    assert found(history) == {Anomaly.UNFOUNDED}
    history.letters_may_hold = frozenset({"event_in_future"})
    assert check(history) == []


def test_a_record_that_does_not_open_is_unreadable():
    history = clean()
    history.unreadable = [("weir.decisions", Place(0, 4))]
    assert found(history) == {Anomaly.UNREADABLE}


# --- the schedule ---


def test_a_schedule_is_a_function_of_its_seed():
    assert Schedule.from_seed(7, broker_count=3) == Schedule.from_seed(7, broker_count=3)
    assert len({Schedule.from_seed(seed, broker_count=3) for seed in range(50)}) == 50


def test_a_schedule_shows_its_seed_and_each_of_its_faults():
    schedule = Schedule.from_seed(11, faults=[Kind.WORKER_KILLED, Kind.POISON])
    shown = str(schedule)
    assert "seed 11" in shown
    assert Kind.WORKER_KILLED in shown
    assert Kind.POISON in shown


def test_a_schedule_says_which_fault_cannot_be_done_here():
    asked = [Kind.WORKER_KILLED, Kind.WORKER_DISK_FULL, Kind.BROKER_ISOLATED, Kind.BROKER_CLOCK_JUMP]
    schedule = Schedule.from_seed(1, faults=asked, has_disks=False, has_clocks=False)
    assert [each.kind for each in schedule.faults] == [Kind.WORKER_KILLED]
    assert schedule.left_out == tuple(asked[1:])
    assert str(schedule).count("left out") == 3


def test_no_two_brokers_are_hurt_at_once_and_nothing_is_hurt_that_is_not_there():
    for seed in range(300):
        schedule = Schedule.from_seed(seed, broker_count=3)
        brokers = [each for each in schedule.faults if FAULTS[each.kind].part is Part.BROKER]
        for one, next_one in pairwise(brokers):
            assert one.at_s + one.seconds < next_one.at_s
        assert {each.kind for each in Schedule.from_seed(seed).faults} <= {
            kind for kind, need in FAULTS.items() if need.brokers == 1
        }
        without = Schedule.from_seed(seed, broker_count=3, has_disks=False, has_clocks=False)
        assert not any(FAULTS[each.kind].disk or FAULTS[each.kind].clock for each in without.faults)


def test_seeds_bring_every_fault_and_two_at_once():
    schedules = [Schedule.from_seed(seed, broker_count=3) for seed in range(200)]
    assert {each.kind for schedule in schedules for each in schedule.faults} == set(Kind)
    assert any(
        one.at_s + one.seconds > two.at_s for schedule in schedules for one, two in pairwise(schedule.faults)
    )
