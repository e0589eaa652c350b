"""A TCP network with faults: what runs between a process and a port is held, slowed, or let through one way.

Each `Network.proxy(port)` listens on a port of its own and hands everything on. Whose connection it is comes
from the kernel's table of sockets (Linux), so that one worker can be cut off while another is not.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

ANY = "*"
_CHUNK_BYTES = 65_536
_LOOPBACK = "127.0.0.1"
_CALL_DEADLINE_S = 20.0

Answer = TypeVar("Answer")
Processes = Callable[[], Mapping[int, str]]


@dataclass(frozen=True, slots=True)
class Link:
    """How bytes, and closes, travel between a process and a port.

    What is held is not lost: as TCP sends again after an outage, it arrives when the link is mended, unless
    the connection was given up meanwhile.

    to_server, to_client: False holds that direction.
    delay_s: added to each piece of either direction. bytes_per_s: of either direction; 0 sets no bound.
    """

    to_server: bool = True
    to_client: bool = True
    delay_s: float = 0.0
    bytes_per_s: float = 0.0


OPEN = Link()
CUT = Link(to_server=False, to_client=False)
# Requests arrive and are done, and their answers never come back.
HALF_OPEN = Link(to_client=False)


class _Connection:
    def __init__(self, source: str, target: str, writers: tuple[asyncio.StreamWriter, ...]) -> None:
        self.source, self.target, self.writers = source, target, writers

    def abort(self) -> None:
        """Both sides see a reset."""
        for writer in self.writers:
            _reset(writer)


class Network:
    """Proxies on a thread and an event loop of their own, and the links between processes and ports.

    Args:
        processes: process id to name, of those whose links are to be told apart; asked at each connection.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._links: dict[tuple[str, str], Link] = {}
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_DEADLINE_S)
        self._loop.close()

    def proxy(self, name: str, to_port: int) -> int:
        """The port of a new proxy, called `name`, in front of `to_port`."""
        return self._call(self._listen(name, to_port))

    def link(self, source: str, target: str, link: Link) -> None:
        """Let `link` hold between a process and a proxy, each by name or `ANY`, also for what is open now."""
        self._call(self._set({(source, target): link}))

    def links(self, links: Mapping[tuple[str, str], Link]) -> None:
        """As `link`, for several (source, target) at one moment."""
        self._call(self._set(dict(links)))

    def mend(self, source: str = ANY, target: str = ANY, *, reset: bool = False) -> None:
        """Open every link that was set for these, `ANY` meaning all; with `reset` drop their connections."""
        self._call(self._mend(source, target, reset))

    def connection_count(self, source: str) -> int:
        """Connections that this process has through any proxy."""
        return sum(each.source == source for each in list(self._connections))

    def _call(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_DEADLINE_S)

    async def _listen(self, name: str, to_port: int) -> int:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await self._serve(name, to_port, reader, writer)

        server = await asyncio.start_server(accepted, _LOOPBACK, 0, limit=_CHUNK_BYTES)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _set(self, links: dict[tuple[str, str], Link]) -> None:
        self._links |= links
        self._note_change()

    async def _mend(self, source: str, target: str, reset: bool) -> None:
        gone = [key for key in self._links if source in (ANY, key[0]) and target in (ANY, key[1])]
        for key in gone:
            del self._links[key]
        if reset:
            for each in list(self._connections):
                if any(s in (ANY, each.source) and t in (ANY, each.target) for s, t in gone):
                    each.abort()
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for each in list(self._connections):
            each.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _between(self, source: str, target: str) -> Link:
        """The strictest of the links that speak of these two."""
        found = OPEN
        for key in ((source, target), (source, ANY), (ANY, target), (ANY, ANY)):
            if (link := self._links.get(key)) is not None:
                found = replace(
                    found,
                    to_server=found.to_server and link.to_server,
                    to_client=found.to_client and link.to_client,
                    delay_s=max(found.delay_s, link.delay_s),
                    bytes_per_s=min(filter(None, (found.bytes_per_s, link.bytes_per_s)), default=0.0),
                )
        return found

    async def _serve(
        self, name: str, to_port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        own_port = writer.get_extra_info("sockname")[1]
        source = owner_of(writer.get_extra_info("peername")[1], own_port, self._processes())
        while not self._between(source, name).to_server:
            await self._changed.wait()
        try:
            to_reader, to_writer = await asyncio.open_connection(_LOOPBACK, to_port, limit=_CHUNK_BYTES)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(source, name, (writer, to_writer))
        self._connections.add(connection)
        try:
            await asyncio.gather(
                self._pump(connection, reader, to_writer, upward=True),
                self._pump(connection, to_reader, writer, upward=False),
            )
        finally:
            self._connections.discard(connection)
            connection.abort()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        upward: bool,
    ) -> None:
        try:
            while True:
                data = await reader.read(_CHUNK_BYTES)
                await self._let_through(connection, len(data), upward)
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            # A reset of one side becomes one of the other, once the link lets it through.
            await self._let_through(connection, 0, upward)
            connection.abort()

    async def _let_through(self, connection: _Connection, byte_count: int, upward: bool) -> None:
        while True:
            link = self._between(connection.source, connection.target)
            if not (link.to_server if upward else link.to_client):
                await self._changed.wait()
                continue
            wait_s = link.delay_s + (byte_count / link.bytes_per_s if link.bytes_per_s else 0.0)
            if wait_s:
                await asyncio.sleep(wait_s)
            return


def _reset(writer: asyncio.StreamWriter) -> None:
    # Without time to linger the kernel sends a reset, not an orderly end.
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def owner_of(port: int, peer_port: int, processes: Mapping[int, str]) -> str:
    """The name of the process whose socket leads from `port` to `peer_port`; empty for any other."""
    inode = _inode(port, peer_port)
    if inode is None:
        return ""
    wanted = f"socket:[{inode}]"
    for pid, name in processes.items():
        try:
            descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                if str(descriptor.readlink()) == wanted:
                    return name
            except OSError:
                continue
    return ""


def _inode(port: int, peer_port: int) -> str | None:
    here, there = f":{port:04X}", f":{peer_port:04X}"
    # Java speaks IPv6 even to 127.0.0.1.
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()
        except OSError:
            continue
        for line in lines[1:]:
            fields = line.split()
            if fields[1].endswith(here) and fields[2].endswith(there):
                return fields[9]
    return None
