"""What a caller may publish, and what of it may be seen."""

import dataclasses
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weir
from tests.support.decisions import ACCOUNT, decision_record
from weir.client.dead_letters import DeadLetter
from weir.client.records import Decision, Label, Position, Transaction, from_ms, to_ms
from weir.codec.avro import RowCodec
from weir.codec.schemas import load_schema
from weir.errors import BadInput

RAW = Position("weir.decisions", 2, 1042)
GOOD = {
    "event_id": "e1",
    "account_id": ACCOUNT,
    "terminal_id": "T1",
    "amount": Decimal("12.50"),
    "currency": "EUR",
    "event_time": datetime(2026, 3, 2, 9, 0, tzinfo=UTC),
    "channel": "POS",
}


def test_public_names_load_on_demand_and_are_all_there():
    for name in weir.__all__:
        assert getattr(weir, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        weir.nothing_like_it  # noqa: B018


def test_import_weir_loads_no_client_library():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, weir; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"aiokafka", "grpc", "fastavro", "pydantic", "cryptography"} & set(loaded)


def test_sdk_needs_no_part_of_the_services():
    """A reader installs `weir` alone: numpy, faust and sqlalchemy are not there."""
    code = "import sys, weir.client.dead_letters; from weir import Decisions, Publisher; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"faust", "numpy", "numba", "sqlalchemy", "tritonclient", "services"} & set(loaded)


def test_transaction_fits_its_schema():
    record = Transaction(**GOOD).to_avro()
    codec = RowCodec(load_schema("transaction"))
    decoded = codec.decode(codec.encode(record))
    assert decoded == record | {"amount": Decimal("12.5000")}


def test_label_fits_its_schema():
    label = Label(
        "e1", ACCOUNT, "T1", GOOD["event_time"], GOOD["event_time"] + timedelta(days=3), True, "CHARGEBACK"
    )
    codec = RowCodec(load_schema("label"))
    assert codec.decode(codec.encode(label.to_avro())) == label.to_avro()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("event_id", "", "missing_field"),
        ("event_id", "x" * 129, "bad_id"),
        ("account_id", "  ", "missing_field"),
        ("account_id", "a\nb", "bad_id"),
        ("terminal_id", None, "missing_field"),
        ("amount", 12.5, "bad_type"),
        ("amount", Decimal("-0.01"), "bad_amount"),
        ("amount", Decimal("NaN"), "bad_amount"),
        ("amount", Decimal("Infinity"), "bad_amount"),
        ("amount", Decimal(10) ** 15, "bad_amount"),
        ("amount", Decimal("0.00001"), "bad_amount"),
        ("currency", "eur", "bad_currency"),
        ("currency", "EURO", "bad_currency"),
        ("currency", "EUR\n", "bad_currency"),
        ("event_time", datetime(2026, 1, 1), "bad_time"),
        ("event_time", 1_700_000_000, "bad_type"),
        ("channel", "FAX", "bad_channel"),
        ("merchant_category", "59", "bad_merchant_category"),
        ("country", "Germany", "bad_country"),
        ("counterparty_id", "", "missing_field"),
    ],
)
def test_bad_field_is_refused_in_one_line_that_does_not_repeat_the_value(field, value, reason):
    with pytest.raises(BadInput) as caught:
        Transaction(**GOOD | {field: value})
    assert caught.value.reason == reason
    text = str(caught.value)
    assert field in text
    assert "\n" not in text
    assert ACCOUNT not in text


def test_label_before_its_payment_is_refused():
    with pytest.raises(BadInput, match="reported_time"):
        Label("e1", ACCOUNT, "T1", GOOD["event_time"], GOOD["event_time"] - timedelta(seconds=1), True)


def test_amount_with_trailing_zeros_is_not_too_precise():
    assert Transaction(**GOOD | {"amount": Decimal("12.500000")}).amount == Decimal("12.5")
    assert Transaction(**GOOD | {"amount": Decimal("1E+3")}).amount == 1000


def test_time_of_any_zone_is_the_same_moment():
    local = datetime(2026, 3, 2, 17, 0, tzinfo=timezone(timedelta(hours=8)))
    assert to_ms(local) == to_ms(datetime(2026, 3, 2, 9, 0, tzinfo=UTC))


@given(st.integers(min_value=-(10**13), max_value=10**14))
def test_milliseconds_survive(ms):
    assert to_ms(from_ms(ms)) == ms


def test_decision_has_the_types_it_promises():
    codec = RowCodec(load_schema("decision"))
    decision = Decision.from_avro(codec.decode(codec.encode(decision_record(2))), RAW)
    assert isinstance(decision.decision_id, uuid.UUID)
    assert decision.outcome is weir.Outcome.DECLINE
    assert decision.amount == Decimal("1234.56")
    assert decision.event_time.tzinfo is UTC or decision.event_time.utcoffset() == timedelta(0)
    assert decision.reasons[0].text("zh").startswith("金额")
    assert decision.reasons[0].text() == decision.reasons[0].text("en")
    assert decision.feature_ref.offset == 2
    assert str(decision.raw) == "weir.decisions[2]@1042"
    with pytest.raises(dataclasses.FrozenInstanceError):
        decision.score = 1.0
    with pytest.raises(BadInput, match="unknown_language"):
        decision.reasons[0].text("de")


def test_decision_knows_each_field_of_the_schema():
    names = {field["name"] for field in load_schema("decision")["fields"]}
    assert {field.name for field in dataclasses.fields(Decision)} == names | {"raw"}


def test_record_that_is_no_decision_is_refused_without_its_values():
    for change in ({"outcome": "MAYBE"}, {"decision_id": "x"}, {"surplus": 1}):
        with pytest.raises(BadInput, match="bad_decision") as caught:
            Decision.from_avro(decision_record(**change), RAW)
        assert ACCOUNT not in str(caught.value)
        assert caught.value.__suppress_context__


def test_no_repr_shows_what_is_personal():
    codec = RowCodec(load_schema("decision"))
    decision = Decision.from_avro(codec.decode(codec.encode(decision_record())), RAW)
    label = Label("e1", ACCOUNT, "T1", GOOD["event_time"], GOOD["event_time"], False)
    letter = DeadLetter(
        reason="truncated", detail="", service="risk", source=RAW, source_time=GOOD["event_time"],
        key=ACCOUNT.encode(), value=ACCOUNT.encode(), headers=(), failed_time=GOOD["event_time"],
        traceparent=None, raw=RAW,
    )  # fmt: skip
    for shown in (Transaction(**GOOD), label, decision, letter):
        for secret in (ACCOUNT, "event-0", "1234.56", "12.50"):
            assert secret not in repr(shown)
