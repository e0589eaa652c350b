"""Services and SDK on a bank's own servers, by settings alone; each refusal is one line and an exit code.

The broker wants TLS and SCRAM and has the rights of infra/kafka/acls.toml; Triton, key service and MariaDB
want a certificate.
"""

import asyncio
import os
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import SecretStr
from sqlalchemy import text

from infra.local.pki import ensure_pki
from services.ledger.settings import LedgerSettings
from services.ledger.store import Ledger, make_engine
from tests.support.keys import free_port
from tests.support.own_servers import ROLES, own_servers
from tests.support.risk import risk_under_test, toml_of
from weir import Channel, Decisions, Publisher, Transaction
from weir.client.connection import one_line, partitions_of
from weir.config import KeyServiceSettings, TopicSettings, TritonSettings
from weir.crypto.keyring import Keyring
from weir.errors import AccessDenied, ExitCode, NeighbourUnavailable, WeirError
from weir.features.spec import FEATURES
from weir.inference import ModelClient, ModelUnavailable
from weir.kafka_options import client_options, connect

DEADLINE_S = 60
PAYMENTS = 40
NAMES = TopicSettings()
TOPICS = (
    NAMES.transactions,
    NAMES.labels,
    NAMES.decisions,
    NAMES.risk_dlq,
    NAMES.chat_messages,
    NAMES.chat_replies,
    NAMES.chat_handovers,
    NAMES.card_commands,
)

# What infra/kafka/acls.toml must come to: read, write or neither on each topic above, in that order.
MATRIX = {
    "publisher": "ww--w---",
    "risk-worker": "rrww----",
    "chat-worker": "-w--rwww",
    "agent-desk": "----wrr-",
    "card-system": "-------r",
    "ledger": "--r-----",
    "reader": "--r--r--",
    "analyst": "wwrrwrrr",
    "replay": "rrr-----",
    "admin": "ww-rw---",
    "monitor": "--------",
}
GROUPS = {
    "weir-risk": "risk-worker",
    "weir-chat": "chat-worker",
    "weir-ledger": "ledger",
    "reader.cards": "reader",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    with own_servers(tmp_path_factory.mktemp("own")) as servers:
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": servers.kafka.server.internal_bootstrap_servers})
        made = admin.create_topics(
            [NewTopic(name, num_partitions=1, replication_factor=1) for name in TOPICS]
        )
        for each in made.values():
            each.result(timeout=30)
        servers.allow(NAMES)
        yield servers


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory):
    """A certificate authority that signed none of the servers."""
    return ensure_pki(tmp_path_factory.mktemp("other")).ca


@contextmanager
def worker(own, folder, user="risk-worker", **tables):
    """A risk worker that shows up as `user`, not yet started, on topics of its own."""
    tables = {
        "kafka": own.kafka_table(user) | tables.pop("kafka", {}),
        "triton": own.triton_table() | tables.pop("triton", {}),
        **tables,
    }
    with risk_under_test(
        folder / "risk", own.kafka, own.keys, own.triton.endpoint, tables=tables, drain_deadline_s=1
    ) as risk:
        own.allow(risk.topics, {"weir-risk": risk.topics.transactions})
        yield risk


def payment(index=0):
    return Transaction(
        event_id=f"event-{index}",
        account_id=f"account-{index % 7}",
        terminal_id="terminal-1",
        amount=Decimal("12.50"),
        currency="EUR",
        event_time=datetime.now(UTC),
        channel=Channel.POS,
    )


async def publish(own, topics, count, user="publisher"):
    async with Publisher.connect(kafka=own.kafka_settings(user), topics=topics) as bank:
        return await bank.publish_many(payment(index) for index in range(count))


