"""A real stream processing worker with its real neighbours, on topics of the test's own."""

import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx

from infra.local import layout
from infra.local.ports import free_port
from tests.support.keys import KeysProcess
from tests.support.servers import KafkaUnderTest
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings

START_DEADLINE_S = 60.0


@dataclass
class WorkerUnderTest(ABC):
    """One worker's settings and process; `start`, `stop` and `kill` it as often as a test needs."""

    # The service's folder and section, and the role under which it reaches the key service.
    service: ClassVar[str]
    role: ClassVar[str]

    directory: Path
    kafka: KafkaUnderTest
    keys: KeysProcess
    triton_endpoint: str
    overrides: dict[str, Any] = field(default_factory=dict)
    # More of other tables of the settings file, or other values: {"kafka": {"ssl_ca": ...}}.
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    partitions: int = 2
    metrics_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.topics = self._make_topics()
        self.kafka_settings = KafkaSettings(bootstrap_servers=self.kafka.bootstrap_servers)
        self.directory.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def _make_topics(self) -> TopicSettings:
        """The worker's topics, made."""

    @abstractmethod
    def _own(self) -> dict[str, Any]:
        """The service's own table."""

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.service}.log"

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
        worker = self.keys.pki.roles[self.role]
        own = {
            "metrics_port": self.metrics_port,
            "data_dir": str(self.directory / "data"),
            **self._own(),
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
            self.service: own,
            "log": {"format": "json"},
        }
        for name, table in self.tables.items():
            tables[name] = {**tables.get(name, {}), **table}
        path = self.directory / "weir.toml"
        path.write_text(toml_of(tables))
        return path

    def start(self, *, wait: bool = True) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WEIR_")}
        environment["WEIR_CONFIG"] = str(self.config())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"services.{self.service}"],
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
                    raise AssertionError(
                        f"the {self.service} worker did not start:\n{self.log_text()[-4000:]}"
                    )
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
