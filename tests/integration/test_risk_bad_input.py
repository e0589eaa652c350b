"""What a risk worker does with records that cannot be decided, and when it cannot start."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from infra.local.ports import free_port
from services.risk.settings import HERE
from tests.support.payments import (
    Sent,
    dead_letters,
    decided,
    framed,
    now,
    payment,
    records_to_send,
    sample,
    schema_id,
    send,
    until,
)
from tests.support.risk import RiskUnderTest, risk_under_test
from weir.client.dead_letters import DeadLetter
from weir.client.decisions import Decision
from weir.codec.framing import frame
from weir.config import KafkaSettings
from weir.errors import ExitCode
from weir.obs import trace

FUZZ_SEED = 20_261_124
FUZZ_COUNT = 200
ACCOUNT = "DE02120300000000202051"
START_DEADLINE_S = 60


@pytest.fixture(scope="module")
def risk(tmp_path_factory, kafka, keys, triton):
    folder = tmp_path_factory.mktemp("risk")
    policy = folder / "policy.toml"
    policy.write_bytes((HERE / "policy.toml").read_bytes())
    with risk_under_test(
        folder, kafka, keys, triton.endpoint, policy=str(policy), commit_interval_s=0.2
    ) as risk:
        yield risk.start()


def _payments() -> dict[str, tuple[str, dict[str, object]]]:
    """Well-formed payments that break one rule each: the reason, and the field that breaks it."""
    id_max = 128
    return {
        "negative amount": ("negative_amount", {"amount": Decimal("-0.0001")}),
        "absurd amount": ("absurd_amount", {"amount": Decimal("10000000.0001")}),
        "largest amount": ("absurd_amount", {"amount": Decimal("922337203685477.5807")}),
        "absurd amount in home currency": (
            "absurd_amount", {"amount": Decimal("9000000.0000"), "currency": "GBP"},
        ),
        "unknown currency": ("unknown_currency", {"currency": "XXX"}),
        "small currency": ("unknown_currency", {"currency": "eur"}),
        "no currency": ("unknown_currency", {"currency": ""}),
        "long currency": ("unknown_currency", {"currency": "EURO"}),
        "far future": ("event_in_future", {"event_time": now() + timedelta(days=365)}),
        "beyond every clock": ("event_in_future", {"event_time": datetime(9999, 12, 31, tzinfo=UTC)}),
        "just in the future": ("event_in_future", {"event_time": now() + timedelta(minutes=20)}),
        "too old": ("event_too_old", {"event_time": now() - timedelta(days=36)}),
        "before 1970": ("event_too_old", {"event_time": datetime(1969, 12, 31, tzinfo=UTC)}),
        "empty event": ("empty_id", {"event_id": ""}),
        "empty account": ("empty_id", {"account_id": ""}),
        "empty terminal": ("empty_id", {"terminal_id": ""}),
        "long event": ("id_too_long", {"event_id": "e" * (id_max + 1)}),
        "long account": ("id_too_long", {"account_id": "账" * 43}),
        "long terminal": ("id_too_long", {"terminal_id": "t" * 5000}),
        "long counterparty": ("id_too_long", {"counterparty_id": "c" * (id_max + 1)}),
    }  # fmt: skip


def _bytes(whole: bytes, strange: bytes, known: int) -> dict[str, tuple[str, bytes | None]]:
    """Values that are no framed transaction: the reason, and the value."""
    body = whole[5:]
    return {
        # Wrapped and sealed it is larger than a broker takes by default.
        "as large as a bank can send": ("not_framed", b"\x01" * 1_048_000),
        "null": ("empty", None),
        "nothing": ("empty", b""),
        "one byte": ("truncated", b"\x00"),
        "half a frame": ("truncated", whole[:4]),
        "a frame alone": ("truncated", whole[:5]),
        "half a record": ("truncated", whole[: len(whole) // 2]),
        "all but a byte": ("truncated", whole[:-1]),
        "a byte more": ("trailing_bytes", whole + b"\x00"),
        "twice in one": ("trailing_bytes", whole + body),
        "JSON": ("not_framed", json.dumps({"event_id": "json"}).encode()),
        "no frame": ("not_framed", body),
        "unknown schema id": ("unknown_schema", b"\x00\xff\xff\xff\xff" + body),
        "schema id that may come one day": ("unknown_schema", frame(2_000_000_000, body)),
        "schema id zero": ("unknown_schema", frame(0, body)),
        "a label": ("unknown_schema", strange),
        "invalid UTF-8": ("bad_utf8", whole.replace(b"whole", b"wh\xffle")),
        "overlong UTF-8": ("bad_utf8", whole.replace(b"whole", b"wh\xc0\xafe")),
        "a length without end": ("overflow", frame(known, b"\xff" * 40)),
        "a length below zero": ("overflow", frame(known, b"\x01" + body)),
        "no such channel": ("bad_enum", b""),  # made below, where the encoding is known
    }


@dataclass(frozen=True)
class Poisoned:
    """What was sent to one partition, poison between good payments, and all that came of it."""

    sent: dict[str, Sent]
    reasons: dict[str, str]
    offsets: dict[str, int]
    letters: dict[int, list[DeadLetter]]
    decisions: dict[str, list[Decision]]
    good: list[str]
    metrics_before: str
    metrics_after: str


CASES = sorted(_payments()) + sorted(_bytes(b"", b"", 0))


@pytest.fixture(scope="module")
def poisoned(risk) -> Poisoned:
    return asyncio.run(_poison(risk))


async def _poison(risk: RiskUnderTest) -> Poisoned:
    parent = trace.new().traceparent.encode()
    headers = [("bank.header", b"\x00kept\xff"), ("bank.empty", b""), ("traceparent", parent)]
    known = await asyncio.to_thread(schema_id, "transaction")
    (whole,) = await framed("transaction", [payment("whole", account_id=ACCOUNT)])
    (strange,) = await framed("label", [_any_label()])
    # The channel is the last byte before three absent optionals; POS is 0, and 9 stands for the 10th symbol.
    assert whole[-4:] == b"\x00\x00\x00\x00"
    values: dict[str, tuple[str, bytes | None]] = _bytes(whole, strange, known)
    values["no such channel"] = ("bad_enum", whole[:-4] + b"\x12" + whole[-3:])
    for name, (reason, fields) in _payments().items():
        (value,) = await framed("transaction", [payment(name, account_id=ACCOUNT) | fields])
        values[name] = (reason, value)
    sent, good = {}, []
    order: list[Sent] = []
    for index, (name, (_, value)) in enumerate(values.items()):
        sent[name] = Sent(value, f"key of {name}".encode(), headers)
        good.append(f"good-{index}")
        order += [sent[name], *await records_to_send([payment(good[-1])])]
    before = risk.metrics()
    offsets = await send(risk, order)
    decisions = await decided(risk)
    letters: dict[int, list[DeadLetter]] = {}
    for letter in await dead_letters(risk):
        letters.setdefault(letter.source.offset, []).append(letter)
    return Poisoned(
        sent, {name: reason for name, (reason, _) in values.items()},
        dict(zip(values, offsets[::2], strict=True)),
        letters, decisions, good, before, risk.metrics(),
    )  # fmt: skip


def _any_label():
    return {
        "event_id": "whole", "account_id": ACCOUNT, "terminal_id": "t", "event_time": now(),
        "reported_time": now(), "is_fraud": True, "source": "ANALYST",
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_poison_becomes_one_dead_letter_with_its_reason_and_all_of_its_record(risk, poisoned, case):
    (letter,) = poisoned.letters[poisoned.offsets[case]]
    sent = poisoned.sent[case]
    assert letter.reason == poisoned.reasons[case]
    assert (letter.value, letter.key) == (sent.value, sent.key)
    assert letter.headers == tuple(sent.headers)
    assert (letter.source.topic, letter.source.partition) == (risk.topics.transactions, 0)
    assert letter.service == "risk"
    assert letter.detail
    assert ACCOUNT not in letter.detail
    assert letter.traceparent == dict(sent.headers)["traceparent"].decode()


def test_rest_of_a_poisoned_batch_is_decided_once_and_nothing_else_is(poisoned):
    assert {event: len(found) for event, found in poisoned.decisions.items()} == dict.fromkeys(
        poisoned.good, 1
    )
    assert sorted(poisoned.letters) == sorted(poisoned.offsets.values())


def test_dead_letters_are_counted_by_reason(poisoned):
    for reason in set(poisoned.reasons.values()):
        series = f'weir_dlq_records_total{{reason="{reason}",service="risk"}}'
        counted = sample(poisoned.metrics_after, series) - sample(poisoned.metrics_before, series)
        assert counted == list(poisoned.reasons.values()).count(reason), reason


async def test_every_truncation_and_random_bytes_are_dead_letters_and_stop_nothing(risk, poisoned):
    """Each shorter form of a payment, and seeded random values, framed and not."""
    fuzz = random.Random(FUZZ_SEED)
    known = await asyncio.to_thread(schema_id, "transaction")
    (whole,) = await framed("transaction", [payment("cut", counterparty_id="other", country="DE")])
    bad = [whole[:size] for size in range(len(whole))]
    bad += [fuzz.randbytes(fuzz.randrange(1, 200)) for _ in range(FUZZ_COUNT)]
    bad += [frame(known, fuzz.randbytes(fuzz.randrange(1, 200))) for _ in range(FUZZ_COUNT)]
    before = len(await dead_letters(risk))
    await send(risk, [*(Sent(value) for value in bad), *await records_to_send([payment("behind the fuzz")])])
    found = await decided(risk)
    assert len(found["behind the fuzz"]) == 1
    assert "cut" not in found
    letters = (await dead_letters(risk))[before:]
    assert sorted(letter.value for letter in letters) == sorted(bad)


async def test_zero_amount_is_as_the_policy_says(risk, poisoned):
    loaded = 'weir_policy_reloads_total{result="loaded"}'
    path, count = risk.directory / "policy.toml", sample(risk.metrics(), loaded)
    text = path.read_text()
    zero = {"amount": Decimal("0.0000")}
    await send(risk, await records_to_send([payment("zero accepted", **zero)]))
    assert len((await decided(risk))["zero accepted"]) == 1
    path.write_text(text.replace('zero_amount = "accept"', 'zero_amount = "refuse"'))
    await until(lambda: sample(risk.metrics(), loaded) == count + 1, "the stricter policy is taken")
    (offset,) = await send(risk, await records_to_send([payment("zero refused", **zero)]))
    assert "zero refused" not in await decided(risk)
    (letter,) = [each for each in await dead_letters(risk) if each.source.offset == offset]
    assert letter.reason == "zero_amount"
    path.write_text(text)
    await until(lambda: sample(risk.metrics(), loaded) == count + 2, "the first policy is back")


def weir_command(risk, role, *words):
    identity = risk.keys.pki.roles[role]
    config = risk.directory / f"{role}.toml"
    config.write_text(
        f"""
