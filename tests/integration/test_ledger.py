"""The ledger on SQLite and on a real MariaDB: first writer wins, nothing is lost, neighbours may be away."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine
from structlog.testing import capture_logs

from infra.local.pki import ensure_pki
from services.ledger.app import Bookkeeper, LedgerMetrics, Patience
from services.ledger.models import metadata
from services.ledger.records import sort
from services.ledger.settings import LedgerSettings
from services.ledger.store import DatabaseAway, Ledger, RowRefused
from tests.support.decisions import ACCOUNT, decision_record, sealed_decisions, send
from tests.support.keys import free_port, running_keys_service
from weir.client.opening import RecordOpener
from weir.codec.registry import FileRegistry
from weir.crypto.keyring import Keyring
from weir.errors import AccessDenied, ConfigError
from weir.obs.metrics import Metrics

DEADLINE_S = 60
TOPIC = "weir.decisions"


class Record:
    """A record as aiokafka hands it over."""

    def __init__(self, message, offset=0, partition=0, topic=TOPIC):
        self.key, self.value, self.headers = message
        self.topic, self.partition, self.offset, self.timestamp = topic, partition, offset, 1_772_442_000_000


@pytest.fixture(scope="module")
def keys_service(tmp_path_factory):
    pki = ensure_pki(tmp_path_factory.mktemp("pki"))
    with running_keys_service(tmp_path_factory.mktemp("keys"), pki=pki) as service:
        yield service


@pytest.fixture
async def sealed(keys_service):
    """Seals decisions for TOPIC as records."""

    async def sealed(count=5, **fields):
        async with await Keyring.connect(keys_service.settings("risk-worker")) as keyring:
            messages = await sealed_decisions(
                await keyring.sealer(TOPIC), [decision_record(index, **fields) for index in range(count)]
            )
        return [Record(message, offset) for offset, message in enumerate(messages)]

    return sealed


@asynccontextmanager
async def opener_of(keys_service, role="ledger", purpose="ledger"):
    async with await Keyring.connect(keys_service.settings(role)) as keyring:
        yield RecordOpener("decision", keyring, FileRegistry.read(), purpose=purpose, plain=True)


@pytest.fixture(params=["sqlite", "mariadb"])
async def settings(request, tmp_path) -> LedgerSettings:
    """An empty database of the test's own."""
    if request.param == "sqlite":
        return LedgerSettings(
            url=SecretStr(f"sqlite+aiosqlite:///{tmp_path}/ledger.db"), busy_timeout_ms=2000
        )
    url = make_url(request.getfixturevalue("mariadb"))
    name = f"ledger_{uuid.uuid4().hex}"
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE DATABASE {name} CHARACTER SET utf8mb4"))
    await engine.dispose()
    return LedgerSettings(url=SecretStr(url.set(database=name).render_as_string(hide_password=False)))


@pytest.fixture
async def ledger(settings):
    async with await Ledger.open(settings) as ledger:
        yield ledger


async def test_first_writer_of_a_decision_wins(ledger, sealed, keys_service):
    records = await sealed(5)
    async with opener_of(keys_service) as opener:
        rows = (await sort(records, opener, now_ms=1)).decisions
    first = await ledger.put(rows[:3])
    again = await ledger.put([replace(row, stored_ms=2, kafka_offset=99) for row in [*rows, rows[4]]])
    assert (first.new_count, first.duplicate_count) == (3, 0)
    assert (again.new_count, again.duplicate_count) == (2, 4)
    stored = {row.decision_id: row for row in await ledger.recent(100)}
    assert len(stored) == 5
    assert [stored[row.decision_id].stored_ms for row in rows] == [1, 1, 1, 2, 2]


