"""A Dask scheduler and workers as real processes on 127.0.0.1, without a dashboard and without a nanny."""

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from distributed import Security

from infra.local.layout import ROOT
from infra.local.ports import free_ports
from infra.local.server import LocalServer
from tests.support.servers import running_server


class DaskProcess(LocalServer):
    """A `dask` command, run in a folder of its own; extra variables win over those of the test."""

    def __init__(self, folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__(folder / "dask.log")
        self.folder, self.words, self.environment = folder, list(words), dict(environment)

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    def env(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        return {**os.environ, "PYTHONPATH": str(ROOT), **threads, **self.environment}


class DaskScheduler(DaskProcess):
    """Listens on `address`."""

    name = "dask-scheduler"

    def __init__(
        self, folder: Path, *, tls: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, tls, environment or {})
        self.port, self.http_port = free_ports(2)
        self.address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", self.address.rpartition(":")[0],
            "--port", str(self.port), "--dashboard-address", f"127.0.0.1:{self.http_port}", "--no-dashboard",
            *self.words,
        ]  # fmt: skip

    def probe(self) -> str | None:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return "nobody listens"
        return None

    def worker_count(self) -> int:
        """How many workers it knows of."""
        with urlopen(f"http://127.0.0.1:{self.http_port}/json/counts.json", timeout=5) as answer:
            return int(json.loads(answer.read())["workers"])


class DaskWorker(DaskProcess):
    """One process, one thread."""

    name = "dask-worker"

    def __init__(
        self,
        folder: Path,
        scheduler: DaskScheduler,
        *,
        words: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, words, environment or {})
        self.scheduler, self._before = scheduler, 0

    def prepare(self) -> None:
        super().prepare()
        self._before = self.scheduler.worker_count()

    def command(self) -> list[str]:
        host = self.scheduler.address.rpartition(":")[0]
        return [
            sys.executable, "-m", "distributed.cli.dask_worker", self.scheduler.address, "--host", host,
            "--nthreads", "1", "--memory-limit", "0", "--no-nanny", "--no-dashboard",
            "--dashboard-address", "127.0.0.1:0", "--local-directory", str(self.folder), *self.words,
        ]  # fmt: skip

    def probe(self) -> str | None:
        try:
            known = self.scheduler.worker_count()
        except (OSError, URLError):
            return "the scheduler does not answer"
        return None if known > self._before else "it has not registered"


def own_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate that is its own authority, good for both ends of a connection; its key."""
    made = Security.temporary()
    folder.mkdir()
    certificate, key = folder / "own.crt", folder / "own.key"
    certificate.write_text(made.tls_client_cert)
    key.write_text(made.tls_client_key)
    return certificate, key


@contextmanager
def dask_cluster(folder: Path, *, workers: int = 2) -> Iterator[tuple[DaskScheduler, list[DaskWorker]]]:
    """A scheduler and its workers, all of them ended afterwards."""
    with ExitStack() as stack:
        scheduler = stack.enter_context(running_server(DaskScheduler(folder / "scheduler")))
        yield (
            scheduler,
            [
                stack.enter_context(running_server(DaskWorker(folder / f"worker-{index}", scheduler)))
                for index in range(workers)
            ],
        )
