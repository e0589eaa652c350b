"""The tools of the fault runs do what their names say: a link is cut, a disk is full, a clock is off."""

import asyncio
import errno
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import layout
from infra.local.java import find_java
from tests.support.disk import can_mount, small_disk
from tests.support.proxy import ANY, CUT, HALF_OPEN, Link, Network
from tests.support.shifted_clock import (
    build_for_processes,
    can_shift_processes,
    environment,
    make_shift_file,
    set_shift,
)

DEADLINE_S = 10.0
# Long enough for a byte on the loopback interface, which a link in order passes in a millisecond.
HELD_S = 0.3
ANSWERS = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as link:
    print("connected", flush=True)
    for line in sys.stdin:
        link.sendall(line.encode())
        print(link.recv(100).decode().strip(), flush=True)
"""


class Echo:
    """A server that gives back what it gets, and counts it."""

    def __init__(self) -> None:
        self.received = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(DEADLINE_S)

    def _run(self) -> None:
        self._loop.run_until_complete(self._listen())
        # Not before the loop runs for good: a stop that comes earlier would be over by then.
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()

    async def _listen(self) -> None:
        self._server = server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            self.received += len(data)
            writer.write(data)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._server.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def network() -> Iterator[Network]:
    with Network(dict) as network:
        yield network


async def talk(port: int, text: bytes = b"hello") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    return reader, writer


async def answer(reader: asyncio.StreamReader, within_s: float = DEADLINE_S) -> bytes:
    async with asyncio.timeout(within_s):
        return await reader.read(100)


async def test_an_open_link_passes_everything_and_the_end(network: Network, echo: Echo) -> None:
    reader, writer = await talk(network.proxy("echo", echo.port))
    assert await answer(reader) == b"hello"
    writer.write_eof()
    writer.close()
    await writer.wait_closed()


async def test_a_cut_link_holds_what_is_sent_and_brings_it_once_it_is_mended(
    network: Network, echo: Echo
) -> None:
    reader, writer = await talk(network.proxy("echo", echo.port))
    assert await answer(reader) == b"hello"
    network.link(ANY, "echo", CUT)
    writer.write(b"held")
    with pytest.raises(TimeoutError):
        await answer(reader, HELD_S)
    assert echo.received == len(b"hello")
    network.mend()
    assert await answer(reader) == b"held"


async def test_a_half_open_link_brings_requests_and_no_answers(network: Network, echo: Echo) -> None:
    network.link(ANY, "echo", HALF_OPEN)
    reader, _ = await talk(network.proxy("echo", echo.port))
    with pytest.raises(TimeoutError):
        await answer(reader, HELD_S)
    assert echo.received == len(b"hello")
    network.mend()
    assert await answer(reader) == b"hello"


async def test_a_mended_link_can_drop_its_connections(network: Network, echo: Echo) -> None:
    reader, _ = await talk(network.proxy("echo", echo.port))
    assert await answer(reader) == b"hello"
    network.link(ANY, "echo", CUT)
    network.mend(reset=True)
    with pytest.raises(ConnectionResetError):
        await answer(reader)


async def test_a_slow_link_is_slow(network: Network, echo: Echo) -> None:
    network.link(ANY, ANY, Link(delay_s=0.1))
    begun_s = time.monotonic()
    reader, _ = await talk(network.proxy("echo", echo.port))
    assert await answer(reader) == b"hello"
    assert time.monotonic() - begun_s >= 0.2


async def test_a_server_that_is_away_is_a_reset(network: Network, echo: Echo) -> None:
    echo.close()
    reader, _ = await talk(network.proxy("nobody", echo.port))
    with pytest.raises(ConnectionResetError):
        await answer(reader)


def test_one_process_is_cut_off_while_another_is_not(echo: Echo) -> None:
    names: dict[int, str] = {}
    with Network(lambda: names) as network:
        port = network.proxy("echo", echo.port)
        network.link("one", ANY, CUT)
        children = []
        for name in ("one", "other"):
            child = subprocess.Popen(
                [sys.executable, "-c", ANSWERS, str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            names[child.pid] = name
            children.append(child)
        one, other = children
        try:
            for child in children:
                assert child.stdout is not None
                assert child.stdin is not None
                assert child.stdout.readline() == "connected\n"
                child.stdin.write("hello\n")
                child.stdin.flush()
            assert other.stdout is not None
            assert other.stdout.readline() == "hello\n"
            assert echo.received == len("hello\n")
            network.mend()
            assert one.stdout is not None
            assert one.stdout.readline() == "hello\n"
        finally:
            for child in children:
                child.kill()
                child.communicate()


def test_a_full_disk_takes_no_byte_until_it_is_freed(tmp_path: Path) -> None:
    """Where this process may not mount, it says so: then no run fills a disk."""
    if not can_mount():
        with pytest.raises(subprocess.CalledProcessError), small_disk(tmp_path / "disk", 1):
            pass
        return
    with small_disk(tmp_path / "disk", 1) as disk:
        assert disk.fill() >= 900_000
        with pytest.raises(OSError, match="No space left") as full:
            (disk.folder / "more").write_bytes(b"x" * 10_000)
        assert full.value.errno == errno.ENOSPC
        disk.free()
        (disk.folder / "more").write_bytes(b"x" * 10_000)
    assert not (tmp_path / "disk" / "more").exists()


def test_a_shifted_clock_moves_the_time_of_day_and_no_duration(tmp_path: Path) -> None:
    """A module in a process of its own prints its clocks, before and after the shift changes."""
    module = tmp_path / "prints_clocks.py"
    module.write_text(
        "import time\n"
        "for _ in range(2):\n"
        "    print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)\n"
        "    input()\n"
    )
    file = make_shift_file(tmp_path / "clock")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.shifted_clock", str(file), "prints_clocks"],
        env={"PYTHONPATH": f"{tmp_path}:{layout.ROOT}"},
        cwd=layout.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        right, right_ns, before_s = map(float, child.stdout.readline().split())
        set_shift(file, -3600.0)
        child.stdin.write("\n")
        child.stdin.flush()
        shifted, shifted_ns, after_s = map(float, child.stdout.readline().split())
    finally:
        child.kill()
        child.communicate()
    assert abs(right - time.time()) < DEADLINE_S
    assert abs(right - right_ns) < 1.0
    assert abs(right - shifted - 3600.0) < DEADLINE_S
    assert abs(shifted - shifted_ns) < 1.0
    assert 0 <= after_s - before_s < DEADLINE_S


def test_a_brokers_clock_moves_too_and_none_of_its_durations(tmp_path: Path) -> None:
    """Java's own log bears its clocks. Without a C compiler it says so: then no run sets a broker's."""
    if not can_shift_processes():
        with pytest.raises(OSError, match="cc"):
            build_for_processes(tmp_path)
        return
    file = make_shift_file(tmp_path / "clock")
    env = environment(build_for_processes(tmp_path), file)

    def clocks() -> tuple[float, float]:
        command = [find_java().program, "-Xlog:gc+init=info:stdout:timemillis,uptimemillis", "-version"]
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=30).stdout
        time_ms, uptime_ms = re.findall(r"\[(\d+)ms\]", said)[:2]
        return int(time_ms) / 1000, int(uptime_ms) / 1000

    right, _ = clocks()
    set_shift(file, 1800.0)
    shifted, since_start_s = clocks()
    assert abs(right - time.time()) < DEADLINE_S
    assert abs(shifted - right - 1800.0) < DEADLINE_S
    assert 0 <= since_start_s < DEADLINE_S