async def test_worker_ledger_and_sdk_run_by_settings_alone(own, tmp_path):
    """Each under its own SCRAM user and its own certificate; the model's answer came through mutual TLS."""
    with worker(own, tmp_path) as risk, ledger(own, tmp_path, risk.topics) as book:
        risk.start()
        book.start()
        assert await publish(own, risk.topics, PAYMENTS) == PAYMENTS
        async with Decisions.connect(
            purpose="delivery",
            group="reader.cards",
            start="beginning",
            kafka=own.kafka_settings("reader"),
            topics=risk.topics,
            keys=own.keys.settings("reader"),
        ) as decisions:
            async with asyncio.timeout(DEADLINE_S):
                seen = [await anext(decisions) for _ in range(PAYMENTS)]
        assert {each.event_id for each in seen} == {f"event-{index}" for index in range(PAYMENTS)}
        assert not [each for each in seen if each.degraded], risk.log_text()[-2000:]
        await book.has(PAYMENTS)
        assert risk.stop() == ExitCode.OK
        assert book.stop() == ExitCode.OK


class LedgerProcess:
    """The ledger's service on MariaDB."""

    def __init__(self, own, folder, topics, user="ledger", kafka=None, **table):
        self.own, self.log_path = own, folder / "ledger.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.url = own.mariadb.url()
        self.table = own.certificate("ledger") | table
        path = folder / "ledger.toml"
        tables = {
            "kafka": {
                "bootstrap_servers": own.kafka.bootstrap_servers,
                **own.kafka_table(user),
                **(kafka or {}),
            },
            "topics": topics.model_dump(),
            "keys": {"endpoint": own.keys.endpoint, **own.certificate("ledger")},
            "ledger": {"metrics_port": free_port(), **self.table},
            "log": {"format": "json"},
        }
        path.write_text(toml_of(tables))
        # A password is best kept out of the file.
        self.env = {**os.environ, "WEIR_CONFIG": str(path), "WEIR_LEDGER_URL": self.url}
        self.process = None

    def start(self):
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.ledger"], env=self.env, stdout=log, stderr=log
            )

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)

    async def has(self, count):
        """Return once that many decisions are stored."""
        settings = LedgerSettings(url=SecretStr(self.url), **self.table)
        async with asyncio.timeout(DEADLINE_S), await Ledger.open(settings) as store:
            while len(await store.recent(count + 1)) != count:
                assert self.process.poll() is None, self.log_path.read_text()
                await asyncio.sleep(0.05)


@contextmanager
def ledger(own, folder, topics, **options):
    process = LedgerProcess(own, folder, topics, **options)
    try:
        yield process
    finally:
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait(20)


# Rights on the brokers


def test_the_table_below_speaks_of_every_role():
    assert tuple(MATRIX) == ROLES


@pytest.mark.parametrize("role", MATRIX)
async def test_each_role_reads_and_writes_what_the_matrix_says_and_nothing_else(own, role):
    settings = own.kafka_settings(role)
    wanted = {
        (topic, what): (letter == what)
        for topic, letter in zip(TOPICS, MATRIX[role], strict=True)
        for what in ("r", "w")
    }
    tried = [reads(settings, topic) if what == "r" else writes(settings, topic) for topic, what in wanted]
    errors = dict(zip(wanted, await asyncio.gather(*tried), strict=True))
    assert {pair: error is None for pair, error in errors.items()} == wanted
    for (topic, _), error in errors.items():
        if error is not None:
            assert_denial(error)
            assert topic in str(error) or "to any topic" in str(error)
            assert role in str(error)


@pytest.mark.parametrize("role", sorted(set(GROUPS.values())))
async def test_each_role_joins_its_own_groups_only(own, role):
    settings = own.kafka_settings(role)
    errors = dict(
        zip(GROUPS, await asyncio.gather(*(joins(settings, group) for group in GROUPS)), strict=True)
    )
    assert {group: error is None for group, error in errors.items()} == {
        group: owner == role for group, owner in GROUPS.items()
    }
    for group, error in errors.items():
        if error is not None:
            assert_denial(error)
            assert group in str(error)


def assert_denial(error):
    assert isinstance(error, AccessDenied), error
    assert error.exit_code == ExitCode.DENIED
    assert "\n" not in str(error)


