"""A past with all that moves state is decided again: bit for bit, or to see what would differ."""

import asyncio
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from typer.testing import CliRunner

from infra.local.ports import LOOPBACK, free_port
from services.risk.cli import replay as command
from services.risk.replay import Plan, replay
from services.risk.settings import HERE, RiskSettings
from services.risk.state import RiskState, split_contributions
from tests.support.payments import (
    Sent,
    decided,
    framed,
    label,
    now,
    payment,
    records_to_send,
    sample,
    send,
    settled,
    until,
)
from tests.support.risk import RiskUnderTest, risk_under_test, toml_of
from weir.client.decisions import Decisions
from weir.config import RegistrySettings, TritonSettings
from weir.crypto.keyring import Keyring
from weir.errors import ConfigError, ExitCode, MissingPart
from weir.state.hashing import keyed_hash_list
from weir.streams.neighbours import Connections

TERMINALS = 5
ACCOUNTS = 12
LONE = "lone terminal"
LEARNT = 'weir_labels_total{result="learnt",service="risk"}'
FOR_EVER_MS = 2**42


@dataclass
class Then:
    """What happened, and where it can be read."""

    risk: RiskUnderTest
    settings: RiskSettings
    to: Connections
    sent: int
    snapshot: Path
    snapshot_ms: int

    def plan(self, **fields) -> Plan:
        return Plan(**{"from_ms": 0, "to_ms": FOR_EVER_MS, "examples_max": 1000} | fields)

    async def replayed(self, **fields):
        return await replay(self.plan(**fields), self.settings, self.to)


class Story:
    """Payments of several accounts at terminals that both partitions share; a worker that has troubles."""

    def __init__(self, risk: RiskUnderTest) -> None:
        self.risk, self.sent = risk, 0

    async def pay(self, count: int, *, days_ago: int, tag: str) -> list[dict]:
        """`count` payments to each partition, a few at a time, so that there are many batches."""
        records = []
        moment = now() - timedelta(days=days_ago, hours=1)
        for at in range(0, count, 8):
            for partition in (0, 1):
                part = [
                    payment(
                        f"{tag}-{partition}-{index}",
                        account_id=f"account {partition} {index * 7 % ACCOUNTS}",
                        terminal_id=f"terminal {index * 5 % TERMINALS}",
                        amount=Decimal(f"{10 + index * 37 % 500}.{index % 100:02d}00"),
                        currency=("EUR", "USD", "JPY")[index % 3],
                        channel=("POS", "ECOM", "ATM")[index % 3],
                        event_time=moment + timedelta(seconds=40 * index),
                    )
                    for index in range(at, min(at + 8, count))
                ]
                await send(self.risk, await records_to_send(part, partition))
                records += part
        self.sent += len(records)
        return records

    async def labels(self, of: list[dict]) -> None:
        learnt = sample(self.risk.metrics(), LEARNT)
        values = await framed("label", [label(each) for each in of])
        sent = [Sent(value, partition=index % 2) for index, value in enumerate(values)]
        await send(self.risk, sent, self.risk.topics.labels)
        await until(
            lambda: sample(self.risk.metrics(), LEARNT) >= learnt + len(values), "the labels are learnt"
        )

    async def one(self, event_id: str, partition: int, days_ago: int) -> dict:
        """A payment at a terminal that only one other payment, of the other partition, was ever made at."""
        moment = now() - timedelta(days=days_ago)
        record = payment(event_id, terminal_id=LONE, event_time=moment)
        await send(self.risk, await records_to_send([record], partition))
        self.sent += 1
        return record

    async def change_policy(self, old: str, new: str) -> None:
        path = self.risk.directory / "policy.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        loaded = 'weir_policy_reloads_total{result="loaded"}'
        await until(lambda: sample(self.risk.metrics(), loaded) == 1, "the changed policy is taken")

    async def snapshot(self, folder: Path) -> None:
        """Copy a snapshot that was begun after now; nothing changes meanwhile."""
        written = "weir_state_snapshot_timestamp_seconds"
        before = now().timestamp()

        def fresh() -> bool:
            lines = [line for line in self.risk.metrics().splitlines() if line.startswith(written)]
            return any(float(line.rpartition(" ")[2]) > before + 1 for line in lines)

        await until(fresh, "a snapshot is written")
        shutil.copytree(self.risk.directory / "data" / "state", folder)


