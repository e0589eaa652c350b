"""How every part of Weir reaches Kafka: settings become a client's options, its failures one clear line."""

import asyncio
import logging
import ssl
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import create_conn
from aiokafka.errors import ClusterAuthorizationFailedError, KafkaConnectionError, KafkaError

from weir.config import KafkaSettings
from weir.errors import AccessDenied, ConfigError, NeighbourUnavailable, WeirError

# A laptop's broker answers in milliseconds; a far one within this, or the person should hear of it.
PROBE_TIMEOUT_MS = 10_000

# How long the other end of a connection may take to say good-bye.
_CLOSE_S = 1.0

Answer = TypeVar("Answer")


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """The TLS side of `settings`; None when the protocol has none. With a certificate it is mutual TLS.

    Raises:
        ConfigError: a file is missing, is not PEM, or certificate and key do not belong together.
    """
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    if settings.ssl_key and not settings.ssl_certificate:
        raise ConfigError("[kafka] ssl_key is set without ssl_certificate. Set both, or neither.")
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"[kafka] ssl_ca {settings.ssl_ca}: {error}. It must be a readable PEM file."
        ) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.ssl_certificate:
        try:
            # Without a password OpenSSL would ask the terminal for an encrypted key's; a service has none.
            context.load_cert_chain(settings.ssl_certificate, settings.ssl_key, password="")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"[kafka] ssl_certificate {settings.ssl_certificate}, ssl_key {settings.ssl_key}: {error}. "
                "Both must be readable, unencrypted PEM files that belong together."
            ) from error
    return context


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments for any aiokafka client: servers, security protocol, TLS and SASL.

    Raises:
        ConfigError: an address is not host:port, a TLS file cannot be read, SASL lacks user name or password.
    """
    for server in settings.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"[kafka] bootstrap_servers: {server.strip()!r} is not host:port. Correct it.")
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "security_protocol": settings.security_protocol,
        "ssl_context": ssl_context(settings),
    }
    if settings.security_protocol.startswith("SASL"):
        if settings.sasl_username is None or settings.sasl_password is None:
            raise ConfigError(
                f"[kafka] security_protocol {settings.security_protocol} wants sasl_username and "
                "sasl_password. Set both (the password best as WEIR_KAFKA_SASL_PASSWORD)."
            )
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }
    return options


async def connect(
    client: AIOKafkaConsumer | AIOKafkaProducer | AIOKafkaAdminClient, settings: KafkaSettings
) -> None:
    """Start an aiokafka client made with `client_options(settings)`; when it cannot, say why.

    Raises:
        NeighbourUnavailable: nothing answers at the address.
        AccessDenied: the broker answers, and refuses the password or the certificate.
    """
    try:
        with _without_bootstrap_log():
            await client.start()
    except (KafkaError, OSError, TimeoutError) as error:
        closing = client.close() if isinstance(client, AIOKafkaAdminClient) else client.stop()
        await closed(closing, client.client if isinstance(client, AIOKafkaProducer) else client._client)
        if isinstance(error, ClusterAuthorizationFailedError):
            # Of a producer: an idempotent one asks for its id first, which any right to write allows.
            raise AccessDenied(
                f"Kafka at {settings.bootstrap_servers} does not let "
                f"{settings.sasl_username or 'this client'} publish to any topic. "
                "Ask for the permission, or correct [kafka]."
            ) from error
        # aiokafka only says "Unable to bootstrap": ask one broker for the cause.
        raise await why_unreachable(settings) or unavailable(settings, error) from error


async def uninterrupted(closing: Coroutine[Any, Any, Answer]) -> Answer:
    """What `closing` returns, once it has gone to its end; a cancellation comes out then, and is never lost.

    An aiokafka client that closes cancels tasks of its own and awaits them: a cancellation of the caller that
    comes meanwhile is taken for theirs and swallowed, and a loop that was to end for it would go on.
    """
    task = asyncio.create_task(closing)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait([task])
        raise


async def closed(closing: Coroutine[Any, Any, Answer], client: AIOKafkaClient) -> Answer:
    """As `uninterrupted`; a connection whose end does not answer the closing is dropped soon.

    Everything has been said by then: what is missing is TLS's word of good-bye, for which asyncio waits 30 s.
    """
    return await uninterrupted(_closed(closing, client))


async def _closed(closing: Coroutine[Any, Any, Answer], client: AIOKafkaClient) -> Answer:
    writers = [(conn, conn._writer) for conn in client._conns.values() if conn._writer is not None]
    task = asyncio.create_task(closing)
    while not (await asyncio.wait([task], timeout=_CLOSE_S))[0]:
        for conn, writer in writers:
            # Only what is being closed: a member may still be telling its group that it leaves.
            if conn._writer is None:
                writer.transport.abort()
    return task.result()


async def why_unreachable(settings: KafkaSettings) -> WeirError | None:
    """Why the first broker that refuses does so, or None when one of them takes this client."""
    options = client_options(settings)
    reason: WeirError | None = None
    for server in str(options.pop("bootstrap_servers")).split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            connection = await create_conn(
                host.strip("[]"), int(port), request_timeout_ms=PROBE_TIMEOUT_MS, **options
            )
        except ssl.SSLError as error:
            reason = AccessDenied(
                f"Kafka at {server}: TLS failed ({error.reason or error}). "
                "Check [kafka] ssl_ca, ssl_certificate and that security_protocol fits the port."
            )
        except ValueError:
            # After SSLError, of which one kind is a ValueError too.
            reason = AccessDenied(
                f"Kafka at {server} did not prove that it knows the password (SCRAM). Check the address."
            )
        except KafkaConnectionError as error:
            reason = (
                AccessDenied(
                    f"Kafka at {server} closed the connection during the {settings.security_protocol} "
                    "handshake. Check [kafka] security_protocol and the certificates."
                )
                if await _port_answers(host.strip("[]"), int(port))
                else unavailable(settings, error)
            )
        except KafkaError as error:
            reason = AccessDenied(
                f"Kafka at {server} refuses user {settings.sasl_username}: {type(error).__name__}. "
                "Check [kafka] sasl_username, sasl_password and sasl_mechanism."
            )
        except (OSError, TimeoutError) as error:
            reason = unavailable(settings, error)
        else:
            connection.close()
            return None
    return reason


def unavailable(settings: KafkaSettings, error: BaseException) -> NeighbourUnavailable:
    """The one line for a broker that gives no answer."""
    what = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
    return NeighbourUnavailable(
        f"Kafka at {settings.bootstrap_servers} gives no answer ({what}). "
        "Check that it runs (`weir status`), or set [kafka] bootstrap_servers."
    )


async def _port_answers(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(
            asyncio.open_connection(host, port), timeout=PROBE_TIMEOUT_MS / 1000
        )
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


@contextmanager
def _without_bootstrap_log() -> Iterator[None]:
    """Keep aiokafka's own lines about an address that fails off the screen: ours says it once."""
    log = logging.getLogger("aiokafka")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
