"""The key service on the network: gRPC over mutual TLS in front of `custodian`. Alone knows gRPC here."""

import asyncio
import hashlib
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from services.keys.audit import AuditLog
from services.keys.authorize import Action, Policy
from services.keys.custodian import Caller, Custodian, KeyNotFound
from services.keys.settings import KeysServiceSettings
from services.keys.store import KeyStore
from weir._proto.weir.keys.v1 import keys_pb2, keys_pb2_grpc
from weir.config import LogSettings
from weir.crypto.kek import FileKekProvider
from weir.crypto.secret import Compartment, DataKey, DataKeyInfo
from weir.errors import (
    AccessDenied,
    BadInput,
    ConfigError,
    IntegrityError,
    MissingPart,
    NeighbourUnavailable,
    WeirError,
)
from weir.obs.http import serve
from weir.obs.log import configure, get_logger

SERVICE_NAME = "weir.keys.v1.Keys"
ROLE_URI = "weir://role/"
STOP_GRACE_S = 5.0

log = get_logger("weir.keys")

Answer = TypeVar("Answer")

# The first that fits; a WeirError of no listed kind is INTERNAL.
_CODES: tuple[tuple[type[WeirError], grpc.StatusCode], ...] = (
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (KeyNotFound, grpc.StatusCode.NOT_FOUND),
    (BadInput, grpc.StatusCode.INVALID_ARGUMENT),
    (IntegrityError, grpc.StatusCode.DATA_LOSS),
    (NeighbourUnavailable, grpc.StatusCode.UNAVAILABLE),
    # A keystore that is gone or open to others: its keeper can mend it while clients wait.
    (MissingPart, grpc.StatusCode.UNAVAILABLE),
    (ConfigError, grpc.StatusCode.UNAVAILABLE),
)


class Unauthenticated(WeirError):
    """The caller's certificate does not name exactly one role."""