async def happened(risk: RiskUnderTest, triton: str) -> tuple[int, int]:
    """Live through it; how many payments, and when the snapshot had been copied."""
    story = Story(risk)
    risk.start()
    early = await story.pay(40, days_ago=12, tag="early")
    lone = await story.one("lone", 1, 12)
    await settled(risk)
    await story.labels([*early[::3], lone])
    await story.one("probe", 0, 0)
    bad = await records_to_send([payment("from the future", event_time=now() + timedelta(days=30))])
    await send(risk, [Sent(b"no payment"), *bad])
    await story.pay(40, days_ago=0, tag="after labels")
    await settled(risk)
    await story.snapshot(risk.directory / "copied")
    snapshot_ms = int(now().timestamp() * 1000)
    await story.change_policy("review_at = ", "review_at = 0.0001 # ")
    # Killed in the midst of it, and begun again from snapshot, changelog and journal.
    stream = asyncio.create_task(story.pay(40, days_ago=0, tag="killed"))
    await until(lambda: len(done_of(risk)) > 1, "some of it is decided")
    risk.kill()
    await stream
    risk.start()
    await settled(risk)
    await story.labels(early[1::3])
    risk.stop()
    # Without a model for a while.
    risk.triton_endpoint = f"{LOOPBACK}:{free_port()}"
    risk.start()
    await story.pay(16, days_ago=0, tag="degraded")
    await settled(risk)
    risk.stop()
    risk.triton_endpoint = triton
    risk.start()
    await story.pay(40, days_ago=0, tag="last")
    await settled(risk)
    risk.stop()
    return story.sent, snapshot_ms


def done_of(risk: RiskUnderTest) -> set[str]:
    text = risk.metrics()
    return {
        line
        for line in text.splitlines()
        if line.startswith("weir_decisions_total{") and not line.endswith(" 0.0")
    }


@pytest.fixture(scope="module")
def then(tmp_path_factory, kafka, keys, triton):
    folder = tmp_path_factory.mktemp("risk")
    policy = folder / "policy.toml"
    policy.write_bytes((HERE / "policy.toml").read_bytes())
    with risk_under_test(
        folder, kafka, keys, triton.endpoint, policy=str(policy), snapshot_interval_s=1.0, batch_rows_max=20
    ) as risk:
        sent, snapshot_ms = asyncio.run(happened(risk, triton.endpoint))
        settings = RiskSettings(
            policy=policy,
            model_repository=risk.model_repository,
            data_dir=folder / "data",
            accounts_max=100_000,
            terminals_max=100_000,
        )
        to = Connections(
            risk.kafka_settings,
            risk.topics,
            TritonSettings(endpoint=triton.endpoint),
            keys.settings("replay"),
            RegistrySettings(),
        )
        yield Then(risk, settings, to, sent, folder / "copied", snapshot_ms)


def said(report) -> str:
    return "\n".join(report.as_text())


async def test_the_past_is_decided_again_bit_for_bit(then):
    report = await then.replayed()
    assert report.same_as_then, said(report)
    assert report.compared == report.equal == then.sent
    assert report.degraded == 32
    assert len(report.policies) == 2
    assert list(report.models.values()) == ["risk 1"]
    assert report.partitions == [0, 1]
    assert report.batches > 20
    assert not report.notes


async def test_it_begins_with_a_workers_snapshot_as_well(then):
    report = await then.replayed(snapshots=then.snapshot, from_ms=then.snapshot_ms)
    assert report.same_as_then, said(report)
    assert report.compared == 2 * (40 + 16 + 40)
    assert report.absorbed == 0


async def test_a_part_of_it_is_decided_on_the_state_of_all_before_it(then):
    report = await then.replayed(from_ms=then.snapshot_ms, partitions=(1,))
    assert report.same_as_then, said(report)
    assert report.compared == 40 + 16 + 40
    assert report.absorbed > 5
    assert report.partitions == [1]


async def test_a_snapshot_that_is_later_than_the_range_is_refused(then):
    with pytest.raises(ConfigError, match="older copy"):
        await then.replayed(snapshots=then.snapshot)


async def test_another_policy_says_which_decisions_it_would_change(then, tmp_path):
    lenient = tmp_path / "lenient.toml"
    text = (HERE / "policy.toml").read_text()
    text = text.replace("review_at = ", "review_at = 1.0 # ").replace("decline_at = ", "decline_at = 1.0 # ")
    lenient.write_text(text)
    report = await then.replayed(policy=lenient)
    assert report.compared == then.sent
    assert sum(report.outcomes.values()) == then.sent
    assert report.changed
    assert report.changed.keys() <= {("REVIEW", "APPROVE"), ("DECLINE", "APPROVE"), ("DECLINE", "REVIEW")}
    recorded = Counter(each.outcome.value for (each,) in (await decided(then.risk)).values())
    again: Counter[str] = Counter()
    for (was, _), count in report.outcomes.items():
        again[was] += count
    assert again == recorded
    assert all(amount > 0 for pair, amount in report.amounts.items() if report.outcomes[pair])
    # Scores do not hang on the policy.
    assert not {"logit", "probability", "score"} & report.fields.keys()


