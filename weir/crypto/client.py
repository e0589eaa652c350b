"""The key service by gRPC: one typed call for each of its methods. Retries and caches live in `keyring`."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from weir._proto.weir.keys.v1 import keys_pb2, keys_pb2_grpc
from weir.config import KeyServiceSettings
from weir.crypto.envelope import UnknownKey
from weir.crypto.secret import Compartment, DataKey, DataKeyInfo, Secret, Suite
from weir.errors import (
    AccessDenied,
    ConfigError,
    IntegrityError,
    MissingPart,
    NeighbourUnavailable,
    WeirError,
)
from weir.grpc_words import cause

CALL_TIMEOUT_S = 5.0

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
)
_DENIED = frozenset({grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED})
# gRPC's own limit lets a channel sleep for two minutes after a restart of the service.
_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

Answer = TypeVar("Answer")


class KeyServiceAway(NeighbourUnavailable):
    """The key service gave no answer."""

    def __init__(self, endpoint: str, detail: str) -> None:
        self.endpoint, self.detail = endpoint, detail
        super().__init__(f"key service at {endpoint}: {detail}. Try `weir doctor`.")


class KeyServiceRefused(WeirError):
    """The key service answered, but not with what was asked for."""


class KeyServiceClient:
    """A connection to the key service; it connects when first used."""

    def __init__(self, settings: KeyServiceSettings) -> None:
        """Reads the certificates.

        Raises:
            ConfigError: TLS files are not set, or no TLS to another machine.
            MissingPart: a TLS file is not there.
        """
        self.endpoint = settings.endpoint
        self._channel = _channel(settings)
        self._stub: Any = keys_pb2_grpc.KeysStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def sealing_key(self, compartment: Compartment, timeout_s: float) -> tuple[DataKey, float]:
        """The newest key of a compartment, and for how many seconds it may be kept."""
        request = keys_pb2.GetSealingKeyRequest(compartment=_compartment(compartment))
        answer = await self._ask(self._stub.GetSealingKey, request, timeout_s)
        key = self._data_key(answer)
        if key.compartment != compartment:
            raise IntegrityError(f"key service at {self.endpoint}: gave a key of {key.compartment}.")
        return key, float(answer.cache_seconds)

    async def opening_key(self, key_id: int, purpose: str, timeout_s: float) -> tuple[DataKey, float]:
        """The key with this id, and for how many seconds it may be kept; UnknownKey when there is none."""
        request = keys_pb2.GetOpeningKeyRequest(key_id=key_id, purpose=purpose)
        answer = await self._ask(self._stub.GetOpeningKey, request, timeout_s, not_found=UnknownKey(key_id))
        key = self._data_key(answer)
        if key.key_id != key_id:
            raise IntegrityError(f"key service at {self.endpoint}: gave another key than {key_id:08x}.")
        return key, float(answer.cache_seconds)

    async def pseudonym_key(self, tenant: str, timeout_s: float) -> Secret:
        """The tenant's pseudonym key."""
        request = keys_pb2.GetPseudonymKeyRequest(tenant=tenant)
        answer = await self._ask(self._stub.GetPseudonymKey, request, timeout_s)
        return Secret(answer.material)

    async def rotate(self, compartment: Compartment, timeout_s: float) -> DataKeyInfo:
        """Starts the compartment's next epoch."""
        request = keys_pb2.RotateDataKeyRequest(compartment=_compartment(compartment))
        return _info(await self._ask(self._stub.RotateDataKey, request, timeout_s))

    async def rewrap(self, timeout_s: float) -> tuple[int, str]:
        """Wraps all keys with the newest KEK: how many were not already, and its id."""
        answer = await self._ask(self._stub.RewrapDataKeys, keys_pb2.RewrapDataKeysRequest(), timeout_s)
        return answer.rewrapped, answer.kek_id

    async def list_keys(self, timeout_s: float) -> list[DataKeyInfo]:
        """Every data key, without its material."""
        answer = await self._ask(self._stub.ListDataKeys, keys_pb2.ListDataKeysRequest(), timeout_s)
        return [_info(key) for key in answer.keys]

    def _data_key(self, answer: Any) -> DataKey:
        try:
            return DataKey(
                answer.key_id,
                Compartment(answer.compartment.topic, answer.compartment.data_class),
                answer.epoch,
                Suite(answer.suite),
                Secret(answer.material),
            )
        except ValueError as error:
            raise IntegrityError(f"key service at {self.endpoint}: {error}. Upgrade Weir.") from error

    async def _ask(
        self,
        call: Callable[..., Awaitable[Answer]],
        request: object,
        timeout_s: float,
        not_found: WeirError | None = None,
    ) -> Answer:
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details() or error.code().name
            if code is grpc.StatusCode.UNAVAILABLE:
                text = cause(text)
        except asyncio.InvalidStateError as error:
            raise KeyServiceAway(self.endpoint, "the connection was closed") from error
        if code in _AWAY:
            raise KeyServiceAway(self.endpoint, text)
        if code in _DENIED:
            raise AccessDenied(f"key service at {self.endpoint}: {text}")
        if code is grpc.StatusCode.NOT_FOUND and not_found is not None:
            raise not_found
        if code is grpc.StatusCode.DATA_LOSS:
            raise IntegrityError(f"key service at {self.endpoint}: {text}")
        raise KeyServiceRefused(f"key service at {self.endpoint}: {text}")


def _channel(settings: KeyServiceSettings) -> Any:
    if not settings.tls:
        if not _is_loopback(settings.endpoint):
            raise ConfigError(
                f"[keys] tls = false with {settings.endpoint}: keys would travel in the clear. Use TLS."
            )
        return grpc.aio.insecure_channel(settings.endpoint, options=_OPTIONS)
    paths = (settings.ssl_ca, settings.ssl_key, settings.ssl_certificate)
    if any(path is None for path in paths):
        raise ConfigError(
            "[keys] ssl_ca, ssl_certificate and ssl_key must be set: the certificate names your role."
        )
    ca, key, certificate = (_read(path) for path in paths if path is not None)
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    return grpc.aio.secure_channel(settings.endpoint, credentials, options=_OPTIONS)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingPart(f"{path}: {error.strerror}. Correct [keys] ssl_* or run `weir up`.") from error


def _is_loopback(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _compartment(compartment: Compartment) -> Any:
    return keys_pb2.Compartment(topic=compartment.topic, data_class=compartment.data_class)


def _info(answer: Any) -> DataKeyInfo:
    return DataKeyInfo(
        answer.key_id,
        Compartment(answer.compartment.topic, answer.compartment.data_class),
        answer.epoch,
        Suite(answer.suite),
        answer.created_ms,
        answer.kek_id,
        answer.current,
    )
