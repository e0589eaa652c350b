"""After a run of everything, the secrets of its payments are nowhere but in the bank's own topics.

Payments, labels, poison and a trace go in; a ledger stores, readers of several roles read, some are refused.
Then every byte that is left is searched: topics, logs, metrics, health pages, files and exceptions' texts.
"""

import asyncio
import base64
import os
import signal
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from infra.local import layout
from infra.local.ports import free_port
from tests.support.keys import running_keys_service
from tests.support.payments import (
    Sent,
    dead_letters,
    decided,
    framed,
    label,
    letters_reader,
    payment,
    raw_records,
    records_to_send,
    sample,
    schema_id,
    send,
    until,
)
from tests.support.risk import RiskUnderTest, risk_under_test
from weir.client.dead_letters import DeadLetters
from weir.client.decisions import Decisions
from weir.client.records import Label, Transaction
from weir.codec.framing import frame
from weir.config import RegistrySettings
from weir.errors import AccessDenied, BadInput, IntegrityError, WeirError

PAYMENT_COUNT = 60
# Each too long to stand in random bytes by chance.
ACCOUNT, COUNTERPARTY = "DE89370400440532013", "FR7630006000011234567"
EVENT, TERMINAL = "event-under-watch", "terminal-under-watch"
HEADER = "header-under-watch"
AMOUNT = 73_313


def account(index: int) -> str:
    return f"{ACCOUNT}{index:03d}"


def amount(index: int) -> Decimal:
    return Decimal(f"{AMOUNT + index}.9173")


def unscaled(value: Decimal) -> bytes:
    """The amount as Avro writes it, without its length."""
    number = int(value * 10_000)
    return number.to_bytes((number.bit_length() // 8) + 1, "big")


def watched() -> dict[str, bytes]:
    """What may stand nowhere, in the forms in which it could."""
    words = {
        "account": ACCOUNT,
        "counterparty": COUNTERPARTY,
        "event": EVENT,
        "terminal": TERMINAL,
        "header": HEADER,
    }
    found = {}
    for name, word in words.items():
        text = word.encode()
        found |= {
            name: text,
            f"{name} in UTF-16": word.encode("utf-16-le"),
            f"{name} in hexadecimal": text.hex().encode(),
            f"{name} in hexadecimal, apart": text.hex(" ").encode(),
            # The middle of any base64 text of it; three are its alignments.
            **{
                f"{name} in base64, {shift}": base64.b64encode(b"\0" * shift + text)[4:-4].rstrip(b"=")
                for shift in range(3)
            },
        }
    for index in range(PAYMENT_COUNT):
        value = amount(index)
        found |= {
            f"amount {index}": str(value).encode(),
            f"amount {index} without point": str(int(value * 10_000)).encode(),
            f"amount {index} in Avro": bytes([2 * len(unscaled(value))]) + unscaled(value),
        }
    return found


WATCHED = watched()


def assert_clear_of(name: str, data: bytes) -> None:
    there = [what for what, word in WATCHED.items() if word in data]
    assert not there, f"{name} holds {', '.join(there)}"


@dataclass
class Run:
    """What is left of a run."""

    risk: RiskUnderTest
    ledger: Path
    ledger_log: Path
    pages: dict[str, str] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)
    command_output: dict[str, str] = field(default_factory=dict)
    bank_topics: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def run(tmp_path_factory, kafka, triton):
    folder = tmp_path_factory.mktemp("run")
    with (
        running_keys_service(folder / "keys", extra='[log]\nlevel = "debug"') as keys,
        risk_under_test(folder / "risk", kafka, keys, triton.endpoint, commit_interval_s=0.2) as risk,
    ):
        risk.tables["log"] = {"level": "debug"}
        risk.start()
        left = Run(risk, folder / "ledger" / "ledger.db", folder / "ledger" / "ledger.log")
        port = free_port()
        ledger = start_ledger(left, port)
        try:
            asyncio.run(live(left, port, triton))
            ledger.send_signal(signal.SIGTERM)
            ledger.wait(30)
        finally:
            if ledger.poll() is None:
                ledger.kill()
                ledger.wait(20)
        assert risk.stop() == 0
        keys.stop()
        yield left


def start_ledger(left: Run, port: int) -> "subprocess.Popen[bytes]":
    keys = left.risk.keys
    identity = keys.pki.roles["ledger"]
    left.ledger.parent.mkdir(parents=True)
    config = left.ledger.parent / "weir.toml"
    config.write_text(
        f"""
[kafka]
bootstrap_servers = "{left.risk.kafka.bootstrap_servers}"
[topics]
decisions = "{left.risk.topics.decisions}"
[keys]
endpoint = "{keys.endpoint}"
ssl_ca = "{keys.pki.ca}"
ssl_certificate = "{identity.certificate}"
ssl_key = "{identity.key}"
[ledger]
url = "sqlite+aiosqlite:///{left.ledger}"
group = "{left.risk.topics.decisions}-ledger"
metrics_port = {port}
[log]
format = "json"
level = "debug"
"""
    )
    with left.ledger_log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "services.ledger"],
            env={**os.environ, "WEIR_CONFIG": str(config)},
            stdout=log, stderr=log, cwd=layout.ROOT,
        )  # fmt: skip


