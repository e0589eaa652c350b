"""The connection to Triton: how it is secured, and how soon it notices that the server is away or back.

One connection for all calls, made by the first of them and again after it was lost. `_http2.py` knows the
protocol; here are the socket and the clock.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from grpc import StatusCode

from weir.config import TritonSettings
from weir.errors import ConfigError, MissingPart
from weir.inference._hpack import literals
from weir.inference._http2 import Answered, Event, Http2Calls, ProtocolBroken

# A payment cannot wait long for a server that is back, nor does a server that is away gain by many attempts.
_RECONNECT_FIRST_S, _RECONNECT_MOST_S = 0.1, 1.0
# A connection on which a call ran out of time without a sign of life is asked for one, then dropped.
_SIGN_OF_LIFE_S = 2.0
_DETAIL_MAX = 160
_MS_MAX = 99_999_999


_Listener = Callable[["_Connection"], object]


class CallFailed(Exception):
    """A call without an answer: the server's word, or what kept the call from it."""

    def __init__(self, code: StatusCode, details: str) -> None:
        self.code, self.details = code, details
        super().__init__(f"{code.name}: {details}")


class Channel:
    """Unary calls to one server, within one event loop."""

    def __init__(self, endpoint: str, secured_by: ssl.SSLContext | None) -> None:
        """endpoint: host:port. Nothing is sent yet."""
        host, _, port = endpoint.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"[triton] endpoint {endpoint}: must be host:port. Correct it.")
        self._host, self._port = host.removeprefix("[").removesuffix("]"), int(port)
        self._secured_by = secured_by
        self._always = (
            (b":method", b"POST"),
            (b":scheme", b"http" if secured_by is None else b"https"),
            (b":authority", endpoint.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        )
        self._blocks: dict[str, bytes] = {}
        self._connection: _Connection | None = None
        self._draining: set[_Connection] = set()
        self._connecting: asyncio.Task[_Connection | OSError] | None = None
        self._wait_s, self._not_before_s, self._last_cause = _RECONNECT_FIRST_S, 0.0, ""

    async def call(self, method: str, message: bytes, timeout_s: float) -> bytes:
        """The answer to one message.

        Args:
            method: "/package.Service/Method".
        Raises:
            CallFailed: the server's refusal, no connection, or no answer in time.
        """
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_s
        connection = self._connection
        if connection is None or not connection.usable:
            connection = await self._connected(ends_s)
        block = self._blocks.get(method)
        if block is None:
            block = self._blocks[method] = literals((*self._always, (b":path", method.encode())))
        left_ms = min(_MS_MAX, max(1, round((ends_s - loop.time()) * 1000)))
        block += literals(((b"grpc-timeout", b"%dm" % left_ms),))
        return await connection.call(block, message, ends_s)

    async def close(self) -> None:
        """Drop the connection; calls under way end as unavailable."""
        if (connecting := self._connecting) is not None:
            connecting.cancel()
            await asyncio.wait([connecting])
        for connection in (self._connection, *self._draining):
            if connection is not None:
                connection.drop("the client was closed")
        self._connection = None

    async def _connected(self, ends_s: float) -> "_Connection":
        loop = asyncio.get_running_loop()
        if self._connection is not None:
            # The server takes no new calls there; those under way end as usual.
            self._draining.add(self._connection)
            self._connection.when_lost(self._draining.discard)
            self._connection = None
        if self._connecting is None:
            if loop.time() < self._not_before_s:
                raise CallFailed(StatusCode.UNAVAILABLE, self._last_cause)
            self._connecting = asyncio.create_task(self._connect())
        done, _ = await asyncio.wait([self._connecting], timeout=max(0.0, ends_s - loop.time()))
        if not done:
            raise CallFailed(StatusCode.DEADLINE_EXCEEDED, "no connection before the deadline")
        (task,) = done
        if task.cancelled():
            raise CallFailed(StatusCode.UNAVAILABLE, "the client was closed")
        found = task.result()
        if isinstance(found, OSError):
            raise CallFailed(StatusCode.UNAVAILABLE, _in_words(found)) from found
        return found

    async def _connect(self) -> "_Connection | OSError":
        """A connection, or why there is none: nobody may be left to hear an exception."""
        loop = asyncio.get_running_loop()
        tls = self._secured_by
        try:
            _, connection = await loop.create_connection(
                _Connection, self._host, self._port, ssl=tls, server_hostname=self._host if tls else None
            )
        except OSError as error:
            self._last_cause = _in_words(error)
            self._not_before_s = loop.time() + self._wait_s
            self._wait_s = min(self._wait_s * 2, _RECONNECT_MOST_S)
            return error
        finally:
            self._connecting = None
        self._wait_s = _RECONNECT_FIRST_S
        connection.when_lost(self._lost)
        self._connection = connection
        return connection

    def _lost(self, connection: "_Connection") -> None:
        if self._connection is connection:
            self._connection = None


class _Connection(asyncio.Protocol):
    """One connection's socket and its calls' futures."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls = Http2Calls()
        self._answers: dict[int, asyncio.Future[bytes]] = {}
        self._transport: asyncio.Transport | None = None
        self._received_s = self._loop.time()
        self._gone: str | None = None
        self._listeners: list[_Listener] = []

    @property
    def usable(self) -> bool:
        """Whether a new call may begin here."""
        return self._gone is None and self._calls.usable

    def when_lost(self, call: "_Listener") -> None:
        """Call it with this connection once it is lost; at once when it is."""
        if self._gone is not None:
            call(self)
        else:
            self._listeners.append(call)

    async def call(self, headers: bytes, message: bytes, ends_s: float) -> bytes:
        """See `Channel.call`."""
        if self._gone is not None:
            raise CallFailed(StatusCode.UNAVAILABLE, self._gone)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        number = self._calls.call(headers, message)
        self._answers[number] = answer
        self._send()
        timer = self._loop.call_at(ends_s, self._expire, number, self._loop.time())
        try:
            return await answer
        finally:
            timer.cancel()
            if self._answers.pop(number, None) is not None:
                self._calls.cancel(number)
                self._send()

    def drop(self, cause: str) -> None:
        """End the connection now; its calls fail."""
        self._lose(cause)
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio's side ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open: say hello."""
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._received_s = self._loop.time()
        try:
            events = self._calls.receive(data)
        except ProtocolBroken as error:
            self.drop(str(error))
            return
        self._settle(events)
        self._send()
        if self._calls.closing and not self._answers and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._lose("the server closed the connection" if exc is None else _in_words(exc))

    # ------------------------------------------------------------------------------------------------------

    def _settle(self, events: Iterable[Event]) -> None:
        for event in events:
            answer = self._answers.pop(event.call, None)
            if answer is None or answer.done():
                continue
            if isinstance(event, Answered):
                answer.set_result(event.message)
            else:
                answer.set_exception(CallFailed(event.code, event.details))

    def _send(self) -> None:
        out = self._calls.take()
        if out and self._transport is not None and self._gone is None:
            self._transport.writelines(out)

    def _expire(self, number: int, begun_s: float) -> None:
        answer = self._answers.pop(number, None)
        if answer is None or answer.done():
            return
        self._calls.cancel(number)
        if self._received_s < begun_s and not self._calls.pings_open:
            self._calls.ping()
            self._loop.call_later(_SIGN_OF_LIFE_S, self._still_silent, self._received_s)
        self._send()
        answer.set_exception(CallFailed(StatusCode.DEADLINE_EXCEEDED, "no answer before the deadline"))

    def _still_silent(self, since_s: float) -> None:
        if self._received_s == since_s and self._gone is None:
            self.drop("the server gave no sign of life")

    def _lose(self, cause: str) -> None:
        if self._gone is not None:
            return
        self._gone = cause
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(CallFailed(StatusCode.UNAVAILABLE, cause))
        listeners, self._listeners = self._listeners, []
        for call in listeners:
            call(self)


def credentials(settings: TritonSettings) -> ssl.SSLContext | None:
    """TLS from the settings: None without it; mutual when a certificate and key of ours are named.

    Raises:
        ConfigError: half of a pair, certificates without TLS, or a file that is no certificate or key.
        MissingPart: a file that cannot be read.
    """
    if not settings.tls:
        if settings.ssl_ca or settings.ssl_certificate or settings.ssl_key:
            raise ConfigError("[triton] ssl_* is set but tls is false. Set tls = true, or delete ssl_*.")
        return None
    if (settings.ssl_certificate is None) != (settings.ssl_key is None):
        raise ConfigError("[triton] ssl_certificate and ssl_key belong together. Set both, or neither.")
    for field in ("ssl_ca", "ssl_certificate", "ssl_key"):
        _check_readable(field, getattr(settings, field))
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca)
        if settings.ssl_certificate is not None:
            # An empty password: an encrypted key is refused, and not asked about at the terminal.
            context.load_cert_chain(settings.ssl_certificate, settings.ssl_key, password="")
    except ssl.SSLError as error:
        raise ConfigError(
            f"[triton] ssl_ca, ssl_certificate, ssl_key: {error.reason or 'one is no PEM'}. Correct them."
        ) from error
    context.set_alpn_protocols(["h2"])
    return context


def _check_readable(field: str, path: Path | None) -> None:
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise MissingPart(
            f"[triton] {field} {path}: {error.strerror}. Correct the path or its rights."
        ) from error


def _in_words(error: Exception) -> str:
    """Why there is no connection, in a clause that a person can act on."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "the server ended the handshake"
        return f"TLS failed ({reason}); check tls, ssl_ca, ssl_certificate and ssl_key"
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    lines = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()
    return lines[0][:_DETAIL_MAX]
