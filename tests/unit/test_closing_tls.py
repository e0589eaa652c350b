"""A TLS connection whose other end does not say good-bye does not hold up whoever closes it."""

import asyncio
import ssl
from collections import deque
from types import SimpleNamespace

import pytest
from aiokafka.conn import AIOKafkaConnection

from infra.local.pki import ensure_pki
from weir import kafka_options
from weir.kafka_options import closed

# asyncio waits 30 s for the word of good-bye; a test that takes longer than this has waited for it.
FAR_LESS_S = 15


@pytest.fixture
async def silent(tmp_path):
    """A server that ends the handshake and then reads nothing any more: its port."""
    pki = ensure_pki(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.keys_server.certificate, pki.keys_server.key)
    writers = []

    def deaf(_, writer):
        # Beneath TLS: its own transport would still answer a closing.
        writer.transport._ssl_protocol._transport.pause_reading()
        writers.append(writer)

    server = await asyncio.start_server(deaf, "127.0.0.1", 0, ssl=context)
    trusting = ssl.create_default_context(cafile=pki.ca)
    yield server.sockets[0].getsockname()[1], trusting
    for writer in writers:
        writer.transport.abort()
    server.close()


async def connected(port, context) -> AIOKafkaConnection:
    """aiokafka's own connection, past its handshake, without what it asks a broker first."""
    connection = AIOKafkaConnection(
        "127.0.0.1", port, security_protocol="SSL", ssl_context=context, request_timeout_ms=5000
    )
    loop = asyncio.get_running_loop()
    connection._closed_fut = loop.create_future()
    reader = asyncio.StreamReader()
    from aiokafka.conn import AIOKafkaProtocol

    transport, protocol = await loop.create_connection(
        lambda: AIOKafkaProtocol(connection._closed_fut, reader, loop=loop),
        "127.0.0.1",
        port,
        ssl=context,
        server_hostname="localhost",
    )
    connection._reader = reader
    connection._writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    connection._read_task = asyncio.create_task(asyncio.Event().wait())
    connection._requests = deque()
    return connection


async def test_it_is_dropped_soon(silent):
    connection = await connected(*silent)
    client = SimpleNamespace(_conns={1: connection})

    async def close():
        await connection.close()
        return "closed"

    async with asyncio.timeout(FAR_LESS_S):
        assert await closed(close(), client) == "closed"


async def test_what_is_not_yet_being_closed_may_go_on(silent, monkeypatch):
    """A member tells its group that it leaves, which takes longer than a good-bye may."""
    monkeypatch.setattr(kafka_options, "_CLOSE_S", 0.01)
    connection = await connected(*silent)
    client, left = SimpleNamespace(_conns={1: connection}), asyncio.Event()

    async def close():
        await left.wait()
        assert not connection._writer.transport.is_closing()
        await connection.close()

    closing = asyncio.create_task(closed(close(), client))
    await asyncio.wait([closing], timeout=0.2)
    assert not closing.done()
    left.set()
    async with asyncio.timeout(FAR_LESS_S):
        await closing


async def test_an_error_of_the_closing_comes_out():
    async def fails():
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await closed(fails(), SimpleNamespace(_conns={}))
