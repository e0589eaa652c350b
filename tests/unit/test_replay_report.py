"""What a replay says: floats are compared by their bits, counts add up, nobody is named."""

import json
import math
import struct
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal as Money

import pytest

from services.risk.replay.compare import COMPARED, LEFT_OUT, Again, compare, differing_fields, same
from services.risk.replay.plan import Plan
from services.risk.replay.report import Report
from weir.client.records import Decision, FeatureRef, Outcome, Position, Reason, Timings

AT = datetime(2026, 11, 25, 10, tzinfo=UTC)
LOGIT = -3.1415927410125732
NEXT = math.nextafter(LOGIT, 0)


def decision(offset=0, **fields):
    made = Decision(
        decision_id=uuid.UUID(int=offset),
        tenant="default",
        event_id=f"event-{offset}",
        account_id="account-of-somebody",
        kind="payment_fraud",
        outcome=Outcome.APPROVE,
        score=0.041,
        probability=0.04,
        logit=LOGIT,
        base_logit=-5.0,
        reasons=(Reason("AMOUNT", "amount", 0.25, "a text", "文本"),),
        rules=(),
        amount=Money("12.5000"),
        currency="EUR",
        terminal_id="terminal-of-somebody",
        event_time=AT,
        decided_time=AT,
        model_name="risk",
        model_version="1",
        model_sha256="aa",
        policy_version="one",
        policy_sha256="bb",
        feature_ref=FeatureRef("bank.transactions", 1, offset, "spec"),
        timings=Timings(1, 2, 3, 4, 5),
        degraded=False,
        degraded_reason=None,
        traceparent=None,
        raw=Position("weir.decisions", 1, 7),
    )
    return replace(made, **fields)


OTHERS = {
    "logit": NEXT,
    "score": -0.0,
    "probability": None,
    "outcome": Outcome.DECLINE,
    "reasons": (Reason("AMOUNT", "amount", math.nextafter(0.25, 1), "a text", "文本"),),
    "rules": ("a_rule",),
    "feature_ref": FeatureRef("bank.transactions", 1, 0, "another"),
    "degraded": True,
    "amount": Money("12.5001"),
    "policy_sha256": "cc",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_field_that_differs_in_one_bit_is_named(name):
    assert differing_fields(decision(), decision(**{name: OTHERS[name]})) == (name,)


def test_what_is_another_each_time_is_left_out():
    again = decision(
        decided_time=AT + timedelta(1),
        timings=Timings(9, 9, 9, 9, 9),
        traceparent="00-…",
        raw=Position("replay", 0, 0),
    )
    assert differing_fields(decision(), again) == ()
    assert {"decided_time", "timings", "traceparent", "raw"} == LEFT_OUT
    assert len(COMPARED) + len(LEFT_OUT) == len(Decision.__dataclass_fields__)


def test_floats_are_the_same_by_their_bits():
    payload = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
    assert same(math.nan, math.nan)
    assert not same(math.nan, payload)
    assert not same(0.0, -0.0)
    assert not same(1.0, 1)
    assert not same((1.0,), (1.0, 2.0))


def test_each_decision_is_compared_missing_or_extra():
    recorded = {0: decision(0), 1: decision(1), 3: decision(3)}
    again = {0: Again(decision(0), 1), 1: Again(decision(1, logit=NEXT), 2), 2: Again(decision(2), 3)}
    found = compare(recorded, again)
    assert [(pair.recorded.feature_ref.offset, pair.differing) for pair in found.pairs] == [
        (0, ()),
        (1, ("logit",)),
    ]
    assert (list(found.missing), list(found.extra)) == ([2], [3])


def reported(pairs, **plan):
    report = Report(Plan(from_ms=0, to_ms=1000, **plan), "bank.transactions", [1])
    report.add(
        compare(
            {offset: recorded for offset, (recorded, _, _) in enumerate(pairs)},
            {offset: Again(again, amount) for offset, (_, again, amount) in enumerate(pairs)},
        )
    )
    return report


def test_all_the_same_is_said_and_nothing_compared_is_not_the_same():
    report = reported([(decision(0), decision(0), 10_000)])
    assert report.same_as_then
    assert list(report.as_text())[-1] == "Every decision came out the same, bit for bit."
    nothing = reported([])
    assert not nothing.same_as_then
    assert list(nothing.as_text())[-1].startswith("Nothing was compared")


@pytest.mark.parametrize("count", ["missing", "extra", "state_differs", "not_replayable"])
def test_a_decision_that_could_not_be_compared_is_not_the_same(count):
    report = reported([(decision(0), decision(0), 10_000)])
    setattr(report, count, 1)
    assert not report.same_as_then
    assert list(report.as_text())[-1] == "NOT the same as then."


def test_changed_outcomes_are_counted_with_their_money_and_the_dearest_are_shown(tmp_path):
    pairs = [
        (decision(row), decision(row, outcome=Outcome.REVIEW, policy_sha256="cc"), 10_000 * (row + 1))
        for row in range(5)
    ]
    pairs.append((decision(5), decision(5, policy_sha256="cc"), 90_000_000))
    report = reported(pairs, policy=tmp_path / "stricter.toml", examples_max=3)
    assert report.changed == {("APPROVE", "REVIEW"): 5}
    found = report.as_dict()
    assert {"recorded": "APPROVE", "again": "REVIEW", "decisions": 5, "amount": "15.00"} in found["outcomes"]
    assert [each["amount"] for each in found["examples"]] == ["5.00", "4.00", "3.00"]
    assert found["examples"][0]["recorded"]["outcome"] == "APPROVE"
    assert found["examples"][0]["again"]["outcome"] == "REVIEW"
    text = "\n".join(report.as_text())
    assert "5 of 6 decisions would have another outcome." in text
    assert "15.00" in text


def test_nobody_is_named():
    changed = decision(
        0, account_id="another", terminal_id="another", event_id="another", amount=Money(1), currency="USD"
    )
    report = reported([(decision(0), changed, 10_000)])
    said = json.dumps(report.as_dict()) + "\n".join(report.as_text())
    for value in ("account-of-somebody", "terminal-of-somebody", "event-0", "another"):
        assert value not in said
    assert report.fields.keys() == {"account_id", "terminal_id", "event_id", "amount", "currency"}
    assert list(report.examples[0].values.values()) == [(None, None)] * 5