[kafka]
bootstrap_servers = "{risk.kafka.bootstrap_servers}"
[topics]
transactions = "{risk.topics.transactions}"
risk_dlq = "{risk.topics.risk_dlq}"
[keys]
endpoint = "{risk.keys.endpoint}"
ssl_ca = "{risk.keys.pki.ca}"
ssl_certificate = "{identity.certificate}"
ssl_key = "{identity.key}"
"""
    )
    return subprocess.run(
        [sys.executable, "-c", "import sys; from weir.cli import main; sys.exit(main())", *words],
        capture_output=True, text=True, timeout=60, env={**os.environ, "WEIR_CONFIG": str(config)},
    )  # fmt: skip


async def test_letter_is_listed_shown_and_replayed_and_decided_once_its_cause_is_mended(risk, poisoned):
    """The policy's largest amount was too small; once it is raised, the replayed original is decided."""
    offset = poisoned.offsets["absurd amount"]
    (letter,) = poisoned.letters[offset]
    place = f"{letter.raw.partition}:{letter.raw.offset}"
    listed = await asyncio.to_thread(weir_command, risk, "monitor", "dlq", "list", "--json", "-n", "10000")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["counts"]["absurd_amount"] == 3
    shown = await asyncio.to_thread(weir_command, risk, "analyst", "dlq", "show", place)
    assert shown.returncode == 0, shown.stderr
    assert "absurd_amount" in shown.stdout
    assert f"{risk.topics.transactions}[0]@{offset}" in shown.stdout
    assert ACCOUNT not in shown.stdout

    path, loaded = risk.directory / "policy.toml", 'weir_policy_reloads_total{result="loaded"}'
    text, count = path.read_text(), sample(risk.metrics(), loaded)
    path.write_text(text.replace("amount_max = 10_000_000.00", "amount_max = 20_000_000.00"))
    await until(lambda: sample(risk.metrics(), loaded) == count + 1, "the mended policy is taken")
    done = await asyncio.to_thread(weir_command, risk, "admin", "dlq", "replay", "--at", place, "--yes")
    assert (done.returncode, done.stdout) == (0, "replayed 1\n"), done.stderr
    (decision,) = (await decided(risk))["absurd amount"]
    assert decision.account_id == ACCOUNT
    path.write_text(text)
    await until(lambda: sample(risk.metrics(), loaded) == count + 2, "the first policy is back")