class KeysServicer(keys_pb2_grpc.KeysServicer):
    """Each method: who calls, ask the custodian, answer; errors become gRPC codes in one place."""

    def __init__(
        self,
        custodian: Custodian,
        *,
        cache_seconds: int,
        loopback_role: str | None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self._custodian, self._cache_seconds = custodian, cache_seconds
        self._loopback_role = loopback_role
        self._requests = Counter(
            "weir_keys_requests_total",
            "Requests by action and outcome.",
            ["action", "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "weir_keys_request_duration_seconds", "Time to answer a request.", ["action"], registry=registry
        )
        self._key_count = Gauge("weir_keys_data_keys", "Data keys in the store.", registry=registry)
        self._key_count.set_function(lambda: float(custodian.key_count()))

    async def GetSealingKey(self, request: Any, context: Any) -> Any:  # noqa: N802 (the contract's name)
        """See protos/weir/keys/v1/keys.proto."""
        compartment = _compartment(request.compartment)
        key = await self._answer(
            context, Action.SEAL, lambda caller: self._custodian.sealing_key(caller, compartment)
        )
        return self._handed_out(key)

    async def GetOpeningKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See protos/weir/keys/v1/keys.proto."""
        key = await self._answer(
            context,
            Action.OPEN,
            lambda caller: self._custodian.opening_key(caller, request.key_id, request.purpose),
        )
        return self._handed_out(key)

    async def GetPseudonymKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See protos/weir/keys/v1/keys.proto."""
        secret = await self._answer(
            context, Action.PSEUDONYMISE, lambda caller: self._custodian.pseudonym_key(caller, request.tenant)
        )
        answer = keys_pb2.PseudonymKey(material=bytes(secret.reveal()), tenant=request.tenant)
        secret.wipe()
        return answer

    async def RotateDataKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See protos/weir/keys/v1/keys.proto."""
        compartment = _compartment(request.compartment)
        info = await self._answer(
            context, Action.ROTATE, lambda caller: self._custodian.rotate(caller, compartment)
        )
        log.info(
            "data_key_rotated", compartment=str(compartment), epoch=info.epoch, key_id=f"{info.key_id:08x}"
        )
        return _info(info)

    async def RewrapDataKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See protos/weir/keys/v1/keys.proto."""
        count, kek_id = await self._answer(context, Action.REWRAP, self._custodian.rewrap)
        log.info("keys_rewrapped", key_count=count, kek_id=kek_id)
        return keys_pb2.RewrapDataKeysResponse(rewrapped=count, kek_id=kek_id)

    async def ListDataKeys(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See protos/weir/keys/v1/keys.proto."""
        keys = await self._answer(context, Action.LIST, self._custodian.list_keys)
        return keys_pb2.ListDataKeysResponse(keys=[_info(key) for key in keys])

    async def _answer(
        self, context: Any, action: Action, ask: Callable[[Caller], Awaitable[Answer]]
    ) -> Answer:
        started_s = perf_counter()
        outcome = "error"
        try:
            answer = await ask(self._caller(context, action))
            outcome = "ok"
            return answer
        except Unauthenticated as error:
            outcome = "unauthenticated"
            await _abort(context, grpc.StatusCode.UNAUTHENTICATED, str(error))
        except WeirError as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
            outcome = code.name.lower()
            log.warning("request_refused", action=action.value, code=code.name, reason=str(error))
            await _abort(context, code, str(error))
        except Exception:  # the edge: gRPC would send the exception's text to the caller
            log.exception("request_failed", action=action.value)
            await _abort(context, grpc.StatusCode.INTERNAL, "The key service failed; its log has the cause.")
        finally:
            self._requests.labels(action.value, outcome).inc()
            self._duration.labels(action.value).observe(perf_counter() - started_s)

    def _caller(self, context: Any, action: Action) -> Caller:
        if self._loopback_role is not None:
            return Caller(self._loopback_role, "loopback")
        properties = context.auth_context()
        pem = b"".join(properties.get("x509_pem_cert", ()))
        certificate = hashlib.sha256(pem).hexdigest()
        uris = [uri.decode() for uri in properties.get("peer_uri", ()) if uri.startswith(ROLE_URI.encode())]
        if len(uris) != 1 or not uris[0].removeprefix(ROLE_URI):
            self._custodian.refused(certificate, action)
            raise Unauthenticated(f"The client certificate must name one role, as the URI {ROLE_URI}<role>.")
        return Caller(uris[0].removeprefix(ROLE_URI), certificate)

    def _handed_out(self, key: DataKey) -> Any:
        answer = keys_pb2.DataKey(
            key_id=key.key_id,
            compartment=_compartment_message(key.compartment),
            epoch=key.epoch,
            suite=f"SUITE_{key.suite.name}",
            material=bytes(key.secret.reveal()),
            cache_seconds=self._cache_seconds,
        )
        key.secret.wipe()
        return answer


async def run(settings: KeysServiceSettings, log_settings: LogSettings) -> None:
    """Serves until SIGTERM or SIGINT, then ends what is under way.

    Raises:
        WeirError: it cannot start; the text says why.
    """
    configure(log_settings, service="keys")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        custodian = _custodian(settings, stack)
        await custodian.check()
        # Without this a second service on the port would start, and each get some of the calls.
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        servicer = KeysServicer(
            custodian,
            cache_seconds=settings.cache_seconds,
            loopback_role=settings.insecure_loopback_role,
        )
        keys_pb2_grpc.add_KeysServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        grpc_health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(grpc_health, server)
        port = _listen(server, settings)
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        for name in ("", SERVICE_NAME):
            await grpc_health.set(name, health_pb2.HealthCheckResponse.SERVING)

        async def ready() -> dict[str, Any]:
            await custodian.check()
            return {"ready": True, "port": port, "data_keys": custodian.key_count()}

        metrics = await serve(settings.metrics_host, settings.metrics_port, ready)
        stack.push_async_callback(metrics.close)
        log.info("service_started", host=settings.host, port=port, metrics_port=metrics.port)
        if settings.insecure_loopback_role is not None:
            log.warning("tls_off", role=settings.insecure_loopback_role, host=settings.host)
        await stop.wait()
        await grpc_health.enter_graceful_shutdown()
        log.info("service_stopping", grace_s=STOP_GRACE_S)


def _custodian(settings: KeysServiceSettings, stack: AsyncExitStack) -> Custodian:
    policy = Policy.load(settings.policy_file)
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The audit log's lock comes first: it is what keeps two services off one directory.
        audit = AuditLog.open(settings.data_dir / "audit.jsonl", now=datetime.now(UTC))
        stack.callback(audit.close)
        store = KeyStore.open(settings.data_dir / "keys.sqlite")
    except OSError as error:
        raise ConfigError(f"{settings.data_dir}: {error.strerror}. Correct data_dir.") from error
    stack.callback(store.close)
    # A fresh keystore beside old keys would hide that the right one is gone; then it must be restored.
    keks = (
        FileKekProvider.create(settings.keystore_dir)
        if store.is_empty()
        else FileKekProvider(settings.keystore_dir)
    )
    return Custodian(
        policy=policy,
        store=store,
        keks=keks,
        audit=audit,
        suite=settings.suite,
        data_key_age_max_s=settings.data_key_age_max_s,
    )


def _listen(server: Any, settings: KeysServiceSettings) -> int:
    address = f"{settings.host}:{settings.port}"
    try:
        if settings.insecure_loopback_role is not None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(settings))
    except RuntimeError as error:
        raise ConfigError(f"{address}: cannot listen there. Stop what does, or set a free port.") from error
    return int(port)


def _credentials(settings: KeysServiceSettings) -> Any:
    """Mutual TLS; the files are read again when they change, so a renewed certificate needs no restart."""
    paths = [path for path in (settings.ssl_key, settings.ssl_certificate, settings.ssl_ca) if path]
    loaded = _mtimes(paths)

    def configuration() -> Any:
        key, certificate, ca = (_read(path) for path in paths)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)

    def changed() -> Any:
        nonlocal loaded
        try:
            seen = _mtimes(paths)
            if seen == loaded:
                return None
            fresh = configuration()
        except WeirError as error:
            log.warning("certificate_not_reloaded", reason=str(error))
            return None
        loaded = seen
        log.info("certificate_reloaded")
        return fresh

    return grpc.dynamic_ssl_server_credentials(configuration(), changed, require_client_authentication=True)


def _mtimes(paths: list[Path]) -> list[int]:
    try:
        return [path.stat().st_mtime_ns for path in paths]
    except OSError as error:
        raise MissingPart(f"{error.filename}: {error.strerror}. Correct [keys_service] ssl_*.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingPart(f"{path}: {error.strerror}. Correct [keys_service] ssl_*.") from error


async def _abort(context: Any, code: grpc.StatusCode, text: str) -> NoReturn:
    await context.abort(code, text)
    raise AssertionError("abort raises")


def _compartment(message: Any) -> Compartment:
    return Compartment(message.topic, message.data_class)


def _compartment_message(compartment: Compartment) -> Any:
    return keys_pb2.Compartment(topic=compartment.topic, data_class=compartment.data_class)


def _info(info: DataKeyInfo) -> Any:
    return keys_pb2.DataKeyInfo(
        key_id=info.key_id,
        compartment=_compartment_message(info.compartment),
        epoch=info.epoch,
        suite=f"SUITE_{info.suite.name}",
        created_ms=info.created_ms,
        kek_id=info.kek_id,
        current=info.current,
    )
