"""The examples and `weir decisions`, run as a person runs them."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.pki import ensure_pki
from tests.support.decisions import ACCOUNT, decision_record, sealed_decisions, send
from tests.support.keys import running_keys_service
from weir.crypto.keyring import Keyring
from weir.errors import ExitCode

EXAMPLES = Path(__file__).parents[2] / "examples"
WEIR = [sys.executable, "-c", "import sys; from weir.cli import main; sys.exit(main())"]
DEADLINE_S = 60


@pytest.fixture(scope="module")
def keys_service(tmp_path_factory):
    pki = ensure_pki(tmp_path_factory.mktemp("pki"))
    with running_keys_service(tmp_path_factory.mktemp("keys"), pki=pki) as service:
        yield service


@pytest.fixture
def stack(kafka, keys_service, tmp_path):
    """Topics of the test's own with twelve decisions, and the settings by which each role reaches them."""
    topics = {name: kafka.make_topic(f"{name}") for name in ("bank.transactions", "weir.decisions")}

    def config(role):
        identity = keys_service.pki.roles[role]
        path = tmp_path / f"{role}.toml"
        path.write_text(
            f"""
[kafka]
bootstrap_servers = "{kafka.bootstrap_servers}"
[topics]
transactions = "{topics["bank.transactions"]}"
decisions = "{topics["weir.decisions"]}"
[keys]
endpoint = "{keys_service.endpoint}"
ssl_ca = "{keys_service.pki.ca}"
ssl_certificate = "{identity.certificate}"
ssl_key = "{identity.key}"
"""
        )
        return {**os.environ, "WEIR_CONFIG": str(path), "COLUMNS": "200"}

    async def decide(indices):
        async with await Keyring.connect(keys_service.settings("risk-worker")) as keyring:
            sealer = await keyring.sealer(topics["weir.decisions"])
            messages = await sealed_decisions(sealer, [decision_record(index) for index in indices])
        await send(kafka.bootstrap_servers, topics["weir.decisions"], messages)

    asyncio.run(decide(range(12)))
    config.decide = decide
    return config


def weir(stack, *words, role="analyst"):
    return subprocess.run(
        [*WEIR, "decisions", *words], env=stack(role), capture_output=True, text=True, timeout=DEADLINE_S
    )


def test_example_publishes(stack):
    done = subprocess.run(
        [sys.executable, EXAMPLES / "publish.py"],
        env=stack("reader"), capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("published at bank.transactions")


def test_example_reads_decisions_with_their_reasons(stack):
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "read_decisions.py"],
        # On stderr aiokafka says that a fresh broker has no group coordinator yet.
        env=stack("reader"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as reading:  # fmt: skip
        try:
            lines = [reading.stdout.readline() for _ in range(12)]
        finally:
            reading.kill()
    assert {line.split()[0] for line in lines} == {f"event-{index}" for index in range(12)}, lines
    assert all("The amount is far above" in line for line in lines)


def test_examples_have_about_ten_lines():
    for path in EXAMPLES.glob("*.py"):
        body = path.read_text().partition("async def main")[2].splitlines()
        assert len([line for line in body if line.strip()]) <= 14, path


def test_tail_shows_the_latest_with_reasons_and_without_account(stack):
    shown = weir(stack, "tail", "-n", "3", "--no-follow")
    assert shown.returncode == 0, shown.stderr
    assert [line.split()[2] for line in shown.stdout.splitlines() if line.startswith("2026")] == [
        "APPROVE", "REVIEW", "DECLINE",
    ]  # fmt: skip
    assert shown.stdout.count("The amount is far above") == 3
    assert "1,234.56 EUR" in shown.stdout
    assert ACCOUNT not in shown.stdout
    chinese = weir(stack, "tail", "-n", "1", "--no-follow", "--lang", "zh", "--reveal").stdout
    assert "金额远高于" in chinese
    assert ACCOUNT in chinese


def test_tail_as_json_is_one_object_a_line(stack):
    shown = weir(stack, "tail", "--from-beginning", "--outcome", "decline", "--json", "--no-follow")
    objects = [json.loads(line) for line in shown.stdout.splitlines()]
    assert {each["event_id"] for each in objects} == {"event-2", "event-5", "event-8", "event-11"}
    assert objects[0]["amount"] == "1234.5600"
    assert "account_id" not in objects[0]


def test_tail_that_follows_shows_what_comes(stack):
    with subprocess.Popen(
        [*WEIR, "decisions", "tail", "-n", "2", "--json"],
        env=stack("analyst"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as tailing:  # fmt: skip
        try:
            before = [json.loads(tailing.stdout.readline())["event_id"] for _ in range(2)]
            asyncio.run(stack.decide([12]))
            after = json.loads(tailing.stdout.readline())["event_id"]
        finally:
            tailing.kill()
    assert (before, after) == (["event-10", "event-11"], "event-12")


def test_show_finds_one_decision(stack):
    wanted = str(decision_record(4)["decision_id"])
    assert json.loads(weir(stack, "show", wanted, "--json").stdout)["event_id"] == "event-4"
    missing = weir(stack, "show", "00000000-0000-5000-8000-000000000000")
    assert (missing.returncode, missing.stderr.count("\n")) == (ExitCode.MISSING, 1)


def test_role_that_may_not_read_gets_one_line_and_its_exit_code(stack):
    denied = weir(stack, "tail", "--no-follow", role="admin")
    assert denied.returncode == ExitCode.DENIED
    assert denied.stderr.count("\n") == 1
    assert "Role admin may not open" in denied.stderr