async def test_one_payment_that_is_left_out_of_the_state_is_found(then, keys, monkeypatch):
    """The check can fail: the only payment at a terminal, on the other partition, does not enter."""
    async with await Keyring.connect(keys.settings("risk-worker")) as keyring:
        hash_key = (await keyring.pseudonymizer("default")).hash_key
    (lone,) = keyed_hash_list([LONE.encode()], hash_key)
    entered, left_out = RiskState.enter, []

    def short(state, partition, record):
        terminal, hour = split_contributions(record.contributions)
        others = terminal != lone
        if not others.all():
            left_out.append(partition)
            kept = terminal[others].tobytes() + hour[others].tobytes()
            record = msgspec.structs.replace(record, contributions=kept)
        return entered(state, partition, record)

    monkeypatch.setattr(RiskState, "enter", short)
    report = await then.replayed(partitions=(0,))
    assert left_out == [1]
    assert report.different == 1, said(report)
    assert not report.same_as_then
    assert {"logit", "probability"} <= report.fields.keys()
    (example,) = report.examples
    probe = (await decided(then.risk))["probe"][0]
    assert example.decision_id == str(probe.decision_id)
    assert probe.account_id not in said(report) + json.dumps(report.as_dict())


async def test_the_live_topics_and_the_group_are_as_before_and_the_new_decisions_lie_apart(then, kafka):
    topic = kafka.unique("weir.replay.decisions")
    before = await standing(then.risk)
    report = await then.replayed(publish_topic=topic)
    assert await standing(then.risk) == before
    assert report.same_as_then, said(report)
    assert report.published == then.sent
    topics = then.risk.topics.model_copy(update={"decisions": topic})
    async with Decisions.connect(
        purpose="investigation",
        start="beginning",
        follow=False,
        kafka=then.risk.kafka_settings,
        topics=topics,
        registry=RegistrySettings(),
        keys=then.risk.reader("analyst"),
    ) as reader:
        published = {each.event_id: each.logit async for each in reader}
    live = {event: each.logit for event, (each,) in (await decided(then.risk)).items()}
    assert published == live


async def test_a_live_topic_is_never_published_to(then):
    with pytest.raises(ConfigError, match="live topic"):
        await then.replayed(publish_topic=then.risk.topics.decisions)


async def test_a_policy_of_then_that_is_not_kept_is_one_line(then, tmp_path):
    with pytest.raises(MissingPart) as caught:
        await then.replayed(policies=tmp_path)
    assert "\n" not in str(caught.value)


async def test_a_model_of_then_that_is_gone_is_one_line(then, tmp_path):
    repository = tmp_path / "models"
    shutil.copytree(then.settings.model_repository / "risk", repository / "risk")
    card = repository / "risk" / "1" / "model.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(MissingPart, match="the model of then"):
        await replay(then.plan(), then.settings.model_copy(update={"model_repository": repository}), then.to)