@asynccontextmanager
async def consumer_of(settings, **options):
    consumer = AIOKafkaConsumer(**client_options(settings), **options)
    await connect(consumer, settings)
    try:
        yield consumer
    finally:
        await consumer.stop()


async def reads(settings, topic):
    """What reading the topic meets; None when it may be read."""
    try:
        await partitions_of(topic, settings)
        async with consumer_of(settings) as consumer:
            with one_line(settings, topic):
                place = TopicPartition(topic, 0)
                consumer.assign([place])
                consumer.seek(place, 0)
                await consumer.getmany(timeout_ms=1000)
    except WeirError as error:
        return error
    return None


async def writes(settings, topic):
    """What the SDK's publisher meets on the topic; None when it may write there."""
    try:
        async with (
            asyncio.timeout(30),
            Publisher.connect(kafka=settings, topics=TopicSettings(transactions=topic)) as bank,
        ):
            await bank.publish(payment())
    except WeirError as error:
        return error
    return None


async def joins(settings, group):
    """What joining the group meets; None when it may be joined."""
    topic = TOPICS[MATRIX[settings.sasl_username].index("r")]
    try:
        async with consumer_of(settings, group_id=group) as consumer:
            with one_line(settings, topic):
                consumer.subscribe([topic])
                async with asyncio.timeout(30):
                    while not consumer.assignment():
                        await consumer.getmany(timeout_ms=100)
    except WeirError as error:
        return error
    return None


# Services that are refused


def ended(process, log_path, code):
    """The one line with which a service ended."""
    assert process.wait(DEADLINE_S) == code, log_path.read_text()[-3000:]
    plain = [line for line in log_path.read_text().splitlines() if not line.startswith("{")]
    assert len(plain) == 1, plain
    assert "Traceback" not in log_path.read_text()
    assert "horse" not in log_path.read_text()
    return plain[0]


@pytest.mark.parametrize(
    ("user", "says"),
    [
        ("risk-without-read", "use topic bank.transactions"),
        ("risk-without-write", "use topic weir.decisions"),
        ("risk-without-group", "use consumer group"),
        ("publisher", "use topic weir.decisions"),
    ],
)
async def test_a_worker_without_a_right_ends_with_one_line(own, tmp_path, user, says):
    with worker(own, tmp_path, user) as risk:
        await publish(own, risk.topics, 1)
        risk.start(wait=False)
        line = ended(risk.process, risk.log_path, ExitCode.DENIED)
    assert f"does not let {user} {says}" in line


@pytest.mark.parametrize(
    ("service", "wrong"),
    [
        *((service, "sasl_password") for service in ("risk", "ledger", "weir topics")),
        *((service, "ssl_ca") for service in ("risk", "ledger", "weir topics")),
        ("risk", "security_protocol"),
        ("weir topics", "security_protocol"),
    ],
)
async def test_wrong_access_to_kafka_is_one_line(own, tmp_path, other_authority, service, wrong):
    values = {"sasl_password": "wrong-horse-8", "ssl_ca": other_authority, "security_protocol": "PLAINTEXT"}
    kafka = {wrong: values[wrong]}
    code = ExitCode.DENIED
    if service == "risk":
        with worker(own, tmp_path, kafka=kafka) as risk:
            risk.start(wait=False)
            line = ended(risk.process, risk.log_path, code)
    elif service == "ledger":
        with ledger(own, tmp_path, NAMES, kafka=kafka) as book:
            book.start()
            line = ended(book.process, book.log_path, code)
    else:
        done = weir(own, tmp_path, "topics", role="admin", kafka=kafka)
        assert done.returncode == code, done.stderr
        (line,) = done.stderr.splitlines()
    assert wrong in line


