"""Payments that are not fit to be decided: each reason, its order, and that the rest is left alone."""

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.risk.policy import Limits
from services.risk.rules import currency_code
from services.risk.validate import DETAILS, GOOD, REASONS, Rates, pack_currency, validate
from weir.codec.columns import StringColumn
from weir.errors import ConfigError
from weir.obs.metrics import DEAD_LETTER_REASONS

NOW = 1_800_000_000_000
LIMITS = Limits(amount_max=Decimal(10_000), id_bytes_max=8, future_skew_s=300, event_age_max_s=86_400)
RATES = Rates.of({"EUR": 1.0, "USD": 0.92, "JPY": 0.0061})


def check(*rows: dict, limits: Limits = LIMITS):
    whole = [
        {"amount": 10, "currency": b"EUR", "event_ms": NOW, "event": b"e1", "account": b"a1", "to": b""} | r
        for r in rows
    ]

    def texts(name: str) -> StringColumn:
        return StringColumn.from_list([row[name] for row in whole])

    return validate(
        amount=np.array([int(Decimal(str(row["amount"])) * 10_000) for row in whole], np.int64),
        currency=texts("currency"),
        event_ms=np.array([row["event_ms"] for row in whole], np.int64),
        ids=(texts("event"), texts("account")),
        optional_ids=(texts("to"),),
        now_ms=NOW,
        limits=limits,
        rates=RATES,
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"event": b""}, "empty_id"),
        ({"account": b""}, "empty_id"),
        ({"account": b"123456789"}, "id_too_long"),
        ({"to": b"123456789"}, "id_too_long"),
        ({"currency": b"XXX"}, "unknown_currency"),
        ({"currency": b"eur"}, "unknown_currency"),
        ({"currency": b""}, "unknown_currency"),
        ({"currency": b"EURO"}, "unknown_currency"),
        ({"amount": -0.0001}, "negative_amount"),
        ({"amount": 10_000.0001}, "absurd_amount"),
        ({"amount": 900_000_000_000_000}, "absurd_amount"),
        ({"event_ms": NOW + 300_001}, "event_in_future"),
        ({"event_ms": NOW - 86_400_001}, "event_too_old"),
        ({"event_ms": -(2**63)}, "event_too_old"),
        ({"event_ms": 2**63 - 1}, "event_in_future"),
        ({"event": b"", "amount": -1, "currency": b"?"}, "empty_id"),
        ({"amount": -1, "event_ms": 0}, "negative_amount"),
    ],
)
def test_each_reason_finds_its_row_and_only_it(row, reason):
    checked = check({}, row, {})
    assert checked.bad() == [(1, reason)]
    assert checked.good.tolist() == [0, 2]
    assert checked.amount_home.tolist() == [100_000, 0, 100_000]


@pytest.mark.parametrize(
    "row",
    [
        {"amount": 0},
        {"amount": 10_000},
        {"event_ms": NOW + 300_000},
        {"event_ms": NOW - 86_400_000},
        {"account": b"12345678"},
        {"to": b""},
    ],
)
def test_limits_include_their_own_value(row):
    assert check(row).reason.tolist() == [GOOD]


def test_zero_is_refused_when_the_policy_says_so():
    checked = check({"amount": 0}, {}, limits=LIMITS.model_copy(update={"zero_amount": "refuse"}))
    assert checked.bad() == [(0, "zero_amount")]


def test_without_an_age_limit_only_times_before_1970_are_too_old():
    checked = check(
        {"event_ms": 0}, {"event_ms": -1}, limits=LIMITS.model_copy(update={"event_age_max_s": None})
    )
    assert checked.bad() == [(1, "event_too_old")]


def test_amounts_are_taken_to_home_currency_to_the_last_digit():
    checked = check({"currency": b"USD", "amount": 100.01}, {"currency": b"JPY", "amount": 12345})
    assert checked.amount_home.tolist() == [round(1_000_100 * 0.92), round(123_450_000 * 0.0061)]
    assert checked.currency.tolist() == [currency_code("USD"), currency_code("JPY")]


def test_every_reason_has_a_detail_and_a_metric():
    assert set(DETAILS) == set(REASONS)
    assert set(REASONS) <= DEAD_LETTER_REASONS


@given(st.lists(st.binary(max_size=5), max_size=30))
def test_currencies_are_packed_like_one_at_a_time(values):
    expected = [int.from_bytes(value, "big") if len(value) == 3 else 0 for value in values]
    assert pack_currency(StringColumn.from_list(values)).tolist() == expected


def test_no_rows_are_no_reasons():
    assert check().bad() == []


@pytest.mark.parametrize("rates", [{}, {"eur": 1.0}, {"EUR": 0.0}, {"EUR": float("nan")}, {"EURO": 1.0}])
def test_wrong_rates_are_one_line(rates):
    with pytest.raises(ConfigError, match=r"\[risk.rates\]"):
        Rates.of(rates)