async def test_the_command_prints_json_for_programs_and_lines_for_people(then, tmp_path, monkeypatch):
    identity = then.to.keys
    tables = {
        "kafka": {"bootstrap_servers": then.to.kafka.bootstrap_servers},
        "topics": then.risk.topics.model_dump(),
        "triton": {"endpoint": then.to.triton.endpoint},
        "keys": {
            "endpoint": identity.endpoint,
            "ssl_ca": str(identity.ssl_ca),
            "ssl_certificate": str(identity.ssl_certificate),
            "ssl_key": str(identity.ssl_key),
        },
        "risk": {
            "policy": str(then.settings.policy),
            "model_repository": str(then.settings.model_repository),
            "data_dir": str(then.settings.data_dir),
            "accounts_max": 100_000,
        },
    }
    path = tmp_path / "weir.toml"
    path.write_text(toml_of(tables))
    monkeypatch.setenv("WEIR_CONFIG", str(path))

    async def run(*arguments: str):
        return await asyncio.to_thread(CliRunner().invoke, command, arguments)

    done = await run("--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["compared"], found["same_as_then"]) == (then.sent, True)
    assert "account" not in done.stdout.replace("accounts", "")
    shown = await run("--partition", "0")
    assert shown.exit_code == 0
    assert "Every decision came out the same, bit for bit." in shown.stdout
    nothing = await run("--from", "2001-01-01T00:00:00Z", "--to", "2001-01-02T00:00:00Z")
    assert nothing.exit_code == ExitCode.MISSING
    assert "Nothing was compared" in nothing.stdout
    assert (await run("--from", "2001-01-01")).exit_code == ExitCode.USAGE


async def test_partitions_that_move_between_workers_under_load_are_decided_again_all_the_same(
    tmp_path, kafka, keys, triton
):
    """Two workers, one killed and one stopped, while payments and labels come; each sees the others' late."""
    with (
        risk_under_test(tmp_path / "one", kafka, keys, triton.endpoint, session_timeout_s=6.0) as one,
        risk_under_test(tmp_path / "two", kafka, keys, triton.endpoint, session_timeout_s=6.0) as two,
    ):
        two.topics = one.topics
        await asyncio.gather(asyncio.to_thread(one.start), asyncio.to_thread(two.start))
        await until(lambda: shared(one, two) == [[0], [1]], "each worker has a partition")
        stream = Stream(one)
        sending = asyncio.create_task(stream.run())
        await until(lambda: stream.sent > 400, "payments come")
        two.kill()
        await until(lambda: shared(one) == [[0, 1]], "one has both")
        await asyncio.to_thread(two.start)
        await until(lambda: shared(one, two) == [[0], [1]], "each has one again")
        count = stream.sent
        await until(lambda: stream.sent > count + 200, "payments come")
        await asyncio.to_thread(one.stop)
        await until(lambda: shared(two) == [[0, 1]], "two has both")
        count = stream.sent
        await until(lambda: stream.sent > count + 200, "payments come")
        stream.ending = True
        await sending
        await settled(one)
        settings = RiskSettings(model_repository=one.model_repository, data_dir=two.directory / "data")
        to = Connections(
            one.kafka_settings,
            one.topics,
            TritonSettings(endpoint=triton.endpoint),
            keys.settings("replay"),
            RegistrySettings(),
        )
        report = await replay(Plan(from_ms=0, to_ms=FOR_EVER_MS), settings, to)
    assert report.same_as_then, said(report)
    assert report.compared == stream.sent
    assert not report.notes


def shared(*workers: RiskUnderTest) -> list[list[int]]:
    return sorted(each.health().get("partitions", []) for each in workers)


class Stream:
    """Payments at a few terminals of both partitions, and labels, in uneven bursts without a pause."""

    def __init__(self, risk: RiskUnderTest) -> None:
        self.risk, self.sent, self.ending = risk, 0, False

    async def run(self) -> None:
        burst = 0
        while not self.ending:
            burst += 1
            sent, records = [], []
            for partition in (0, 1):
                part = [
                    self.one(burst, partition, index) for index in range(1 + burst * (5 + partition) % 37)
                ]
                sent += await records_to_send(part, partition)
                records += part
            await send(self.risk, sent)
            values = await framed("label", [label(each) for each in records[::4]])
            told = [Sent(value, partition=index % 2) for index, value in enumerate(values)]
            await send(self.risk, told, self.risk.topics.labels)
            self.sent += len(records)

    def one(self, burst: int, partition: int, index: int) -> dict:
        return payment(
            f"{burst}-{partition}-{index}",
            account_id=f"account {partition} {(burst + index) % ACCOUNTS}",
            terminal_id=f"terminal {(burst * index) % TERMINALS}",
            amount=Decimal(f"{1 + (burst * 31 + index * 17) % 900}.5000"),
            event_time=now() - timedelta(days=(0, 0, 12)[burst % 3], seconds=index),
        )


async def standing(risk: RiskUnderTest) -> dict:
    """End offsets of every live topic, and what every group has committed there."""
    servers = risk.kafka.bootstrap_servers
    topics = risk.topics
    names = [topics.transactions, topics.labels, topics.decisions, topics.risk_dlq]
    names += [topics.risk_accounts, topics.risk_journal]
    tps = [TopicPartition(name, number) for name in names for number in range(risk.partitions)]
    async with AIOKafkaConsumer(bootstrap_servers=servers) as consumer:
        ends = dict(await consumer.end_offsets(tps))
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        groups = sorted(group for group, _ in await admin.list_consumer_groups())
        committed = dict(await admin.list_consumer_group_offsets(risk.topics.transactions))
    finally:
        await admin.close()
    return {"ends": ends, "groups": groups, "committed": committed}