async def live(left: Run, ledger_port: int, triton) -> None:
    """Everything that can happen to a payment, and everybody who may or may not read it."""
    risk = left.risk
    records = [
        payment(
            f"{EVENT}-{index}", account_id=account(index), counterparty_id=f"{COUNTERPARTY}{index}",
            terminal_id=f"{TERMINAL}-{index % 7}", amount=amount(index), channel="TRANSFER",
        )
        for index in range(PAYMENT_COUNT)
    ]  # fmt: skip
    headers = [("bank.note", HEADER.encode())]
    good = await records_to_send(records, headers=headers)
    await send(risk, good)
    await send(risk, await poison(records), risk.topics.transactions)
    labels = await framed("label", [label(each) for each in records])
    bad_labels = [labels[0][:-5], ACCOUNT.encode() * 3]
    await send(risk, [Sent(value) for value in (*labels, *bad_labels)], risk.topics.labels)
    found = await decided(risk)
    assert len(found) == PAYMENT_COUNT
    # The run is worth searching: its secrets can be read by who may.
    assert found[f"{EVENT}-3"][0].account_id == account(3)
    assert found[f"{EVENT}-3"][0].amount == amount(3)
    letters = await dead_letters(risk)
    assert any(ACCOUNT.encode() in (each.value or b"") for each in letters)
    left.command_output["repr of decisions"] = repr([each for (each,) in found.values()])
    left.command_output["repr of dead letters"] = repr(letters)
    left.command_output["repr of events"] = repr(events_of_the_sdk())
    await refused_readers(left)
    refused_events(left)

    ledger = f"http://127.0.0.1:{ledger_port}"
    await until(lambda: page_holds(f"{ledger}/metrics", PAYMENT_COUNT), "the ledger has stored them all")
    pages = {"risk": risk.metrics_port, "keys": risk.keys.metrics_port, "ledger": ledger_port}
    async with httpx.AsyncClient() as client:
        for name, port in pages.items():
            for page in ("metrics", "healthz"):
                left.pages[f"{name} {page}"] = (await client.get(f"http://127.0.0.1:{port}/{page}")).text
        left.pages["triton metrics"] = (await client.get(triton.metrics_url)).text


def page_holds(url: str, count: int) -> bool:
    try:
        page = httpx.get(url).text
    except httpx.TransportError:
        return False
    return sample(page, 'weir_ledger_records_total{result="stored"}') >= count


async def poison(records) -> list[Sent]:
    """Payments that cannot be decided, with the secrets in every part of them."""
    known = await asyncio.to_thread(schema_id, "transaction")
    (whole,) = await framed("transaction", records[:1])
    broken = [
        replaced
        for fields in (
            {"amount": -amount(1)},
            {"amount": amount(2) * 100_000},
            {"currency": "XXX"},
            {"event_id": EVENT * 20},
            {"terminal_id": ""},
        )
        for replaced in await framed("transaction", [records[0] | fields])
    ]
    values = [
        *broken,
        whole[:-10],
        whole[:40],
        whole + b"x",
        whole[5:],
        frame(known + 999, whole[5:]),
        whole.replace(b"under", b"un\xffer"),
        f"{ACCOUNT} {COUNTERPARTY} {EVENT}".encode(),
        None,
    ]
    return [Sent(value, account(0).encode(), [("bank.note", HEADER.encode())]) for value in values]


def events_of_the_sdk():
    return [
        Transaction(**payment(EVENT, account_id=account(0), amount=amount(0), terminal_id=TERMINAL)),
        Label(**label(payment(EVENT, account_id=account(0), terminal_id=TERMINAL))),
    ]


def refused_events(left: Run) -> None:
    """The SDK's refusals of events that break the contract."""
    for fields in (
        {"account_id": account(0) * 20},
        {"account_id": account(0) + "\n"},
        {"amount": -amount(0)},
        {"amount": amount(0) * Decimal("0.00001")},
        {"currency": ACCOUNT},
        {"event_time": EVENT},
        {"channel": ACCOUNT},
        {"counterparty_id": COUNTERPARTY * 20},
        {"merchant_category": ACCOUNT},
    ):
        with pytest.raises(BadInput) as refused:
            Transaction(**{**payment(EVENT, account_id=account(0), amount=amount(0)), **fields})
        left.errors.append(refused.value)


