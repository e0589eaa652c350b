"""Ports are kept while free, settings read back as meant, and nobody's own servers leak in."""

import json
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest

from infra.local.ports import PortTaken, free_ports
from infra.local.stack import (
    DiskFull,
    Stack,
    config_text,
    healthy,
    prometheus_text,
    require_disk,
    service_env,
)
from infra.local.stack_settings import StackPaths, StackSettings, choose_ports, to_toml, users_config
from infra.local.tools import find_promtool
from weir.errors import ConfigError, MissingPart, WeirError


@pytest.fixture
def listener():
    """A port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_ports_of_the_last_run_are_kept(tmp_path):
    kept = tmp_path / "run" / "ports.json"
    first = choose_ports({"kafka": 0, "keys": 0}, kept)
    assert len(set(first.values())) == 2
    assert choose_ports({"kafka": 0, "keys": 0}, kept) == first


def test_a_kept_port_that_is_taken_now_is_replaced(tmp_path, listener):
    kept = tmp_path / "ports.json"
    kept.write_text(json.dumps({"kafka": listener, "keys": 1}))
    assert choose_ports({"kafka": 0}, kept)["kafka"] != listener


def test_a_given_port_that_is_taken_is_one_line(tmp_path, listener):
    with pytest.raises(PortTaken, match=f"kafka: port {listener}"):
        choose_ports({"kafka": listener}, tmp_path / "ports.json")


def test_a_given_port_wins_and_no_other_part_gets_it(tmp_path):
    (port,) = free_ports(1)
    kept = tmp_path / "ports.json"
    kept.write_text(json.dumps({"keys": port}))
    chosen = choose_ports({"keys": 0, "kafka": port}, kept)
    assert chosen["kafka"] == port
    assert chosen["keys"] != port


@pytest.mark.parametrize("content", ["", "[]", '{"kafka": "9092"}', "{"])
def test_a_damaged_ports_file_is_as_none(tmp_path, content):
    kept = tmp_path / "ports.json"
    kept.write_text(content)
    assert choose_ports({"kafka": 0}, kept)["kafka"] > 0


def test_toml_reads_back():
    tables = {
        "kafka": {"bootstrap_servers": "h:1", "sasl_password": 'a"b\\c\n', "tls": True},
        "risk": {"rates": {"EUR": 1.0, "odd key": 2}, "list": [1, "x"], "none": None},
        "roles": {"risk-worker": {"ssl_key": Path("/a b/c.key")}},
    }
    assert tomllib.loads(to_toml(tables)) == {
        "kafka": {"bootstrap_servers": "h:1", "sasl_password": 'a"b\\c\n', "tls": True},
        "risk": {"rates": {"EUR": 1.0, "odd key": 2}, "list": [1, "x"]},
        "roles": {"risk-worker": {"ssl_key": "/a b/c.key"}},
    }


def test_a_file_that_a_stack_wrote_is_not_the_persons_own(monkeypatch, tmp_path):
    path = tmp_path / "weir.toml"
    path.write_text(config_text({"risk": {"group": "x"}}))
    assert users_config() == {}
    path.write_text("[risk]\ngroup = 'mine'\n")
    assert users_config() == {"risk": {"group": "mine"}}


def test_the_persons_own_tables_are_kept_and_their_servers_are_not(tmp_path):
    (tmp_path / "weir.toml").write_text(
        "[kafka]\nbootstrap_servers = 'prod:9092'\nsasl_password = 'p'\n[risk]\nscore_deadline_ms = 99\n"
        "[ledger]\nurl = 'mysql+asyncmy://u@h/d'\n[triton]\ntls = true\n"
    )
    stack = Stack(StackSettings(home=tmp_path / "home"))
    written = tomllib.loads(stack.paths.config.read_text())
    assert written["kafka"]["bootstrap_servers"] == stack.kafka.bootstrap_servers
    assert "sasl_password" not in written["kafka"]
    assert "tls" not in written["triton"]
    assert written["risk"]["score_deadline_ms"] == 99
    assert written["ledger"]["url"] == "mysql+asyncmy://u@h/d"
    assert stack.paths.config.stat().st_mode & 0o077 == 0


def test_a_part_inherits_no_setting_that_leads_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIR_KAFKA_BOOTSTRAP_SERVERS", "prod:9092")
    monkeypatch.setenv("WEIR_CONFIG", "/etc/weir.toml")
    monkeypatch.setenv("WEIR_RISK_SCORE_DEADLINE_MS", "99")
    env = service_env(StackPaths(tmp_path), {"WEIR_RISK_METRICS_PORT": "1"})
    assert "WEIR_KAFKA_BOOTSTRAP_SERVERS" not in env
    assert env["WEIR_CONFIG"] == str(tmp_path / "run" / "weir.toml")
    assert (env["WEIR_RISK_SCORE_DEADLINE_MS"], env["WEIR_RISK_METRICS_PORT"]) == ("99", "1")


def test_only_the_named_parts_and_what_they_need_are_started(tmp_path):
    stack = Stack(StackSettings(home=tmp_path, risk_workers=2))
    assert [part.name for part in stack.parts()] == [
        "kafka", "topics", "keys", "triton", "ledger", "risk-1", "risk-2", "knowledge", "chat",
    ]  # fmt: skip
    assert [part.name for part in stack.parts(["ledger"])] == ["kafka", "topics", "keys", "ledger"]
    with pytest.raises(WeirError, match="no part is named 'ledgre'"):
        stack.parts(["ledgre"])


def test_each_worker_has_its_own_ports_and_folder(tmp_path):
    stack = Stack(StackSettings(home=tmp_path, risk_workers=2))
    first, second = (part.env() for part in stack.parts() if part.name.startswith("risk-"))
    for name in ("WEIR_RISK_METRICS_PORT", "WEIR_RISK_DATA_DIR"):
        assert first[name] != second[name]
    assert first["WEIR_KEYS_SSL_CERTIFICATE"].endswith("role-risk-worker.crt")


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(DiskFull, match="MB are free"):
        require_disk(tmp_path / "not" / "yet", 10**12)


def test_an_unknown_setting_is_named(monkeypatch):
    monkeypatch.setenv("WEIR_STACK_RISK_WORKERS", "0")
    with pytest.raises(ConfigError, match="WEIR_STACK_RISK_WORKERS"):
        StackSettings.load()


def test_health_of_a_port_where_nobody_listens_is_said():
    (port,) = free_ports(1)
    assert healthy(port) == f"no answer on port {port}"


def test_prometheus_accepts_both_scrape_configurations(tmp_path):
    """promtool checks the repository's file and the one that `weir up` writes."""
    try:
        promtool = find_promtool()
    except MissingPart as missing:
        pytest.skip(str(missing))
    stack = Stack(StackSettings(home=tmp_path, risk_workers=2))
    assert stack.paths.prometheus.read_text() == prometheus_text(stack.ports)
    for name in (
        "risk-1-metrics",
        "risk-2-metrics",
        "keys-metrics",
        "ledger-metrics",
        "chat-metrics",
        "triton-metrics",
    ):
        assert f'"127.0.0.1:{stack.ports[name]}"' in stack.paths.prometheus.read_text()
    source = Path(__file__).resolve().parents[2] / "infra" / "prometheus" / "prometheus.yml"
    for path in (source, stack.paths.prometheus):
        subprocess.run([promtool, "check", "config", path], check=True, capture_output=True)
