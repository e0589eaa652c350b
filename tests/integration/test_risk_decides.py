"""The risk worker between a real Kafka, Triton and key service: what a payment's decision says."""

import os
from datetime import timedelta
from decimal import Decimal

import numpy as np
import pytest

from services.risk.settings import HERE
from tests.support.payments import (
    Sent,
    decided,
    framed,
    label,
    now,
    pay,
    payment,
    raw_records,
    records_to_send,
    sample,
    send,
    settled,
    until,
)
from tests.support.risk import risk_under_test
from tests.support.scores import model_card, scored_here
from weir.crypto.envelope import HEADER_NAME, parse_envelope_header
from weir.crypto.keyring import Keyring
from weir.features.payments import FEATURE_SPEC, FEATURES
from weir.ids import decision_id
from weir.obs import trace
from weir.obs.trace import TRACEPARENT

LOGIT_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def risk(tmp_path_factory, kafka, keys, triton):
    folder = tmp_path_factory.mktemp("risk")
    policy = folder / "policy.toml"
    policy.write_bytes((HERE / "policy.toml").read_bytes())
    with risk_under_test(
        folder, kafka, keys, triton.endpoint, policy=str(policy), commit_interval_s=0.2
    ) as risk:
        yield risk.start()


async def test_decision_lies_where_its_payment_lay_under_a_pseudonym_and_sealed(risk, keys):
    event = payment("placed")
    (offset,) = await pay(risk, [event], partition=1)
    (decision,) = (await decided(risk))["placed"]
    assert (decision.raw.partition, decision.feature_ref.partition, decision.feature_ref.offset) == (
        1, 1, offset,
    )  # fmt: skip
    assert decision.feature_ref.topic == risk.topics.transactions
    assert decision.feature_ref.feature_spec == FEATURE_SPEC
    (raw,) = [
        each
        for each in await raw_records(risk.kafka.bootstrap_servers, risk.topics.decisions)
        if (each.partition, each.offset) == (decision.raw.partition, decision.raw.offset)
    ]
    async with await Keyring.connect(keys.settings("risk-worker")) as keyring:
        pseudonymizer = await keyring.pseudonymizer("default")
        assert raw.key == pseudonymizer.of(event["account_id"].encode())
    headers = dict(raw.headers)
    assert parse_envelope_header(headers[HEADER_NAME])[1] == decision.decision_id.bytes
    assert b"placed" not in raw.value


async def test_decision_repeats_the_payment_and_names_model_and_policy(risk):
    event = payment("told", amount=Decimal("1234.5678"), currency="USD", channel="ECOM")
    before = now()
    await pay(risk, [event])
    (decision,) = (await decided(risk))["told"]
    for name in ("event_id", "account_id", "terminal_id", "amount", "currency", "event_time"):
        assert getattr(decision, name) == event[name], name
    card = model_card()
    assert (decision.model_name, decision.model_version, decision.model_sha256) == (
        card["name"], card["version"], card["sha256"],
    )  # fmt: skip
    assert decision.policy_version in (HERE / "policy.toml").read_text()
    assert len(decision.policy_sha256) == 64
    assert (decision.tenant, decision.kind, decision.degraded, decision.degraded_reason) == (
        "default", "payment_fraud", False, None,
    )  # fmt: skip
    assert before <= decision.decided_time <= now()
    timings = decision.timings
    assert timings.decode_us > 0
    assert timings.features_us > 0
    assert timings.model_us > 0
    assert 0 <= timings.queue_us < 60_000_000