async def refused_readers(left: Run) -> None:
    """Roles that may not read, and records that were changed."""
    risk = left.risk
    for role, purpose, error in (
        ("reader", "investigation", AccessDenied),
        ("monitor", "delivery", AccessDenied),
    ):
        with pytest.raises(error) as refused:
            async with Decisions.connect(
                purpose=purpose, start="beginning", follow=False, kafka=risk.kafka_settings,
                topics=risk.topics, registry=RegistrySettings(), keys=risk.reader(role),
            ) as reader:  # fmt: skip
                await anext(reader)
        left.errors.append(refused.value)
    with pytest.raises(AccessDenied) as refused:
        async with DeadLetters.connect(
            kafka=risk.kafka_settings,
            topics=risk.topics,
            registry=RegistrySettings(),
            keys=risk.reader("reader"),
        ) as letters:
            await letters.open(await anext(letters.entries()))
    left.errors.append(refused.value)
    async with letters_reader(risk) as letters:
        entries = [entry async for entry in letters.entries()]
        entry = entries[0]
        value = entry.record.value[:-1] + bytes([entry.record.value[-1] ^ 1])
        changed = replace(entry, record=replace(entry.record, value=value))
        with pytest.raises(IntegrityError) as flipped:
            await letters.open(changed)
        left.errors.append(flipped.value)
        left.command_output["repr of entries"] = repr(entries)


async def test_no_byte_of_weirs_topics_tells_a_secret(run):
    topics = run.risk.topics
    count = 0
    for topic in (topics.decisions, topics.risk_dlq):
        for record in await raw_records(run.risk.kafka.bootstrap_servers, topic):
            where = f"{topic}[{record.partition}]@{record.offset}"
            assert_clear_of(f"{where} value", record.value or b"")
            assert_clear_of(f"{where} key", record.key or b"")
            for name, content in record.headers:
                assert_clear_of(f"{where} header", name.encode() + b"\0" + (content or b""))
            count += 1
    assert count > PAYMENT_COUNT


async def test_search_finds_the_secrets_where_they_are(run):
    """In the bank's own topics everything stands in the clear: the search is not blind."""
    records = await raw_records(run.risk.kafka.bootstrap_servers, run.risk.topics.transactions)
    everything = b"".join(
        (each.value or b"") + (each.key or b"") + str(each.headers).encode() for each in records
    )
    for name in ("account", "counterparty", "event", "terminal", "header", "amount 7 in Avro"):
        assert WATCHED[name] in everything, name


def test_messages_keys_are_pseudonyms_that_tell_accounts_apart(run):
    async def keys():
        return [
            each.key
            for each in await raw_records(run.risk.kafka.bootstrap_servers, run.risk.topics.decisions)
        ]

    found = asyncio.run(keys())
    assert len(set(found)) == len(found) == PAYMENT_COUNT


def test_no_log_tells_a_secret(run, kafka, triton):
    keys = run.risk.keys
    for name, path in {
        "the risk worker's log": run.risk.log_path,
        "the ledger's log": run.ledger_log,
        "the key service's log": keys.directory / "keys.log",
        "the key service's audit": keys.audit_file,
        "the broker's log": kafka.server.log_path,
        "Triton's log": triton.log_path,
    }.items():
        data = path.read_bytes()
        assert data, name
        assert_clear_of(name, data)


def test_no_page_of_metrics_or_health_tells_a_secret(run):
    assert len(run.pages) == 7
    for name, text in run.pages.items():
        assert text, name
        assert_clear_of(name, text.encode())


def test_no_file_that_a_service_leaves_tells_a_secret(run):
    with closing(sqlite3.connect(run.ledger)) as database:
        assert database.execute("select count(*) from decision").fetchone() == (PAYMENT_COUNT,)
    files = [
        path
        for folder in (run.ledger.parent, run.risk.directory, run.risk.keys.directory)
        for path in folder.rglob("*")
        if path.is_file()
    ]
    assert run.ledger in files
    for path in files:
        assert_clear_of(str(path), path.read_bytes())


def test_no_exception_or_repr_tells_a_secret(run):
    assert len(run.errors) >= 13
    for error in run.errors:
        assert isinstance(error, WeirError)
        chain = error
        while chain is not None:
            assert_clear_of(repr(type(chain)), f"{chain}\n{chain!r}\n{vars(chain)}".encode())
            chain = chain.__cause__ or chain.__context__
        # Its lines of code name the secrets, and never hold them.
        assert_clear_of("a traceback", "".join(traceback.format_exception(error)).encode())
    for name, text in run.command_output.items():
        assert_clear_of(name, text.encode())
