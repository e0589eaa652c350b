"""What the demo counts is what it read; the rare decisions are the ones it shows."""

import dataclasses
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local.demo_view import Tally, decision_line, language, one_line, quantile
from weir.client.records import Decision, FeatureRef, Outcome, Position, Reason, Timings

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def decision(outcome: Outcome, number: int = 0, **changes) -> Decision:
    made = Decision(
        decision_id=UUID(int=number),
        tenant="default",
        event_id=f"e{number}",
        account_id="ACCOUNT-1",
        kind="payment_fraud",
        outcome=outcome,
        score=0.9,
        probability=0.42,
        logit=1.0,
        base_logit=-4.0,
        reasons=(Reason("R1", "amount", 1.5, "The amount is high", "金额较高"),),
        rules=(),
        amount=Decimal("1234.5000"),
        currency="EUR",
        terminal_id="T1",
        event_time=NOW,
        decided_time=NOW,
        model_name="risk",
        model_version="1",
        model_sha256="",
        policy_version="1",
        policy_sha256="",
        feature_ref=FeatureRef("bank.transactions", 0, number, "f"),
        timings=Timings(0, 0, 0, 0, 0),
        degraded=False,
        degraded_reason=None,
        traceparent=None,
        raw=Position("weir.decisions", 0, number),
    )
    return dataclasses.replace(made, **changes)


def after(ms: float) -> float:
    return (NOW + timedelta(milliseconds=ms)).timestamp()


def test_latency_is_from_the_event_to_the_reader():
    tally = Tally()
    for ms in range(1, 101):
        tally.add([decision(Outcome.APPROVE, ms)], after(ms))
    p50, p99 = tally.latencies()
    assert (round(p50), round(p99)) == (51, 100)


def test_rate_counts_the_last_seconds_only():
    tally = Tally()
    tally.add([decision(Outcome.APPROVE)] * 1000, after(0))
    for second in range(6, 16):
        tally.add([decision(Outcome.APPROVE)] * 100, after(second * 1000))
    assert tally.rate(after(15_000)) == pytest.approx(600 / 5)


def test_many_approvals_do_not_push_out_the_rare():
    tally = Tally()
    tally.add([decision(Outcome.DECLINE)], after(1))
    tally.add([decision(Outcome.APPROVE, number) for number in range(1000)], after(2))
    assert [each.outcome for each in tally.handful[Outcome.DECLINE]] == [Outcome.DECLINE]
    assert len(tally.handful[Outcome.APPROVE]) == 2
    assert tally.share(Outcome.DECLINE) == pytest.approx(100 / 1001)


def test_degraded_decisions_are_told():
    tally = Tally()
    tally.add([decision(Outcome.REVIEW, degraded=True, probability=None)], after(1))
    assert "degraded 1" in one_line(tally, 1.0)


@pytest.mark.parametrize(("lang", "word"), [("en", "The amount is high"), ("zh", "金额较高")])
def test_a_decision_is_told_without_the_account(lang, word):
    line = decision_line(decision(Outcome.DECLINE), lang)
    assert word in line
    assert "1,234.50 EUR" in line
    assert "+1.50" in line
    assert "ACCOUNT" not in line


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LC_ALL": "C", "LANG": "zh_TW"}, "en"),
        ({"LC_ALL": "zh"}, "zh"),
    ],
)
def test_language_follows_the_locale(environment, expected):
    assert language(environment) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values(values, share):
    assert quantile(sorted(values), share) in values


def test_a_quantile_of_nothing_is_no_number():
    assert math.isnan(quantile([], 0.5))