async def test_score_and_reasons_are_those_of_the_model_on_the_payments_own_history(risk):
    """Compute features and scores in this process, from the same payments and nothing else."""
    moment = now() - timedelta(minutes=30)
    records = [
        payment(
            f"history-{index}",
            account_id="account with a history",
            terminal_id=f"terminal {index % 2} of the history",
            amount=Decimal(f"{20 + 300 * (index == 7)}.0000"),
            event_time=moment + timedelta(minutes=index),
        )
        for index in range(8)
    ]
    await pay(risk, records)
    found = await decided(risk)
    logit, probability, contributions = scored_here(records)
    base_logit = model_card()["base_logit"]
    for row, record in enumerate(records):
        (decision,) = found[record["event_id"]]
        assert decision.logit == pytest.approx(float(logit[row]), abs=LOGIT_TOLERANCE)
        assert decision.probability == pytest.approx(float(probability[row]), abs=1e-5)
        assert decision.score == pytest.approx(1 / (1 + np.exp(-decision.logit)), abs=1e-9)
        assert decision.base_logit == pytest.approx(base_logit, abs=1e-6)
        assert base_logit + contributions[row].sum() == pytest.approx(decision.logit, abs=LOGIT_TOLERANCE)
        share = contributions[row]
        strength = np.abs(share) if decision.outcome == "APPROVE" else np.maximum(share, 0)
        strongest = np.sort(strength[strength > 0])[::-1][:4]
        assert [abs(each.contribution) for each in decision.reasons] == pytest.approx(
            strongest.tolist(), abs=LOGIT_TOLERANCE
        )
        for reason in decision.reasons:
            assert reason.contribution == pytest.approx(
                float(share[FEATURES.index(reason.feature)]), abs=LOGIT_TOLERANCE
            )
            assert reason.text("en")
            assert reason.text("zh")
    assert len({decision.logit for (decision,) in (found[r["event_id"]] for r in records)}) > 2


async def test_same_event_twice_has_one_decision_id(risk):
    event = payment("twice")
    await pay(risk, [event, event])
    first, second = (await decided(risk))["twice"]
    assert first.decision_id == second.decision_id == decision_id("default", "twice", "payment_fraud")


async def test_trace_goes_on_as_a_child_and_is_not_made_up(risk):
    parent = trace.new(sampled=True)
    traced = await records_to_send([payment("traced")], headers=[(TRACEPARENT, parent.traceparent.encode())])
    broken = await records_to_send([payment("broken trace")], headers=[(TRACEPARENT, b"00-zz")])
    await send(risk, [*traced, *broken, *await records_to_send([payment("untraced")])])
    found = await decided(risk)
    child = trace.parse(found["traced"][0].traceparent)
    assert child is not None
    assert (child.trace_id, child.sampled) == (parent.trace_id, True)
    assert child.span_id != parent.span_id
    assert found["broken trace"][0].traceparent is None
    assert found["untraced"][0].traceparent is None
    records = await raw_records(risk.kafka.bootstrap_servers, risk.topics.decisions)
    raw = {each.offset: each for each in records if each.partition == found["traced"][0].raw.partition}
    assert dict(raw[found["traced"][0].raw.offset].headers)[TRACEPARENT] == child.traceparent.encode()
    assert TRACEPARENT not in dict(raw[found["untraced"][0].raw.offset].headers)


async def test_fraud_label_beyond_its_delay_raises_the_terminals_next_score(risk):
    """Three terminals with the same past; of it, nothing, a part and everything is reported as fraud."""
    past, moment = now() - timedelta(days=12), now()
    earlier = {
        name: [
            payment(f"past-{name}-{index}", terminal_id=f"{name} terminal", event_time=past)
            for index in range(10)
        ]
        for name in ("quiet", "reported", "overrun")
    }
    await pay(risk, [each for records in earlier.values() for each in records])
    await settled(risk)
    learnt = 'weir_labels_total{result="learnt",service="risk"}'
    count = sample(risk.metrics(), learnt)
    reported = [*earlier["reported"][:1], *earlier["overrun"]]
    labels = await framed("label", [label(each) for each in reported])
    await send(risk, [Sent(value) for value in labels], risk.topics.labels)
    await until(lambda: sample(risk.metrics(), learnt) >= count + len(reported), "the labels are learnt")
    await pay(
        risk,
        [payment(f"probe-{name}", terminal_id=f"{name} terminal", event_time=moment) for name in earlier],
    )
    found = await decided(risk)
    probes = {name: found[f"probe-{name}"][0] for name in earlier}
    assert probes["overrun"].logit >= probes["reported"].logit > probes["quiet"].logit + 0.1
    assert [name for name, each in probes.items() if "terminal_under_attack" in each.rules] == ["overrun"]