async def test_stored_decision_opens_again_and_has_its_clear_columns(ledger, sealed, keys_service):
    records = await sealed(3)
    async with opener_of(keys_service) as opener:
        await ledger.put((await sort(records, opener, now_ms=1)).decisions)
        wanted = decision_record(2)
        row = await ledger.get(wanted["decision_id"])
        assert row is not None
        assert (row.outcome, row.degraded, row.probability, row.model_version) == (
            "DECLINE",
            False,
            0.125,
            "1",
        )
        assert row.event_ms == int(wanted["event_time"].timestamp() * 1000)
        assert row.account_pseudonym == b"pseudonym-of-account-1"
        headers = [("weir.envelope", row.envelope_header())]
        opened = await opener.open(row.topic, row.ciphertext, headers)
        assert opened.record["account_id"] == ACCOUNT
    assert await ledger.get(uuid.UUID(int=0)) is None
    assert [each.decision_id for each in await ledger.recent(10, outcome="REVIEW")] == [
        decision_record(1)["decision_id"].bytes
    ]
    assert len(await ledger.recent(10, account_pseudonym=b"pseudonym-of-account-1")) == 3
    assert ACCOUNT not in repr(row)
    assert "ciphertext" not in repr(row)


async def test_record_that_this_role_may_not_open_is_kept_sealed(ledger, sealed, keys_service):
    async with opener_of(keys_service, role="reader") as opener:
        rows = await sort(await sealed(2), opener, now_ms=1)
    assert (len(rows.decisions), rows.refusals, rows.unopened_count) == (2, [], 2)
    await ledger.put(rows.decisions)
    row = await ledger.get(decision_record(0)["decision_id"])
    assert (row.outcome, row.event_ms, row.degraded) == (None, None, None)
    assert row.ciphertext == rows.decisions[0].ciphertext


async def test_record_that_is_no_decision_is_refused_whole_and_once(ledger, sealed, keys_service):
    records = await sealed(3)
    records[1].value = records[1].value[:-1] + bytes([records[1].value[-1] ^ 1])
    records[2].headers = []
    async with opener_of(keys_service) as opener:
        rows = await sort(records, opener, now_ms=1)
    assert (len(rows.decisions), len(rows.refusals)) == (1, 2)
    for _ in range(2):
        await ledger.put(rows.decisions, rows.refusals)
    stored = await ledger.refusals()
    assert [(each.kafka_offset, each.reason) for each in stored] == [(2, "not_opened"), (1, "not_opened")]
    assert stored[1].value == records[1].value
    assert stored[1].record_key == records[1].key


async def test_two_ledgers_at_once_keep_one_row_for_each_decision(settings, sealed, keys_service):
    async with opener_of(keys_service) as opener:
        rows = (await sort(await sealed(200), opener, now_ms=1)).decisions
    async with await Ledger.open(settings) as one, await Ledger.open(settings) as other:

        async def put_all(ledger, rows):
            for at in range(0, len(rows), 20):
                while True:
                    try:
                        await ledger.put(rows[at : at + 20])
                        break
                    except DatabaseAway:  # a deadlock or a lock: the service tries again too
                        continue

        await asyncio.gather(put_all(one, rows), put_all(other, rows[::-1]))
        assert len(await one.recent(1000)) == 200


async def test_ledgers_that_start_together_make_the_tables_that_the_models_say(settings):
    code = (
        "import asyncio; from services.ledger.store import Ledger; from services.ledger.settings import *\n"
        "async def main(): await (await Ledger.open(LedgerSettings.load())).close()\n"
        "asyncio.run(main())"
    )
    environment = {**os.environ, "WEIR_LEDGER_URL": settings.url.get_secret_value()}
    command = [sys.executable, "-c", code]
    starting = [asyncio.to_thread(subprocess.run, command, env=environment, check=True) for _ in range(3)]
    await asyncio.gather(*starting)
    async with await Ledger.open(settings) as ledger, ledger._engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts={"version_table": "ledger_version"}), metadata
            )
        )
    assert differences == []


async def test_row_that_no_table_takes_stops_no_other(ledger, sealed, keys_service):
    records = await sealed(3)
    metrics = LedgerMetrics(Metrics("ledger", CollectorRegistry()))
    async with opener_of(keys_service) as opener:
        rows = await sort(records, opener, now_ms=1)
        broken = replace(rows.decisions[1], kafka_ms=None)
        with pytest.raises(RowRefused):
            await ledger.put([rows.decisions[0], broken])
        assert await ledger.recent() == []
        bookkeeper = Bookkeeper(ledger, opener, metrics, Patience(metrics, 1.0, asyncio.Event()))
        rows.decisions[1] = broken
        stored = await bookkeeper._put(rows, records)
    assert stored.new_count == 2
    assert [each.reason for each in await ledger.refusals()] == ["not_stored"]


