"""`/metrics`, `/healthz` and `/livez` of a service, on asyncio alone: no web framework in the hot process.

GET only, one answer a connection, every read and the number of connections bounded.
"""

import asyncio
import errno
import inspect
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from weir.errors import ConfigError, ExitCode, WeirError

_REQUEST_BYTES_MAX = 8192
_REQUEST_DEADLINE_S = 5.0
_CONNECTIONS_MAX = 32

Ready = Callable[[], Awaitable[dict[str, Any]] | dict[str, Any]]


class PortTaken(ConfigError):
    """Another process listens where this one is told to."""

    # A supervisor's next try may find it free.
    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        super().__init__(f"{host}:{port}: another process listens there. Stop it, or set a free port.")


class Server:
    """A running endpoint; `port` is the real one when 0 was asked for. Close it, or use it as a context."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        address = server.sockets[0].getsockname()
        self.host: str = address[0]
        self.port: int = address[1]

    async def close(self) -> None:
        """Stops listening; answers under way are finished."""
        self._server.close()
        await self._server.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def serve(host: str, port: int, ready: Ready, *, registry: CollectorRegistry = REGISTRY) -> Server:
    """Serves the three pages until the returned server is closed.

    Args:
        host: what to bind; loopback unless a bank's own network says otherwise.
        port: 0 takes a free one.
        ready: what `/healthz` shows as JSON, sync or async. 200 unless it holds `"ready": false` or raises
            a WeirError, then 503. It is called for each request: keep it cheap.
        registry: what `/metrics` shows.

    Raises:
        PortTaken: another process listens there.
        ConfigError: the host is not one of this machine's.
    """
    pages = _Pages(ready, registry)
    try:
        return Server(await asyncio.start_server(pages.answer, host, port, limit=_REQUEST_BYTES_MAX))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(host, port) from error
        raise ConfigError(
            f"{host}:{port}: cannot listen there ({error.strerror}). Correct host and port."
        ) from error


class _Pages:
    def __init__(self, ready: Ready, registry: CollectorRegistry) -> None:
        self._ready, self._registry = ready, registry
        self._connection_count = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connection_count += 1
        try:
            # A client that hangs up, sends nothing or sends too much gets no page and costs nothing more.
            with suppress(
                TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
            ):
                async with asyncio.timeout(_REQUEST_DEADLINE_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(await self._response(head))
                    await writer.drain()
        finally:
            self._connection_count -= 1
            writer.close()

    async def _response(self, head: bytes) -> bytes:
        method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method not in (b"GET", b"HEAD"):
            return _page(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"GET only\n", method)
        if self._connection_count > _CONNECTIONS_MAX:
            return _page(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"too many connections\n", method)
        if path == b"/metrics":
            return _page(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry), method)
        if path == b"/healthz":
            status, body = await self._health()
            return _page(status, "application/json", json.dumps(body, default=str).encode() + b"\n", method)
        if path == b"/livez":
            return _page(HTTPStatus.OK, "text/plain", b"alive\n", method)
        return _page(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics, /healthz or /livez\n", method)

    async def _health(self) -> tuple[HTTPStatus, dict[str, Any]]:
        try:
            answer = self._ready()
            body = await answer if inspect.isawaitable(answer) else answer
        except WeirError as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False, "error": str(error)}
        body = {"ready": True, **body}
        return (HTTPStatus.OK if body["ready"] else HTTPStatus.SERVICE_UNAVAILABLE), body


def _page(status: HTTPStatus, content_type: str, body: bytes, method: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (b"" if method == b"HEAD" else body)