async def test_fraud_label_within_its_delay_is_told_early_and_raises_the_terminals_next_score(risk):
    past = now() - timedelta(days=3)
    earlier = [
        payment(f"recent-{index}", terminal_id="recent terminal", event_time=past) for index in range(10)
    ]
    await pay(risk, earlier)
    await settled(risk)
    learnt = 'weir_labels_total{result="learnt",service="risk"}'
    count = sample(risk.metrics(), learnt)
    first = payment("before the label", terminal_id="recent terminal", account_id="one")
    await pay(risk, [first])
    await settled(risk)
    labels = await framed("label", [label(each) for each in earlier])
    await send(risk, [Sent(value) for value in labels], risk.topics.labels)
    await until(lambda: sample(risk.metrics(), learnt) >= count + 10, "the labels are learnt")
    await pay(risk, [payment("after the label", terminal_id="recent terminal", account_id="two")])
    found = await decided(risk)
    (before,), (after,) = found["before the label"], found["after the label"]
    assert after.logit > before.logit + 1
    told = {each.feature for each in after.reasons if each.feature.startswith("terminal_")}
    # The windows end a delay ago, so they know of none yet.
    assert told & {"terminal_fraud_early", "terminal_risk_early"}
    assert not any(
        each.feature in ("terminal_risk_1d", "terminal_risk_7d", "terminal_risk_30d")
        and each.contribution > 0
        for each in after.reasons
    )


async def test_malformed_labels_are_refused_and_counted_and_the_next_one_is_learnt(risk):
    refused, learnt = (
        f'weir_labels_total{{result="{each}",service="risk"}}' for each in ("refused", "learnt")
    )
    before = risk.metrics()
    good = label(payment("labelled"))
    whole, early, nobody = await framed(
        "label",
        [
            good,
            {**good, "reported_time": good["event_time"] - timedelta(days=1)},
            {**good, "account_id": ""},
        ],
    )
    strangers = await framed("transaction", [payment("no label")])
    bad = [None, b"", b"\x00", whole[:20], os.urandom(64), early, nobody, *strangers]
    await send(risk, [Sent(value) for value in bad] + [Sent(whole)], risk.topics.labels)
    await until(lambda: sample(risk.metrics(), learnt) == sample(before, learnt) + 1, "the label is learnt")
    assert sample(risk.metrics(), refused) == sample(before, refused) + len(bad)
    await pay(risk, [payment("after bad labels")])
    assert len((await decided(risk))["after bad labels"]) == 1


async def test_policy_is_changed_while_running_and_a_broken_one_changes_nothing(risk):
    loaded, refused = (f'weir_policy_reloads_total{{result="{each}"}}' for each in ("loaded", "refused"))
    path = risk.directory / "policy.toml"
    text = path.read_text()
    await pay(risk, [payment("first policy")])
    before = (await decided(risk))["first policy"][0]

    path.write_text(text + "\n[thresholds\n")
    await until(lambda: sample(risk.metrics(), refused) == 1, "the broken policy is refused")
    await pay(risk, [payment("broken policy")])
    during = (await decided(risk))["broken policy"][0]
    assert (during.policy_sha256, during.policy_version) == (before.policy_sha256, before.policy_version)

    version = before.policy_version
    changed = text.replace(f'"{version}"', '"nothing-passes"').replace("_at = 0.", "_at = 0.0  # 0.")
    assert changed.count("nothing-passes") == 1
    path.write_text(changed)
    await until(lambda: sample(risk.metrics(), loaded) == 1, "the changed policy is taken")
    await pay(risk, [payment("second policy")])
    after = (await decided(risk))["second policy"][0]
    assert after.policy_version == "nothing-passes"
    assert after.policy_sha256 != before.policy_sha256
    assert before.outcome != "DECLINE"
    assert after.outcome == "DECLINE"
    path.write_text(text)
    await until(lambda: sample(risk.metrics(), loaded) == 2, "the first policy is back")