async def test_locked_sqlite_is_waited_for_and_said_once(tmp_path, sealed, keys_service):
    path = tmp_path / "ledger.db"
    settings = LedgerSettings(url=SecretStr(f"sqlite+aiosqlite:///{path}"), busy_timeout_ms=20)
    metrics = LedgerMetrics(Metrics("ledger", CollectorRegistry()))
    patience = Patience(metrics, 0.05, asyncio.Event())
    records = await sealed(10)
    async with await Ledger.open(settings) as ledger, opener_of(keys_service) as opener:
        bookkeeper = Bookkeeper(ledger, opener, metrics, patience)
        with closing(sqlite3.connect(path, isolation_level=None)) as other, capture_logs() as logs:
            other.execute("BEGIN IMMEDIATE")
            storing = asyncio.create_task(bookkeeper.store(records))
            await until(lambda: patience.waits_for == "database")
            assert "locked" in patience.reason
            assert not storing.done()
            other.execute("ROLLBACK")
            stored = await asyncio.wait_for(storing, DEADLINE_S)
    assert stored.new_count == 10
    assert patience.waits_for is None
    assert [each["event"] for each in logs if each["event"].startswith("neighbour")] == [
        "neighbour_away", "neighbour_back",
    ]  # fmt: skip


async def test_full_disk_stores_nothing_and_is_waited_for(tmp_path, sealed, keys_service):
    """SQLite's own limit of pages gives the error that a full disk gives."""
    path = tmp_path / "ledger.db"
    settings = LedgerSettings(url=SecretStr(f"sqlite+aiosqlite:///{path}"))
    metrics = LedgerMetrics(Metrics("ledger", CollectorRegistry()))
    patience = Patience(metrics, 0.05, asyncio.Event())
    records = await sealed(200)
    pages_max = 30
    async with await Ledger.open(settings) as ledger, opener_of(keys_service) as opener:

        @event.listens_for(ledger._engine.sync_engine, "begin")
        def limit(connection):
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages_max}")

        bookkeeper = Bookkeeper(ledger, opener, metrics, patience)
        storing = asyncio.create_task(bookkeeper.store(records))
        await until(lambda: patience.waits_for == "database")
        assert "full" in patience.reason
        assert await ledger.recent() == []
        pages_max = 100_000
        assert (await asyncio.wait_for(storing, DEADLINE_S)).new_count == 200


async def test_wrong_password_is_one_line_without_it(mariadb):
    url = make_url(mariadb).set(password="wrong-secret").render_as_string(hide_password=False)
    with pytest.raises(AccessDenied) as caught:
        await Ledger.open(LedgerSettings(url=SecretStr(url)))
    assert "wrong-secret" not in str(caught.value)
    unknown = make_url(mariadb).set(database="nowhere").render_as_string(hide_password=False)
    with pytest.raises((ConfigError, AccessDenied), match="database"):
        await Ledger.open(LedgerSettings(url=SecretStr(unknown)))


def test_url_of_another_driver_is_refused_without_its_password(monkeypatch):
    monkeypatch.setenv("WEIR_LEDGER_URL", "postgresql://weir:hunter2@db/weir")
    with pytest.raises(ConfigError, match="WEIR_LEDGER_URL") as caught:
        LedgerSettings.load()
    assert "hunter2" not in str(caught.value)


# The whole service, as a process.


