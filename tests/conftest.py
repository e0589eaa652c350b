"""Fixtures for every test: real servers, and an environment without the settings of whoever runs pytest.

A server starts when the first test asks for it, serves the session, and is ended with it; also when pytest is
interrupted, and by the kernel when pytest is killed. A failed test shows the last lines of its servers' logs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.local import layout
from infra.local.kafka import KafkaServer
from infra.local.mariadb import MariaDbServer
from infra.local.triton import TritonServer
from tests.support import servers
from tests.support.keys import KeysProcess, running_keys_service
from tests.support.postgres import PostgresServer
from tests.support.servers import KafkaUnderTest, running_server

StartTriton = Callable[[Path], TritonServer]


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test sees no WEIR_* variable and no settings file but its own: it runs in an empty folder."""
    for name in os.environ:
        if name.startswith("WEIR_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaUnderTest]:
    """A broker with nothing in it; `make_topic` gives topics of one's own."""
    folder = tmp_path_factory.mktemp("kafka")
    with running_server(KafkaServer(folder / "data", folder / "kafka.log")) as server:
        yield KafkaUnderTest(server)


@pytest.fixture(scope="session")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartTriton]:
    """Starts a Triton over any model repository; it runs until the session ends or the test stops it."""
    with ExitStack() as stack:

        def start(repository: Path) -> TritonServer:
            folder = tmp_path_factory.mktemp("triton")
            server = TritonServer(repository, folder / "triton.log", staged=folder / "models")
            return stack.enter_context(running_server(server))

        yield start


@pytest.fixture(scope="session")
def triton(start_triton: StartTriton) -> TritonServer:
    """A Triton that serves the project's own models."""
    return start_triton(layout.MODEL_SOURCES)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeysProcess]:
    """A key service with certificates of its own."""
    with running_keys_service(tmp_path_factory.mktemp("keys")) as service:
        yield service


@pytest.fixture(scope="session")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the starter knowledge in use, without vectors."""
    from tests.support.chat import starter_knowledge

    return starter_knowledge(tmp_path_factory.mktemp("knowledge"))


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database on a real MariaDB."""
    folder = tmp_path_factory.mktemp("mariadb")
    with running_server(MariaDbServer(folder / "server", folder / "mariadb.log")) as server:
        yield server.url()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """An empty database on a real PostgreSQL with pgvector."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres") / "postgres.log")
    try:
        with running_server(server):
            yield server
    finally:
        server.remove()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the logs of the servers that a failed test used."""
    report = yield
    if report.failed:
        used = set(getattr(item, "fixturenames", ()))
        for server in servers.running:
            if server.name in used or f"start_{server.name}" in used:
                report.sections.append((f"log of {server.name}", server.log_tail()))
    return report
