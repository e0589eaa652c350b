"""Rights on the brokers, from `acls.toml`: as bindings for an admin client, or as commands to read and run.

python -m infra.kafka.acls publisher=User:core-banking risk-worker=User:CN=risk
prints one line of `kafka-acls.sh` for each right of those roles.
"""

import shlex
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from weir.config import TopicSettings
from weir.errors import ConfigError, ExitCode, WeirError

MATRIX = Path(__file__).parent / "acls.toml"
CLUSTER = "kafka-cluster"


class Resource(StrEnum):
    """What a right is on."""

    TOPIC = "topic"
    GROUP = "group"
    TRANSACTIONAL_ID = "transactional-id"
    CLUSTER = "cluster"


class Operation(StrEnum):
    """Kafka's operations, those that Weir's roles need."""

    READ = "read"
    WRITE = "write"
    CREATE = "create"
    DESCRIBE = "describe"
    DESCRIBE_CONFIGS = "describe_configs"
    ALTER_CONFIGS = "alter_configs"


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One [[allow]] of the file."""

    role: str
    operations: tuple[Operation, ...]
    topics: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    transactional_ids: tuple[str, ...] = ()
    cluster: bool = False


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    version: int
    allow: tuple[Rule, ...]

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role, in the order of the file."""
        return tuple(dict.fromkeys(rule.role for rule in self.allow))


@dataclass(frozen=True, slots=True)
class Right:
    """One principal may do one thing; `prefix` says that `name` is the beginning of names."""

    principal: str
    resource: Resource
    name: str
    prefix: bool
    operation: Operation


def read_matrix(path: Path = MATRIX) -> Matrix:
    """The rights of each role.

    Raises:
        ConfigError: the file is malformed, or its version is not ours.
    """
    try:
        matrix = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Matrix)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}. Correct the file.") from error
    if matrix.version != 1:
        raise ConfigError(f"{path}: version {matrix.version} is not 1. Upgrade Weir.")
    return matrix


def names_of(topics: TopicSettings) -> dict[str, str]:
    """The default name of each topic to the one that a bank has given it, for `rights`."""
    return {
        str(field.default): str(getattr(topics, name))
        for name, field in TopicSettings.model_fields.items()
        if isinstance(field.default, str)
    }


def rights(
    matrix: Matrix, principals: Mapping[str, Sequence[str]], names: Mapping[str, str] | None = None
) -> list[Right]:
    """Every right of `principals`, which are Kafka's ("User:...") by role.

    Args:
        names: topics and groups that bear other names than in the file; a prefix ("bank.*") may be one too.
    Raises:
        ConfigError: a role that the matrix does not have.
    """
    for role in principals:
        if role not in matrix.roles:
            raise ConfigError(f"No role {role!r} in the matrix. There are: {', '.join(matrix.roles)}.")
    return [
        Right(
            principal, resource, name.removesuffix("*") or "*", name.endswith("*") and name != "*", operation
        )
        for rule in matrix.allow
        for principal in principals.get(rule.role, ())
        for resource, name in _resources(rule, names or {})
        for operation in rule.operations
    ]


def _resources(rule: Rule, names: Mapping[str, str]) -> Iterator[tuple[Resource, str]]:
    yield from ((Resource.TOPIC, names.get(name, name)) for name in rule.topics)
    yield from ((Resource.GROUP, names.get(name, name)) for name in rule.groups)
    for name in rule.transactional_ids:
        # They begin with the group's name.
        group = name.removesuffix(".*")
        yield Resource.TRANSACTIONAL_ID, names.get(group, group) + name[len(group) :]
    if rule.cluster:
        yield Resource.CLUSTER, CLUSTER


def bindings(wanted: Sequence[Right]) -> list[Any]:
    """The rights as `confluent_kafka.admin.AclBinding`s, for `AdminClient.create_acls`."""
    from confluent_kafka.admin import (
        AclBinding,
        AclOperation,
        AclPermissionType,
        ResourcePatternType,
        ResourceType,
    )

    kinds = {
        Resource.TOPIC: ResourceType.TOPIC,
        Resource.GROUP: ResourceType.GROUP,
        Resource.TRANSACTIONAL_ID: ResourceType.TRANSACTIONAL_ID,
        Resource.CLUSTER: ResourceType.BROKER,
    }
    return [
        AclBinding(
            kinds[right.resource],
            right.name,
            ResourcePatternType.PREFIXED if right.prefix else ResourcePatternType.LITERAL,
            right.principal,
            "*",
            AclOperation[right.operation.name],
            AclPermissionType.ALLOW,
        )
        for right in wanted
    ]


def commands(wanted: Sequence[Right], bootstrap_servers: str) -> list[str]:
    """The rights as lines for a shell with Kafka's own `kafka-acls.sh`."""
    lines = []
    for right in wanted:
        words = ["kafka-acls.sh", "--bootstrap-server", bootstrap_servers, "--add"]
        words += ["--allow-principal", right.principal]
        words += ["--operation", "".join(word.capitalize() for word in right.operation.split("_"))]
        if right.resource is Resource.CLUSTER:
            words.append("--cluster")
        else:
            words += [f"--{right.resource}", right.name]
            words += ["--resource-pattern-type", "prefixed" if right.prefix else "literal"]
        lines.append(shlex.join(words))
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the commands for ROLE=PRINCIPAL...; [kafka] and [topics] say the servers and the names."""
    from weir.config import KafkaSettings

    try:
        principals: dict[str, list[str]] = {}
        for argument in arguments:
            role, separator, principal = argument.partition("=")
            if not separator or not principal.startswith("User:"):
                raise ConfigError(
                    f"{argument!r} is not ROLE=User:NAME. For one: publisher=User:core-banking."
                )
            principals.setdefault(role, []).append(principal)
        wanted = rights(read_matrix(), principals, names_of(TopicSettings.load()))
        lines = commands(wanted, KafkaSettings.load().bootstrap_servers)
    except WeirError as error:
        print(f"acls: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    print("\n".join(lines))  # noqa: T201 - what the command is for
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
