"""Real servers for tests, with their logs in the failure when one does not start."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import pytest

from infra.local.kafka import KafkaServer
from infra.local.server import LocalServer, ServerFailed, ServerNotReady

READY_WITHIN_S = 90.0

Server = TypeVar("Server", bound=LocalServer)

running: list[LocalServer] = []


@contextmanager
def running_server(server: Server) -> Iterator[Server]:
    """Start a server, wait until it is ready, end it afterwards; a failed start shows the end of its log."""
    running.append(server)
    try:
        server.start()
        try:
            server.wait_ready(READY_WITHIN_S)
        except (ServerFailed, ServerNotReady) as error:
            pytest.fail(f"{error}\n{error.log}", pytrace=False)
        yield server
    finally:
        server.stop()
        running.remove(server)


class KafkaUnderTest:
    """The session's broker: where it is, and topics of one's own."""

    def __init__(self, server: KafkaServer) -> None:
        self.server = server
        self.bootstrap_servers = server.bootstrap_servers
        self._count = itertools.count()

    def unique(self, name: str) -> str:
        """A name that no other test of this session has, for a topic or a consumer group."""
        return f"{name}.{next(self._count)}"

    def make_topic(
        self, name: str = "topic", partitions: int = 4, config: Mapping[str, str] | None = None
    ) -> str:
        """Make a topic under a unique name and wait until the broker serves it; the name."""
        from confluent_kafka.admin import AdminClient, NewTopic

        topic = self.unique(name)
        admin = AdminClient({"bootstrap.servers": self.server.internal_bootstrap_servers})
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1, config=dict(config or {}))
        admin.create_topics([new], operation_timeout=30)[topic].result(timeout=30)
        return topic
