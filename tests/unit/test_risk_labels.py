"""Labels off the wire: one of the future is refused, by its record's time and no clock."""

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from services.risk.labels import AHEAD_MS_MAX, LabelReading
from tests.support.states import START_MS, payments, whole
from weir.codec.avro import RowCodec
from weir.codec.columns import LabelReader
from weir.codec.framing import frame
from weir.codec.schemas import load_schema
from weir.features.accounts import Accounts
from weir.features.columns import EVENT_MS_MAX
from weir.features.terminals import Terminals, observe
from weir.state.hashing import keyed_hash_list

LABEL = RowCodec(load_schema("label"))
KEY = bytes(16)


def value(event_ms: int, reported_ms: int | None = None) -> bytes:
    at, reported = (
        datetime.fromtimestamp(ms / 1000, UTC)
        for ms in (event_ms, event_ms if reported_ms is None else reported_ms)
    )
    label = {
        "event_id": "e",
        "account_id": "a",
        "terminal_id": "t",
        "event_time": at,
        "reported_time": reported,
    }
    return frame(2, LABEL.encode({**label, "is_fraud": True, "source": "CHARGEBACK"}))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def read(registry) -> LabelReading:
    return LabelReading(LabelReader(), 2, KEY, registry)


def test_a_label_of_the_future_empties_no_window_and_is_counted_as_refused(read, registry):
    """The terminal's payment is as it was; a label of yesterday beside it is learnt."""
    accounts, terminals = Accounts(rows_max=10), Terminals(rows_max=10)
    where = int(keyed_hash_list([b"t"], KEY)[0])
    observe(accounts, terminals, payments([(1, where, 10_000, START_MS, 0)]))
    before = whole(terminals)
    labels, rows = read([value(EVENT_MS_MAX - 1)], [START_MS])
    terminals.learn(labels)
    assert whole(terminals) == before
    assert rows.size == 0
    assert registry.get_sample_value("weir_labels_total", {"service": "risk", "result": "refused"}) == 1
    labels, rows = read([value(EVENT_MS_MAX - 1), value(START_MS)], [START_MS, START_MS])
    assert rows.tolist() == [1]
    assert terminals.learn(labels) == 1


def test_a_payment_a_day_ahead_of_its_labels_record_is_the_last_that_is_taken(read):
    at, last = START_MS, START_MS + AHEAD_MS_MAX
    labels, rows = read([value(last), value(last + 1)], [at, at])
    assert rows.tolist() == [0]
    assert labels.event_ms.tolist() == [last]


def test_each_label_is_held_against_its_own_record_whatever_stands_between(read):
    """A record that is no label takes no timestamp away from the next one."""
    late, soon = START_MS + 2 * AHEAD_MS_MAX, START_MS
    _, rows = read([b"no label", value(late), None, value(late)], [late, soon, late, late])
    assert rows.tolist() == [3]


def test_a_label_may_have_been_reported_at_any_time_after_its_payment(read):
    """Windows go by the payment's time alone."""
    _, rows = read([value(START_MS, START_MS + 40 * AHEAD_MS_MAX)], [START_MS])
    assert rows.tolist() == [0]


def test_a_record_without_a_timestamp_says_nothing_of_now_and_its_label_is_refused(read):
    _, rows = read([value(START_MS)], [-1])
    assert rows.size == 0
