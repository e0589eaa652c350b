"""End-to-end latency at a fixed rate, as a reader of committed decisions sees it."""

import asyncio
import sys
import time
from dataclasses import dataclass

import numpy as np
from aiokafka import AIOKafkaConsumer
from numpy.typing import NDArray

from bench.stage import ROOT, Stage
from weir.codec.avro import RowCodec
from weir.codec.framing import unframe
from weir.codec.schemas import load_schema
from weir.config import KafkaSettings
from weir.crypto.envelope import HEADER_NAME, parse_envelope_header
from weir.ids import decision_ids
from weir.streams.history import end_offsets, partitions, read_range

_CLIENT_ID = "bench-latency"
_POLL_MS = 100
# Broker and peers compile what few records at a time take only once they come so.
_WARM_S = 10.0
_LAST_S = 2.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds from a payment's Kafka timestamp to its decision being read, one a payment."""

    rate: float
    ms: NDArray[np.float64]

    def percentiles_ms(self) -> list[float]:
        """p50, p99, p99.9 and the slowest."""
        return [float(value) for value in np.percentile(self.ms, [50, 99, 99.9, 100])]


async def _reader(servers: str, topic: str) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, isolation_level="read_committed")
    await consumer.start()
    tps = await partitions(consumer, topic)
    consumer.assign(tps)
    await consumer.seek_to_end(*tps)
    for tp in tps:
        await consumer.position(tp)
    return consumer


async def at_rate(stage: Stage, decisions_topic: str, rate: float, seconds: float) -> Latency:
    """Let the simulator pay at `rate` and time each decision on `decisions_topic`.

    The first seconds are left out. A decision is found by its id, which stands in its header and which
    anyone can compute from the payment.

    Raises:
        SystemExit: a payment has no decision when the run is over.
    """
    kafka, payments = (
        KafkaSettings.model_validate({"bootstrap_servers": stage.servers}),
        stage.topics.transactions,
    )
    starts = await end_offsets(kafka, payments, _CLIENT_ID)
    decisions = await _reader(stage.servers, decisions_topic)
    simulator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "weir", "simulate"),
        *("--rate", str(rate), "--seconds", str(seconds + _WARM_S)),
        env=stage.env,
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    read_ms: dict[bytes, float] = {}
    reading = asyncio.create_task(_note_decisions(decisions, read_ms))
    try:
        await simulator.wait()
        # The last decisions are on their way: what is not here by then counts as not decided.
        await asyncio.sleep(_LAST_S)
    finally:
        reading.cancel()
        await asyncio.wait([reading])
        await decisions.stop()
    # Only now: read beside the run, the payments would cost a machine of two cores a part of one.
    ends = await end_offsets(kafka, payments, _CLIENT_ID)
    sent: list[tuple[int, bytes]] = []
    async for batch in read_range(kafka, payments, starts, ends, _CLIENT_ID):
        sent += [
            (at_ms, value) for at_ms, value in zip(batch.timestamps_ms, batch.values, strict=True) if value
        ]
    sent_ms = _by_decision(sent)
    missing = sum(each not in read_ms for each in sent_ms)
    if missing or not sent_ms:
        raise SystemExit(f"{missing} of {len(sent_ms)} payments have no decision on {decisions_topic}")
    begun = min(sent_ms.values()) + _WARM_S * 1000
    ms = [read_ms[each] - at_ms for each, at_ms in sent_ms.items() if at_ms >= begun]
    return Latency(rate, np.array(ms))


async def _note_decisions(consumer: AIOKafkaConsumer, read_ms: dict[bytes, float]) -> None:
    while True:
        for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
            now_ms = time.time() * 1000
            for record in records:
                header = dict(record.headers)[HEADER_NAME]
                read_ms[parse_envelope_header(header)[1]] = now_ms


def _by_decision(sent: list[tuple[int, bytes]]) -> dict[bytes, float]:
    """When each decision's payment was published; decoded afterwards, so that it costs the run nothing."""
    codec = RowCodec(load_schema("transaction"))
    events = [codec.decode(unframe(value)[1])["event_id"].encode() for _, value in sent]
    ids = decision_ids("default", events, "payment_fraud")
    return {each: float(at_ms) for each, (at_ms, _) in zip(ids, sent, strict=True)}