# --- starting ---


def first_words(risk: RiskUnderTest) -> list[str]:
    """What a worker said that ended by itself: its lines that are no structured log."""
    return [line for line in risk.log_text().splitlines() if line and not line.startswith("{")]


async def ends_with(risk: RiskUnderTest, code: ExitCode, *words: str) -> None:
    """The worker ends by itself with this code and one plain line that holds the words; no traceback."""
    risk.start(wait=False)
    assert risk.process is not None
    found = await asyncio.to_thread(risk.process.wait, START_DEADLINE_S)
    assert found == code, risk.log_text()[-4000:]
    (line,) = first_words(risk)
    for word in words:
        assert word in line
    assert "Traceback" not in risk.log_text()
    assert "exception" not in risk.log_text()


@pytest.fixture
def other(tmp_path, kafka, keys, triton):
    """Another worker, not started."""
    with risk_under_test(tmp_path / "other", kafka, keys, triton.endpoint, commit_interval_s=0.2) as risk:
        yield risk


async def test_empty_topics_make_a_ready_worker_that_stops_at_once(other):
    await asyncio.to_thread(other.start)
    health = other.health()
    assert (health["ready"], health["state"], health["partitions"]) == (True, "deciding", [0, 1])
    assert (health["accounts"], health["groups_in_flight"]) == (0, 0)
    assert await decided(other) == {}
    assert await asyncio.to_thread(other.stop) == ExitCode.OK
    assert first_words(other) == []
    assert "Traceback" not in other.log_text()


