"""A real risk worker with its real neighbours, on topics of the test's own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from infra.local import layout
from infra.local.ports import free_port
from tests.support.keys import KeysProcess
from tests.support.servers import KafkaUnderTest
from weir.cli.topics import ACCOUNTS_CONFIG, DEAD_LETTER_CONFIG
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings

START_DEADLINE_S = 60.0


@dataclass
class RiskUnderTest:
    """One worker's settings and process; `start`, `stop` and `kill` it as often as a test needs."""

    directory: Path
    kafka: KafkaUnderTest
    keys: KeysProcess
    triton_endpoint: str
    model_repository: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    # More of other tables of the settings file, or other values: {"kafka": {"ssl_ca": ...}}.
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    partitions: int = 2
    metrics_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        make = self.kafka.make_topic
        self.topics = TopicSettings(
            transactions=make("bank.transactions", self.partitions),
            labels=make("bank.labels", self.partitions),
            decisions=make("weir.decisions", self.partitions),
            risk_dlq=make("weir.risk.dlq", self.partitions, DEAD_LETTER_CONFIG),
            risk_accounts=make("weir.risk.accounts", self.partitions, ACCOUNTS_CONFIG),
            risk_journal=make("weir.risk.journal", self.partitions),
            partitions=self.partitions,
        )
        self.kafka_settings = KafkaSettings(bootstrap_servers=self.kafka.bootstrap_servers)
        self.directory.mkdir(parents=True, exist_ok=True)

    @property
    def log_path(self) -> Path:
        return self.directory / "risk.log"

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def reader(self, role: str = "analyst") -> KeyServiceSettings:
        return self.keys.settings(role)

    @property
    def registry(self) -> RegistrySettings:
        """The Schema Registry that the worker asks."""
        return RegistrySettings.model_validate(self.tables.get("registry", {}))

    def config(self) -> Path:
        """Write the worker's settings file; its path."""
        worker = self.keys.pki.roles["risk-worker"]
        risk = {
            "group": self.topics.transactions,
            "model_repository": str(self.model_repository),
            "metrics_port": self.metrics_port,
            "data_dir": str(self.directory / "data"),
            "accounts_max": 100_000,
            "terminals_max": 100_000,
            "score_deadline_ms": 2000,
            **self.overrides,
        }
        tables = {
            "kafka": {"bootstrap_servers": self.kafka.bootstrap_servers},
            "topics": self.topics.model_dump(),
            "triton": {"endpoint": self.triton_endpoint},
            "keys": {
                "endpoint": self.keys.endpoint,
                "ssl_ca": str(self.keys.pki.ca),
                "ssl_certificate": str(worker.certificate),
                "ssl_key": str(worker.key),
            },
            "risk": risk,
            "log": {"format": "json"},
        }
        for name, table in self.tables.items():
            tables[name] = {**tables.get(name, {}), **table}
        path = self.directory / "weir.toml"
        path.write_text(toml_of(tables))
        return path

    def start(self, *, wait: bool = True) -> "RiskUnderTest":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
        environment["WEIR_CONFIG"] = str(self.config())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.risk"],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=layout.ROOT,
            )
        if wait:
            ends = time.monotonic() + START_DEADLINE_S
            while not self.health().get("ready"):
                if self.process.poll() is not None or time.monotonic() > ends:
                    self.kill()
                    raise AssertionError(f"the risk worker did not start:\n{self.log_text()[-4000:]}")
                time.sleep(0.05)
        return self

    def health(self) -> dict[str, Any]:
        try:
            return dict(httpx.get(f"http://127.0.0.1:{self.metrics_port}/healthz").json())
        except httpx.TransportError:
            return {}

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)


def toml_of(tables: dict[str, dict[str, Any]]) -> str:
    """A settings file with these tables of text, paths, numbers and booleans."""
    lines = []
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for key, value in table.items():
            text = f'"{value}"' if isinstance(value, str | Path) else str(value).lower()
            lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


@contextmanager
def risk_under_test(
    directory: Path,
    kafka: KafkaUnderTest,
    keys: KeysProcess,
    triton_endpoint: str,
    model_repository: Path = layout.MODEL_SOURCES,
    tables: dict[str, dict[str, Any]] | None = None,
    **overrides: Any,
) -> Iterator[RiskUnderTest]:
    """A worker, not yet started; it is gone when the block ends. `tables` adds to its settings file."""
    risk = RiskUnderTest(directory, kafka, keys, triton_endpoint, model_repository, overrides, tables or {})
    try:
        yield risk
    finally:
        risk.kill()
