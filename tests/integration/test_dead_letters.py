"""`weir dlq` against a real broker and a real key service."""

import asyncio
import json
import os
import subprocess
import sys

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from infra.local.pki import ensure_pki
from tests.support.keys import running_keys_service
from weir.codec.registry import FileRegistry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.crypto.keyring import Keyring
from weir.errors import ExitCode
from weir.streams.dead_letter import DeadLetterWriter, dead_letter

SECRET = "DE89370400440532013000"
DEADLINE_S = 30


@pytest.fixture(scope="module")
def keys_service(tmp_path_factory):
    pki = ensure_pki(tmp_path_factory.mktemp("pki"))
    with running_keys_service(tmp_path_factory.mktemp("keys"), pki=pki) as service:
        yield service


@pytest.fixture
async def places(kafka, keys_service):
    """Five letters of three originals' kinds in a topic of their own: (source topic, dead letter topic)."""
    source, dlq = kafka.make_topic("bank.transactions"), kafka.make_topic("weir.risk.dlq")
    schema_id = await FileRegistry.read().id_of(SUBJECTS["dead_letter"], load_schema("dead_letter"))
    async with await Keyring.connect(keys_service.settings("risk-worker")) as keyring:
        writer = DeadLetterWriter(await keyring.sealer(dlq), schema_id)
        sealed = writer.write(
            [
                dead_letter(
                    source, index % 4, index, 1_772_442_000_000 + index, SECRET.encode(),
                    f"original {index} of {SECRET}".encode(), [("bank.header", b"kept"), ("empty", None)],
                    "truncated" if index < 3 else "unknown_schema", "bytes end early", "risk", 1_772_442_001,
                )
                for index in range(5)
            ]
        )  # fmt: skip
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for index, (value, headers) in enumerate(sealed):
            await producer.send_and_wait(dlq, value, b"pseudonym", partition=index % 4, headers=headers)
    return source, dlq


@pytest.fixture
def weir(kafka, keys_service, places, tmp_path):
    """Runs `weir dlq ...` as a role."""

    def run(*words, role="admin"):
        identity = keys_service.pki.roles[role]
        config = tmp_path / "weir.toml"
        config.write_text(
            f"""
[kafka]
bootstrap_servers = "{kafka.bootstrap_servers}"
[topics]
transactions = "{places[0]}"
risk_dlq = "{places[1]}"
[keys]
endpoint = "{keys_service.endpoint}"
ssl_ca = "{keys_service.pki.ca}"
ssl_certificate = "{identity.certificate}"
ssl_key = "{identity.key}"
"""
        )
        return subprocess.run(
            [sys.executable, "-c", "import sys; from weir.cli import main; sys.exit(main())", "dlq", *words],
            capture_output=True, text=True, timeout=60, env={**os.environ, "WEIR_CONFIG": str(config)},
        )  # fmt: skip

    return run


async def records_of(kafka, topic):
    async with AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers) as consumer:
        partitions = [TopicPartition(topic, number) for number in range(4)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        total = sum((await consumer.end_offsets(partitions)).values())
        found = []
        async with asyncio.timeout(DEADLINE_S):
            while len(found) < total:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
    return found


async def test_list_counts_reasons_and_shows_no_content(weir, places):
    listed = json.loads((await asyncio.to_thread(weir, "list", "--json", role="monitor")).stdout)
    assert listed["counts"] == {"truncated": 3, "unknown_schema": 2}
    assert {(each["partition"], each["offset"]) for each in listed["letters"]} == {
        (0, 0), (1, 0), (2, 0), (3, 0), (0, 1),
    }  # fmt: skip
    text = (await asyncio.to_thread(weir, "list", "--reason", "truncated", "-n", "1")).stdout
    assert "3 dead letters" in text
    assert SECRET not in text


async def test_show_opens_one_and_reveals_bytes_only_when_asked(weir, places):
    shown = (await asyncio.to_thread(weir, "show", "1:0", "--purpose", "replay")).stdout
    assert "truncated: bytes end early" in shown
    assert f"{places[0]}[1]@1" in shown
    assert SECRET not in shown
    assert "kept" not in shown
    revealed = (await asyncio.to_thread(weir, "show", "1:0", "--reveal", "--purpose", "replay")).stdout
    assert SECRET in revealed
    assert b"original 1".hex(" ") in revealed


async def test_show_says_what_is_wrong_in_one_line(weir):
    for words, role, code, said in (
        (("show", "1:99"), "analyst", ExitCode.MISSING, "No dead letter at"),
        (("show", "99:0"), "analyst", ExitCode.MISSING, "No dead letter at"),
        (("show", "here"), "analyst", ExitCode.FAILED, "PARTITION:OFFSET"),
        (("show", "1:0"), "reader", ExitCode.DENIED, "Role reader may not open"),
    ):
        done = await asyncio.to_thread(weir, *words, role=role)
        assert done.returncode == code, done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


async def test_replay_puts_originals_back_as_they_were(kafka, weir, places):
    source, dlq = places
    asked = await asyncio.to_thread(weir, "replay")
    assert (asked.returncode, asked.stdout) == (
        ExitCode.USAGE,
        "5 dead letters would be replayed. Add --yes to do it.\n",
    )
    assert await records_of(kafka, source) == []
    done = await asyncio.to_thread(weir, "replay", "--reason", "truncated", "--yes")
    assert (done.returncode, done.stdout) == (0, "replayed 3\n"), done.stderr
    found = {record.partition: record for record in await records_of(kafka, source)}
    assert set(found) == {0, 1, 2}
    assert found[2].key == SECRET.encode()
    assert found[2].value == f"original 2 of {SECRET}".encode()
    assert found[2].headers == (
        ("bank.header", b"kept"),
        ("empty", None),
        ("weir.replayed-from", f"{dlq}:2:0".encode()),
    )


async def test_replay_of_one_place_or_of_a_few(kafka, weir, places):
    assert (await asyncio.to_thread(weir, "replay", "--at", "3:0", "--yes")).stdout == "replayed 1\n"
    assert (await asyncio.to_thread(weir, "replay", "--limit", "2", "--yes")).stdout == "replayed 2\n"
    assert len(await records_of(kafka, places[0])) == 3


async def test_role_that_may_not_open_replays_nothing(kafka, weir, places):
    done = await asyncio.to_thread(weir, "replay", "--yes", role="reader")
    assert done.returncode == ExitCode.DENIED
    assert done.stderr.count("\n") == 1
    assert await records_of(kafka, places[0]) == []