async def test_interrupt_stops_a_worker_cleanly(other):
    await asyncio.to_thread(other.start)
    other.process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(other.process.wait, 30) in (ExitCode.OK, ExitCode.INTERRUPTED)
    assert "Traceback" not in other.log_text()


@pytest.mark.parametrize("topic", ["transactions", "risk_dlq"])
async def test_missing_topic_ends_the_start_with_one_line(other, topic):
    missing = f"no.such.topic.{topic}"
    other.topics = other.topics.model_copy(update={topic: missing})
    await ends_with(other, ExitCode.MISSING, missing, "no topic", "weir topics create")


async def test_role_that_may_not_seal_ends_the_start_with_one_line(other, keys):
    other.tables["keys"] = {
        "ssl_certificate": keys.pki.roles["reader"].certificate,
        "ssl_key": keys.pki.roles["reader"].key,
    }
    await ends_with(other, ExitCode.DENIED, "reader", "may not")


async def test_certificate_that_is_not_there_ends_the_start_with_one_line(other, tmp_path):
    other.tables["keys"] = {"ssl_certificate": tmp_path / "nowhere.crt"}
    await ends_with(other, ExitCode.MISSING, "nowhere.crt")


async def test_kafka_that_gives_no_answer_ends_the_start_with_one_line(other):
    port = free_port()
    other.tables["kafka"] = {
        "bootstrap_servers": KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}").bootstrap_servers
    }
    await ends_with(other, ExitCode.UNAVAILABLE, f"127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("not TOML at all [", "not valid TOML"),
        ("", "version"),
    ],
)
async def test_broken_policy_ends_the_start_with_one_line(other, tmp_path, text, word):
    policy = tmp_path / "broken.toml"
    policy.write_text(text)
    other.overrides["policy"] = str(policy)
    await ends_with(other, ExitCode.CONFIG, "broken.toml", word)


async def test_policy_rule_on_an_unknown_feature_ends_the_start_with_one_line(other, tmp_path):
    policy = tmp_path / "strange.toml"
    policy.write_text((HERE / "policy.toml").read_text().replace("account_count_1h", "account_mood", 1))
    other.overrides["policy"] = str(policy)
    await ends_with(other, ExitCode.CONFIG, "strange.toml", "account_mood")


async def test_model_that_is_not_there_ends_the_start_with_one_line(other):
    other.overrides["model_version"] = "99"
    await ends_with(other, ExitCode.MISSING, "99", "weir models verify")


async def test_taken_metrics_port_ends_the_start_with_one_line(other):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", other.metrics_port))
        taken.listen()
        await ends_with(other, ExitCode.UNAVAILABLE, str(other.metrics_port))


async def test_wrong_setting_ends_the_start_with_one_line(other):
    other.overrides["score_deadline_ms"] = -5
    await ends_with(other, ExitCode.CONFIG, "score_deadline_ms")
