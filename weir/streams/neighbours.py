"""What every stream processing service needs around it: how neighbours are reached, and who the worker is."""

import asyncio
import hashlib
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path
from typing import Self

from weir.codec.registry import SchemaRegistry, fetch_unknown
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings, TritonSettings
from weir.errors import NeighbourUnavailable
from weir.obs.log import get_logger

log = get_logger("weir.streams")

# How long the start waits for the key service before it says so and ends; the supervisor tries again.
KEYS_DEADLINE_S = 30.0


@dataclass(frozen=True)
class Connections:
    """How the neighbours are reached."""

    kafka: KafkaSettings
    topics: TopicSettings
    triton: TritonSettings
    keys: KeyServiceSettings
    registry: RegistrySettings

    @classmethod
    def load(cls) -> Self:
        """From the settings file and the environment.

        Raises:
            ConfigError: what is wrong, and where.
        """
        return cls(
            KafkaSettings.load(),
            TopicSettings.load(),
            TritonSettings.load(),
            KeyServiceSettings.load(),
            RegistrySettings.load(),
        )


@dataclass(frozen=True)
class Identity:
    """Who this worker is in its group.

    name: the same at every start, and no other worker's: it names the transactional ids.
    start: another at every start.
    """

    name: str
    start: str

    @classmethod
    def of(cls, group: str, data_dir: Path) -> Self:
        """From the host and the worker's own folder."""
        place = f"{socket.gethostname()}:{data_dir.resolve()}"
        return cls(f"{group}.{hashlib.sha256(place.encode()).hexdigest()[:12]}", secrets.token_hex(4))

    @property
    def owner(self) -> str:
        """As it stands in what the worker writes."""
        return f"{self.name}/{self.start}"


async def schemas_at_hand(registry: SchemaRegistry, values: Sequence[bytes | None]) -> None:
    """Return when the schemas that the records name are known; waits while a remote registry is away."""
    wait_s, said = 0.2, False
    while True:
        try:
            return await fetch_unknown(registry, values)
        except NeighbourUnavailable as error:
            if not said:
                log.warning("registry_away", error=str(error))
                said = True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 5.0)


async def every(seconds: float, call: Callable[[], object]) -> None:
    """Call again and again until cancelled; what is awaitable is awaited."""
    while True:
        await asyncio.sleep(seconds)
        if isawaitable(done := call()):
            await done
