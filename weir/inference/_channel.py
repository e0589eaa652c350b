"""The gRPC channel to Triton: how it is secured, and how soon it notices that the server is away or back."""

from pathlib import Path

import grpc
import grpc.aio

from weir.config import TritonSettings
from weir.errors import ConfigError, MissingPart

_MESSAGE_BYTES_MAX = 64 * 1024 * 1024

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    # gRPC's own back-off reaches two minutes; a payment cannot wait that long for a server that is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A half-open link is dropped after two seconds without an acknowledgement.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Retries are ours, with a budget.
    ("grpc.enable_retries", 0),
    # The model server is a neighbour; a proxy for the world outside is not on the way to it.
    ("grpc.enable_http_proxy", 0),
    # A pool of its own: a shared one would wait out the back-off of another client's failed connection.
    ("grpc.use_local_subchannel_pool", 1),
]


def open_channel(endpoint: str, secured_by: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """A channel of the running event loop; it connects at its first call."""
    if secured_by is None:
        return grpc.aio.insecure_channel(endpoint, options=_CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(endpoint, secured_by, options=_CHANNEL_OPTIONS)


def credentials(settings: TritonSettings) -> grpc.ChannelCredentials | None:
    """TLS from the settings: None without it; mutual when a certificate and key of ours are named.

    Raises:
        ConfigError: half of a pair, or certificates without TLS.
        MissingPart: a file that cannot be read.
    """
    if not settings.tls:
        if settings.ssl_ca or settings.ssl_certificate or settings.ssl_key:
            raise ConfigError("[triton] ssl_* is set but tls is false. Set tls = true, or delete ssl_*.")
        return None
    if (settings.ssl_certificate is None) != (settings.ssl_key is None):
        raise ConfigError("[triton] ssl_certificate and ssl_key belong together. Set both, or neither.")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("ssl_ca", settings.ssl_ca),
        private_key=_pem("ssl_key", settings.ssl_key),
        certificate_chain=_pem("ssl_certificate", settings.ssl_certificate),
    )


def _pem(field: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise MissingPart(
            f"[triton] {field} {path}: {error.strerror}. Correct the path or its rights."
        ) from error
