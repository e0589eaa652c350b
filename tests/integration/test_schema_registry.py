"""With a Schema Registry by a setting, its ids stand on everything from the publisher to the reader."""

import asyncio
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import SecretStr

from infra.local.pki import ensure_pki
from tests.support.keys import running_keys_service
from tests.support.risk import risk_under_test, toml_of
from tests.support.schema_registry import PASSWORD, USER, RegistryUnderTest
from weir import Channel, Decisions, Publisher, Transaction
from weir.client.dead_letters import DeadLetters
from weir.codec.registry import FileRegistry
from weir.config import RegistrySettings
from weir.crypto.envelope import HEADER_NAME, parse_envelope_header
from weir.errors import ExitCode

DEADLINE_S = 60
PAYMENTS = 12


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return ensure_pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
async def registry(pki):
    async with RegistryUnderTest(pki.keys_server.certificate, pki.keys_server.key) as server:
        yield server


@pytest.fixture
def table(registry, pki):
    """[registry] of a settings file."""
    return {"url": registry.url, "username": USER, "password": PASSWORD, "ssl_ca": pki.ca}


@pytest.fixture
def settings(table):
    return RegistrySettings(**table | {"password": SecretStr(PASSWORD)})


@pytest.fixture(scope="module")
def keys(pki, tmp_path_factory):
    with running_keys_service(tmp_path_factory.mktemp("keys"), pki=pki) as service:
        yield service


@pytest.fixture
def risk(kafka, triton, keys, table, tmp_path):
    tables = {"registry": table}
    with risk_under_test(
        tmp_path / "risk", kafka, keys, triton.endpoint, tables=tables, drain_deadline_s=1
    ) as worker:
        yield worker


async def publish_schemas(table, folder):
    """`weir schemas check --publish`, as an operator runs it."""
    path = folder / "operator.toml"
    path.write_text(toml_of({"registry": table}))
    command = [sys.executable, "-m", "weir", "schemas", "check", "--publish"]
    env = {**os.environ, "WEIR_CONFIG": str(path)}
    return await asyncio.to_thread(
        subprocess.run, command, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def payment(index):
    return Transaction(
        event_id=f"event-{index}",
        account_id=f"account-{index}",
        terminal_id="terminal-1",
        amount=Decimal("12.50"),
        currency="EUR",
        event_time=datetime.now(UTC),
        channel=Channel.POS,
    )


async def raw_records(risk, topic, count):
    """The records of a topic as they lie."""
    consumer = AIOKafkaConsumer(bootstrap_servers=risk.kafka.bootstrap_servers)
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for number in range(risk.partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning(*places)
        records = []
        async with asyncio.timeout(DEADLINE_S):
            while len(records) < count:
                for fetched in (await consumer.getmany(timeout_ms=200)).values():
                    records += fetched
        return records
    finally:
        await consumer.stop()


async def test_ids_of_the_registry_stand_on_events_decisions_and_dead_letters(
    risk, registry, table, settings, tmp_path
):
    done = await publish_schemas(table, tmp_path)
    assert done.returncode == 0, done.stderr
    ids = {subject: registry.id_of(subject) for subject in FileRegistry.read().subjects}
    await asyncio.to_thread(risk.start)
    to = {"kafka": risk.kafka_settings, "topics": risk.topics, "registry": settings}
    async with Publisher.connect(**to) as bank:
        await bank.publish_many(payment(index) for index in range(PAYMENTS))
        # Well framed, of a schema that nobody registered.
        await bank._started().send_and_wait(risk.topics.transactions, b"\x00\x00\x00\x00\x07x", partition=0)
    for record in await raw_records(risk, risk.topics.transactions, PAYMENTS):
        if record.value[-1:] != b"x":
            assert record.value[:5] == b"\x00" + struct.pack(">I", ids["bank.transactions-value"])

    reader = Decisions.connect(purpose="investigation", start="beginning", keys=risk.reader("analyst"), **to)
    async with reader as decisions, asyncio.timeout(DEADLINE_S):
        seen = {(await anext(decisions)).event_id for _ in range(PAYMENTS)}
    assert seen == {f"event-{index}" for index in range(PAYMENTS)}
    for topic, subject in (
        (risk.topics.decisions, "weir.decisions-value"),
        (risk.topics.risk_dlq, "weir.risk.dlq-value"),
    ):
        for record in await raw_records(risk, topic, 1):
            schema_id, _ = parse_envelope_header(dict(record.headers)[HEADER_NAME])
            assert schema_id == ids[subject]
    async with DeadLetters.connect(keys=risk.reader("analyst"), **to) as letters:
        found = [await letters.open(entry) async for entry in letters.entries()]
    assert [letter.reason for letter in found] == ["unknown_schema"]


@pytest.mark.parametrize(
    ("wrong", "code", "says"),
    [
        ({"password": "wrong-horse-1"}, ExitCode.DENIED, "username and password"),
        ({"url": "https://127.0.0.1:9"}, ExitCode.UNAVAILABLE, "Schema Registry at https://127.0.0.1:9"),
        ({"ssl_ca": None}, ExitCode.UNAVAILABLE, "CERTIFICATE_VERIFY_FAILED"),
        ({}, ExitCode.CONFIG, "weir.codec.compatibility --publish"),
    ],
    ids=["password", "address", "authority", "nothing-published"],
)
async def test_a_registry_that_does_not_serve_ends_the_worker_in_one_line(risk, table, wrong, code, says):
    """Without its ids nothing can be framed, so the worker does not join its group."""
    risk.tables["registry"] = {name: value for name, value in (table | wrong).items() if value is not None}
    risk.start(wait=False)
    assert await asyncio.to_thread(risk.process.wait, DEADLINE_S) == code, risk.log_text()
    plain = [line for line in risk.log_text().splitlines() if not line.startswith("{")]
    assert len(plain) == 1, plain
    assert says in plain[0]
    assert "horse" not in risk.log_text()
