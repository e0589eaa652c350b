"""Shared metrics and the small HTTP server that shows them."""

import asyncio
import json
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry

from weir.errors import NeighbourUnavailable
from weir.obs.http import PortTaken, serve
from weir.obs.metrics import Metrics


async def get(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def page(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def test_metrics_are_served_by_their_documented_names():
    registry = CollectorRegistry()
    metrics = Metrics("risk", registry)
    metrics.decided({("approve", "model"): 990, ("decline", "rule"): 10})
    metrics.dead_lettered("not_framed", 2)
    metrics.stage("features", 0.001)
    metrics.batch(1000)
    metrics.latency([0.004, 0.009])
    metrics.late(3)
    metrics.policy_reloaded("refused")
    metrics.model("risk").answered(0.002)
    with metrics.timed("decide"):
        pass
    async with await serve("127.0.0.1", 0, dict, registry=registry) as server:
        status, body = await get(server.port, page("/metrics"))
    text = body.decode()
    assert status == 200
    for line in (
        'weir_decisions_total{basis="model",outcome="approve",service="risk"} 990.0',
        'weir_dlq_records_total{reason="not_framed",service="risk"} 2.0',
        'weir_stage_duration_seconds_count{service="risk",stage="decide"} 1.0',
        'weir_model_request_duration_seconds_count{model="risk"} 1.0',
        'weir_batch_rows_sum{service="risk"} 1000.0',
        'weir_event_latency_seconds_count{service="risk"} 2.0',
        'weir_late_events_total{service="risk"} 3.0',
        'weir_policy_reloads_total{result="refused"} 1.0',
    ):
        assert line in text
    assert "weir_build_info{" in text


def test_an_unknown_reason_makes_no_series_of_its_own():
    registry = CollectorRegistry()
    metrics = Metrics("risk", registry)
    for reason in ("made up", "DE02120300000000202051"):
        metrics.dead_lettered(reason)
    labels = {"service": "risk", "reason": "other"}
    assert registry.get_sample_value("weir_dlq_records_total", labels) == 2
    with pytest.raises(KeyError):
        metrics.decided({("shrug", "model"): 1})


def test_two_services_of_one_process_share_the_metrics():
    registry = CollectorRegistry()
    Metrics("risk", registry).batch(5)
    Metrics("risk", registry).batch(6)
    Metrics("ledger", registry).batch(7)
    assert registry.get_sample_value("weir_batch_rows_sum", {"service": "risk"}) == 11


async def test_health_follows_the_service():
    state: dict[str, object] = {"ready": True, "partitions": 4}
    async with await serve("127.0.0.1", 0, lambda: state, registry=CollectorRegistry()) as server:
        status, body = await get(server.port, page("/healthz"))
        assert (status, json.loads(body)) == (200, {"ready": True, "partitions": 4})
        state["ready"] = False
        status, _ = await get(server.port, page("/healthz"))
        assert status == 503
        status, body = await get(server.port, page("/livez"))
        assert status == 200


async def test_a_health_check_that_fails_says_why():
    async def ready() -> dict[str, object]:
        raise NeighbourUnavailable("triton at localhost:1: no answer")

    async with await serve("127.0.0.1", 0, ready, registry=CollectorRegistry()) as server:
        status, body = await get(server.port, page("/healthz"))
    assert status == 503
    assert json.loads(body) == {"ready": False, "error": "triton at localhost:1: no answer"}


async def test_a_taken_port_is_one_clear_line():
    async with await serve("127.0.0.1", 0, dict, registry=CollectorRegistry()) as server:
        with pytest.raises(PortTaken, match=f"127.0.0.1:{server.port}: another process listens there"):
            await serve("127.0.0.1", server.port, dict, registry=CollectorRegistry())


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (page("/"), 404),
        (page("/metrics", "POST"), 405),
        (b"\x00\xff\r\n\r\n", 405),
        (page("/livez", "HEAD"), 200),
    ],
)
async def test_other_requests_are_refused(request_bytes, status):
    async with await serve("127.0.0.1", 0, dict, registry=CollectorRegistry()) as server:
        assert (await get(server.port, request_bytes))[0] == status


async def test_an_endless_request_is_cut_off():
    async with await serve("127.0.0.1", 0, dict, registry=CollectorRegistry()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000)
        # Hung up while we were still sending: as wanted.
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert (await get(server.port, page("/livez")))[0] == 200
