"""The connection to the model server: made by the first call, dropped when dead, made again."""

import asyncio
import struct
from contextlib import asynccontextmanager

import pytest
from grpc import StatusCode

from infra.local.ports import free_port
from tests.support.http2 import GOAWAY, PING, answer, frame, settings
from weir.errors import ConfigError
from weir.inference import _channel
from weir.inference._channel import CallFailed, Channel

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@asynccontextmanager
async def serving(handle, port: int = 0):
    """A server whose connections are handled by `handle(reader, writer)`; its port."""
    server = await asyncio.start_server(handle, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def read_call(reader: asyncio.StreamReader) -> int:
    """Wait until a call's message has come whole; its stream."""
    await reader.readuntil(b"SM\r\n\r\n") if not hasattr(reader, "greeted") else None
    reader.greeted = True  # type: ignore[attr-defined]
    while True:
        head = await reader.readexactly(9)
        await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == 0 and head[4] & 0x01:
            return int.from_bytes(head[5:9], "big")


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the other side of a socket changes it
            await asyncio.sleep(0.005)


async def test_a_connection_without_a_sign_of_life_is_dropped_and_another_made(monkeypatch):
    monkeypatch.setattr(_channel, "_SIGN_OF_LIFE_S", 0.05)
    ended = []

    async def handle(reader, writer):
        while await reader.read(65536):
            pass
        ended.append(writer)
        writer.close()

    async with serving(handle) as port:
        channel = Channel(f"127.0.0.1:{port}", None)
        for count in (1, 2):
            with pytest.raises(CallFailed) as caught:
                await channel.call(METHOD, b"m", 0.02)
            assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
            await until(lambda count=count: len(ended) == count)
        await channel.close()


async def test_a_slow_server_that_answers_pings_keeps_its_connection(monkeypatch):
    monkeypatch.setattr(_channel, "_SIGN_OF_LIFE_S", 0.02)
    connections = []
    late = asyncio.Event()

    async def handle(reader, writer):
        connections.append(writer)
        writer.write(settings())
        stream = await read_call(reader)
        writer.write(frame(PING, 1, 0, bytes(8)))  # the answer to the ping
        await late.wait()
        writer.write(answer(stream, b"too late"))
        writer.write(answer(await read_call(reader), b"in time"))

    async with serving(handle) as port:
        channel = Channel(f"127.0.0.1:{port}", None)
        with pytest.raises(CallFailed):
            await channel.call(METHOD, b"m", 0.05)
        await asyncio.sleep(0.05)
        late.set()
        assert await channel.call(METHOD, b"m", 5.0) == b"in time"
        assert len(connections) == 1
        await channel.close()


async def test_nobody_listening_is_said_at_once_and_tried_again_after_a_while(monkeypatch):
    monkeypatch.setattr(_channel, "_RECONNECT_FIRST_S", 0.05)
    port = free_port()
    channel = Channel(f"127.0.0.1:{port}", None)
    for _ in range(3):
        with pytest.raises(CallFailed, match="Connection refused") as caught:
            await channel.call(METHOD, b"m", 5.0)
        assert caught.value.code is StatusCode.UNAVAILABLE

    async def handle(reader, writer):
        writer.write(settings() + answer(await read_call(reader), b"back"))

    async def answered() -> bytes:
        while True:
            try:
                return await channel.call(METHOD, b"m", 5.0)
            except CallFailed:
                await asyncio.sleep(0.01)

    async with serving(handle, port):
        assert await asyncio.wait_for(answered(), 10) == b"back"
        await channel.close()


async def test_a_server_that_goes_away_ends_the_calls_it_has_and_new_ones_go_elsewhere():
    connections = []
    second = asyncio.Event()

    async def handle(reader, writer):
        connections.append(writer)
        writer.write(settings())
        stream = await read_call(reader)
        if len(connections) == 1:
            writer.write(frame(GOAWAY, 0, 0, struct.pack(">II", stream, 0)))
            await second.wait()
            writer.write(answer(stream, b"old"))
        else:
            writer.write(answer(stream, b"new"))

    async with serving(handle) as port:
        channel = Channel(f"127.0.0.1:{port}", None)
        first = asyncio.create_task(channel.call(METHOD, b"1", 5.0))
        await until(lambda: channel._connection is not None and not channel._connection.usable)
        assert await channel.call(METHOD, b"2", 5.0) == b"new"
        second.set()
        assert await first == b"old"
        await until(lambda: not channel._draining)
        await channel.close()


async def test_what_is_no_grpc_port_is_said():
    async def handle(reader, writer):
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with serving(handle) as port:
        channel = Channel(f"127.0.0.1:{port}", None)
        with pytest.raises(CallFailed, match="HTTP/1; check that the endpoint is its gRPC port"):
            await channel.call(METHOD, b"m", 5.0)
        await channel.close()


async def test_calls_under_way_end_when_the_channel_is_closed():
    async def handle(reader, writer):
        await reader.read()

    async with serving(handle) as port:
        channel = Channel(f"127.0.0.1:{port}", None)
        call = asyncio.create_task(channel.call(METHOD, b"m", 5.0))
        await until(lambda: channel._connection is not None)
        await channel.close()
        with pytest.raises(CallFailed, match="the client was closed"):
            await call


def test_an_endpoint_without_a_port_is_refused():
    for endpoint in ("localhost", ":8001", "localhost:grpc"):
        with pytest.raises(ConfigError, match="host:port"):
            Channel(endpoint, None)
    assert Channel("[::1]:8001", None)._host == "::1"
