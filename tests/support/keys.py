"""Starts the real key service, with mutual TLS, in a directory of the test's own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from infra.local.pki import ROLES, Pki, ensure_pki
from weir.config import KeyServiceSettings

START_DEADLINE_S = 30.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class KeysProcess:
    """One key service; `stop`, `kill` and `start` it as often as a test needs, on the same data."""

    directory: Path
    pki: Pki
    cache_seconds: int = 300
    extra: str = ""
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.port}"

    @property
    def config(self) -> Path:
        """The settings file of the running service; [keys] points at the admin's certificate."""
        return self.directory / "weir.toml"

    @property
    def audit_file(self) -> Path:
        return self.directory / "data" / "audit.jsonl"

    @property
    def log_text(self) -> str:
        return (self.directory / "keys.log").read_text(errors="replace")

    def settings(self, role: str) -> KeyServiceSettings:
        """How a client of this role reaches the service."""
        identity = self.pki.roles[role]
        return KeyServiceSettings(
            endpoint=self.endpoint,
            ssl_ca=self.pki.ca,
            ssl_certificate=identity.certificate,
            ssl_key=identity.key,
        )

    def start(self) -> "KeysProcess":
        """Starts it and returns when it is ready."""
        self._write_config()
        with (self.directory / "keys.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.keys"],
                env={**os.environ, "WEIR_CONFIG": str(self.config)},
                stdout=log,
                stderr=log,
            )
        ends = time.monotonic() + START_DEADLINE_S
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > ends:
                self.kill()
                raise AssertionError(f"the key service did not start:\n{self.log_text}")
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """SIGTERM, and waits for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=20)

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=20)

    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics").text

    def _ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.metrics_port}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def _write_config(self) -> None:
        admin = self.pki.roles["admin"]
        self.config.write_text(
            f"""
[keys_service]
port = {self.port}
metrics_port = {self.metrics_port}
ssl_ca = "{self.pki.ca}"
ssl_certificate = "{self.pki.keys_server.certificate}"
ssl_key = "{self.pki.keys_server.key}"
keystore_dir = "{self.directory / "keystore"}"
data_dir = "{self.directory / "data"}"
cache_seconds = {self.cache_seconds}
{self.extra}

[keys]
endpoint = "{self.endpoint}"
ssl_ca = "{self.pki.ca}"
ssl_certificate = "{admin.certificate}"
ssl_key = "{admin.key}"
"""
        )


@contextmanager
def running_keys_service(
    directory: Path, *, cache_seconds: int = 300, extra: str = "", pki: Pki | None = None
) -> Iterator[KeysProcess]:
    """A ready key service on loopback; it is gone when the block ends."""
    directory.mkdir(parents=True, exist_ok=True)
    service = KeysProcess(
        directory, pki or ensure_pki(directory / "pki", ROLES), cache_seconds=cache_seconds, extra=extra
    )
    try:
        yield service.start()
    finally:
        service.kill()
