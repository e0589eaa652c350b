"""A bank's own servers: a broker with TLS, SCRAM and ACLs; Triton, keys and MariaDB behind mutual TLS."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from infra.kafka.acls import Operation, Resource, Right, bindings, names_of, read_matrix, rights
from infra.local import layout
from infra.local.kafka import KafkaSecurity, KafkaServer
from infra.local.mariadb import MariaDbServer, MariaDbTls
from infra.local.pki import Pki, ensure_pki
from infra.local.triton import TritonServer, TritonTls
from tests.support.keys import KeysProcess, running_keys_service
from tests.support.servers import KafkaUnderTest, running_server
from weir.config import KafkaSettings, TopicSettings

OPERATOR = "operator"
ROLES = read_matrix().roles
# Risk workers to whom the bank forgot to give one of their rights; a topic they may still describe, so that
# the refusal comes where Faust's threads and the producer work, not at the start.
LACKING = {
    "risk-without-read": (Resource.TOPIC, "bank.transactions"),
    "risk-without-write": (Resource.TOPIC, "weir.decisions"),
    "risk-without-group": (Resource.GROUP, "weir-risk"),
}


def password_of(user: str) -> str:
    return f"horse-of-{user}-7"


@dataclass(frozen=True)
class OwnServers:
    """Where everything is, and how each role reaches it."""

    folder: Path
    pki: Pki
    kafka: KafkaUnderTest
    triton: TritonServer
    keys: KeysProcess
    mariadb: MariaDbServer

    def kafka_settings(self, user: str) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=self.kafka.bootstrap_servers,
            security_protocol="SASL_SSL",
            ssl_ca=self.pki.ca,
            sasl_username=user,
            sasl_password=SecretStr(password_of(user)),
        )

    def kafka_table(self, user: str) -> dict[str, Any]:
        """[kafka] of a settings file."""
        return {
            "bootstrap_servers": self.kafka.bootstrap_servers,
            "security_protocol": "SASL_SSL",
            "ssl_ca": self.pki.ca,
            "sasl_username": user,
            "sasl_password": password_of(user),
        }

    def certificate(self, role: str) -> dict[str, Any]:
        """ssl_* of a settings file."""
        identity = self.pki.roles[role]
        return {"ssl_ca": self.pki.ca, "ssl_certificate": identity.certificate, "ssl_key": identity.key}

    def triton_table(self) -> dict[str, Any]:
        return {"tls": True, **self.certificate("risk-worker")}

    def allow(self, topics: TopicSettings, groups: Mapping[str, str] | None = None) -> None:
        """Give every role its rights on these topics, and the lacking ones all but one."""
        renamed = {**names_of(topics), **(groups or {})}
        granted = rights(read_matrix(), {role: [f"User:{role}"] for role in ROLES}, renamed)
        for user, (resource, name) in LACKING.items():
            forgotten = (resource, renamed.get(name, name))
            everything = rights(read_matrix(), {"risk-worker": [f"User:{user}"]}, renamed)
            for right in everything:
                if (right.resource, right.name) != forgotten:
                    granted.append(right)
                elif resource is Resource.TOPIC:
                    granted.append(replace(right, operation=Operation.DESCRIBE))
        self._create(granted)

    def _create(self, granted: Sequence[Right]) -> None:
        from confluent_kafka.admin import AdminClient

        admin = AdminClient(
            {
                "bootstrap.servers": self.kafka.bootstrap_servers,
                "security.protocol": "SASL_SSL",
                "ssl.ca.location": str(self.pki.ca),
                "sasl.mechanisms": "SCRAM-SHA-512",
                "sasl.username": OPERATOR,
                "sasl.password": password_of(OPERATOR),
            }
        )
        for future in admin.create_acls(bindings(granted), request_timeout=30).values():
            future.result(timeout=30)


@contextmanager
def own_servers(folder: Path) -> Iterator[OwnServers]:
    """All of them, ready; they are gone when the block ends."""
    pki = ensure_pki(folder / "pki")
    theirs = pki.keys_server
    users = {user: password_of(user) for user in (OPERATOR, *ROLES, *LACKING)}
    security = KafkaSecurity(
        "SASL_SSL",
        theirs.certificate,
        theirs.key,
        pki.ca,
        scram_users=users,
        acl_super_users=(f"User:{OPERATOR}",),
    )
    with ExitStack() as stack:
        broker = KafkaServer(folder / "kafka", folder / "kafka.log", security=security)
        triton = TritonServer(
            layout.MODEL_SOURCES,
            folder / "triton.log",
            staged=folder / "models",
            tls=TritonTls(theirs.certificate, theirs.key, pki.ca, pki.roles["monitor"]),
        )
        mariadb = MariaDbServer(
            folder / "mariadb",
            folder / "mariadb.log",
            tls=MariaDbTls(theirs.certificate, theirs.key, pki.ca),
        )
        for server in (broker, triton, mariadb):
            stack.enter_context(running_server(server))
        keys = stack.enter_context(running_keys_service(folder / "keys", pki=pki))
        yield OwnServers(folder, pki, KafkaUnderTest(broker), triton, keys, mariadb)