def weir(own, folder, *words, role, kafka=None, keys=None):
    path = folder / "weir.toml"
    tables = {
        "kafka": own.kafka_table(role) | (kafka or {}),
        "keys": {"endpoint": own.keys.endpoint, **own.certificate(role), **(keys or {})},
    }
    path.write_text(toml_of(tables))
    command = [sys.executable, "-c", "import sys; from weir.cli import main; sys.exit(main())", *words]
    return subprocess.run(
        command,
        env={**os.environ, "WEIR_CONFIG": str(path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


# Wrong certificates, and callers in the clear


@pytest.mark.parametrize("wrong", ["ca", "certificate", "clear"])
async def test_triton_takes_nobody_else(own, other_authority, wrong):
    fields = own.triton_table() | {
        "ca": {"ssl_ca": other_authority},
        "certificate": {"ssl_certificate": None, "ssl_key": None},
        "clear": {"tls": False, "ssl_ca": None, "ssl_certificate": None, "ssl_key": None},
    }[wrong]  # fmt: skip
    settings = TritonSettings(endpoint=own.triton.endpoint, **fields)
    options = {"outputs": ("logit",), "rows_max": 8, "deadline_s": 2.0}
    async with ModelClient(settings, "risk", "1", **options) as triton:
        assert not await triton.ready()
        with pytest.raises(ModelUnavailable) as error:
            await triton.score(np.zeros((1, len(FEATURES)), np.float32))
    assert "\n" not in str(error.value)
    if wrong == "ca":
        assert "TLS failed (CERTIFICATE_VERIFY_FAILED); check tls, ssl_ca" in str(error.value)


@pytest.mark.parametrize("wrong", ["ca", "certificate", "clear"])
async def test_key_service_takes_nobody_else(own, other_authority, tmp_path, wrong):
    stranger = ensure_pki(tmp_path / "stranger", ["reader"]).roles["reader"]
    fields = own.certificate("reader") | {
        "ca": {"ssl_ca": other_authority},
        "certificate": {"ssl_certificate": stranger.certificate, "ssl_key": stranger.key},
        "clear": {"tls": False},
    }[wrong]  # fmt: skip
    # Of the addresses of localhost, gRPC would tell the last one's failure.
    endpoint = own.keys.endpoint.replace("localhost", "127.0.0.1")
    settings = KeyServiceSettings(endpoint=endpoint, **fields)
    async with await Keyring.connect(settings) as keyring:
        with pytest.raises(NeighbourUnavailable) as error:
            await keyring.pseudonymizer("default", deadline_s=1.0)
    assert "\n" not in str(error.value)
    if wrong == "ca":
        assert "TLS failed (CERTIFICATE_VERIFY_FAILED); check tls, ssl_ca" in str(error.value)


def test_a_reader_with_another_authority_for_the_keys_gets_one_line(own, tmp_path, other_authority):
    done = weir(own, tmp_path, "decisions", "show", str(uuid.uuid4()), role="reader")
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.MISSING, 1)
    keys = {"ssl_certificate": "/nowhere/reader.crt"}
    done = weir(own, tmp_path, "decisions", "show", str(uuid.uuid4()), role="reader", keys=keys)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.MISSING, 1)
    assert "/nowhere/reader.crt" in done.stderr


@pytest.mark.parametrize("wrong", ["ca", "certificate", "clear"])
async def test_database_takes_nobody_else(own, other_authority, wrong):
    fields = own.certificate("ledger") | {
        "ca": {"ssl_ca": other_authority},
        "certificate": {"ssl_certificate": None, "ssl_key": None},
        "clear": {"ssl_ca": None, "ssl_certificate": None, "ssl_key": None},
    }[wrong]  # fmt: skip
    url = SecretStr(own.mariadb.url())
    with pytest.raises(WeirError) as error:
        await Ledger.open(LedgerSettings(url=url, **fields))
    says = {"ca": "ssl_ca", "certificate": "refuses this user", "clear": "wants TLS"}[wrong]
    assert isinstance(error.value, AccessDenied)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert url.get_secret_value() not in str(error.value)


async def test_the_connection_to_the_database_is_encrypted(own):
    settings = LedgerSettings(url=SecretStr(own.mariadb.url()), **own.certificate("ledger"))
    engine, _ = make_engine(settings)
    async with engine.connect() as connection:
        shown = (await connection.execute(text("SHOW STATUS LIKE 'Ssl_cipher'"))).one()
    await engine.dispose()
    assert shown[1]