class Service:
    def __init__(self, kafka, keys_service, folder, url):
        self.topic = kafka.make_topic("weir.decisions")
        self.kafka, self.keys_service, self.folder = kafka, keys_service, folder
        self.port, self.process = free_port(), None
        identity = keys_service.pki.roles["ledger"]
        self.config = folder / "weir.toml"
        self.config.write_text(
            f"""
[kafka]
bootstrap_servers = "{kafka.bootstrap_servers}"
[topics]
decisions = "{self.topic}"
[keys]
endpoint = "{keys_service.endpoint}"
ssl_ca = "{keys_service.pki.ca}"
ssl_certificate = "{identity.certificate}"
ssl_key = "{identity.key}"
[ledger]
url = "{url}"
group = "{kafka.unique("ledger")}"
metrics_port = {self.port}
busy_timeout_ms = 20
retry_s_max = 0.2
"""
        )

    def start(self):
        with (self.folder / "ledger.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.ledger"],
                env={**os.environ, "WEIR_CONFIG": str(self.config)},
                stdout=log,
                stderr=log,
            )
        return self

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=30)

    @property
    def log_text(self):
        return (self.folder / "ledger.log").read_text()

    def page(self, name="healthz"):
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/{name}")
        except httpx.TransportError:
            return httpx.Response(0)

    async def ready(self, status=200):
        await until(lambda: self.page().status_code == status, self)

    async def decide(self, indices):
        async with await Keyring.connect(self.keys_service.settings("risk-worker")) as keyring:
            messages = await sealed_decisions(
                await keyring.sealer(self.topic), [decision_record(index) for index in indices]
            )
        await send(self.kafka.bootstrap_servers, self.topic, messages)


async def until(condition, service=None):
    async with asyncio.timeout(DEADLINE_S):
        while not await asyncio.to_thread(condition):
            assert service is None or service.process.poll() is None, service.log_text
            await asyncio.sleep(0.02)


@pytest.fixture
def service(kafka, keys_service, tmp_path):
    service = Service(kafka, keys_service, tmp_path, f"sqlite+aiosqlite:///{tmp_path}/ledger.db")
    yield service
    if service.process is not None:
        service.end(signal.SIGKILL)


def rows_in(path):
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*), count(DISTINCT decision_id) FROM decision").fetchone()


async def test_service_stores_each_decision_once_through_kill_and_restart(service, tmp_path):
    path = tmp_path / "ledger.db"
    service.start()
    await service.ready()
    await service.decide(range(300))
    await until(lambda: rows_in(path) == (300, 300), service)
    service.end(signal.SIGKILL)
    await service.decide(range(250, 400))
    service.start()
    await until(lambda: path.exists() and rows_in(path) == (400, 400), service)
    assert "weir_ledger_records_total" in service.page("metrics").text
    assert service.end() == 0
    # At rest and in the log there is no account, no event and no terminal in the clear.
    for file in tmp_path.glob("ledger.*"):
        content = file.read_bytes()
        for secret in (ACCOUNT.encode(), b"event-1", b"1234.56"):
            assert secret not in content


async def test_service_with_a_locked_database_is_not_ready_and_goes_on_afterwards(service, tmp_path):
    path = tmp_path / "ledger.db"
    service.start()
    await service.ready()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await service.decide(range(50))
        await service.ready(503)
        assert service.page().json() == {"ready": False, "waits_for": "database"}
        other.execute("ROLLBACK")
    await until(lambda: rows_in(path) == (50, 50), service)
    await service.ready()
    assert service.log_text.count("neighbour_away") == 1


async def test_service_waits_for_a_database_that_is_away_and_ends_when_told(kafka, keys_service, tmp_path):
    url = f"mysql+asyncmy://weir:hunter2@127.0.0.1:{free_port()}/weir"
    service = Service(kafka, keys_service, tmp_path, url).start()
    try:
        await until(lambda: service.page().status_code == 503 and "database" in service.page().text, service)
        assert service.end() == 0
        assert "hunter2" not in service.log_text
    finally:
        service.end(signal.SIGKILL)


async def test_missing_topic_ends_the_service_with_one_line(service):
    service.config.write_text(service.config.read_text().replace(service.topic, "weir.decisions.nowhere"))
    service.start()
    assert await asyncio.to_thread(service.process.wait, 60) == 3
    assert service.log_text.splitlines()[-1].startswith("Kafka at ")
    assert "Traceback" not in service.log_text
