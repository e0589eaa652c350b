"""A worker behind a lag, or before a slow model: memory is bounded, nothing lost, what is degraded says so.

Each test prints how fast it went, and the worker's memory.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import psutil
import pytest

from bench.fill import fill
from infra.local.ports import LOOPBACK
from tests.faults.history import read, record_id
from tests.support.payments import decisions, pay, payment, sample, settled, until
from tests.support.proxy import ANY, Link, Network
from tests.support.risk import RiskUnderTest, risk_under_test

BACKLOG = 100_000
ROWS_IN_FLIGHT_MAX, BATCH_ROWS_MAX = 3000, 1000
DEADLINE_S = 120.0
_LOOK_S = 0.02


@pytest.fixture
def network() -> Iterator[Network]:
    """Links that can be made slow."""
    with Network(dict) as network:
        yield network


@dataclass
class Watched:
    """What a worker was seen to hold at most."""

    rows_in_flight: list[float] = field(default_factory=list)
    resident_mib: list[float] = field(default_factory=list)


@asynccontextmanager
async def watching(risk: RiskUnderTest):
    """Look at a worker again and again while the block lasts."""
    seen, ending = Watched(), False
    process = psutil.Process(risk.process.pid)

    async def look():
        while not ending:
            metrics = await asyncio.to_thread(risk.metrics)
            seen.rows_in_flight.append(sample(metrics, 'weir_rows_in_flight{service="risk"}'))
            seen.resident_mib.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(_LOOK_S)  # a sample, not a wait

    looking = asyncio.create_task(look())
    try:
        yield seen
    finally:
        ending = True
        await looking


def decided(risk, degraded=False):
    """How many decisions the worker has counted, of this kind."""
    metrics = risk.metrics()
    bases = ("degraded",) if degraded else ("model", "rule")
    return sum(
        sample(metrics, f'weir_decisions_total{{basis="{basis}",outcome="{outcome}",service="risk"}}')
        for basis in bases
        for outcome in ("approve", "review", "decline")
    )


async def ids_of(risk):
    """The id of every decision that a committed reader sees."""
    servers, topic = risk.kafka.bootstrap_servers, risk.topics.decisions
    return [record_id(each) for each in await read(servers, topic, committed=True)]


async def test_a_backlog_is_worked_off_within_the_bounds_and_each_payment_once(tmp_path, kafka, keys, triton):
    """It lies there before the worker comes; what is paid meanwhile is decided behind it, in its turn."""
    with risk_under_test(
        tmp_path / "risk",
        kafka,
        keys,
        triton.endpoint,
        rows_in_flight_max=ROWS_IN_FLIGHT_MAX,
        batch_rows_max=BATCH_ROWS_MAX,
    ) as risk:
        topic = risk.topics.transactions
        sent = await asyncio.to_thread(
            fill,
            kafka.bootstrap_servers,
            topic,
            risk.partitions,
            accounts=BACKLOG // 5,
            after=BACKLOG - BACKLOG // 5,
        )
        await asyncio.to_thread(risk.start)
        begun_s, behind = time.monotonic(), sent - decided(risk)
        async with watching(risk) as seen:
            await pay(risk, [payment("live behind the lag")])
            await until(lambda: decided(risk) >= sent + 1, "the backlog is decided", DEADLINE_S)
            took_s = time.monotonic() - begun_s
        await settled(risk)
        found = await ids_of(risk)
        print(
            f"{behind:.0f} payments behind: {behind / took_s:.0f} decisions/s to catch up; rows in flight at "
            f"most {max(seen.rows_in_flight):.0f} of {ROWS_IN_FLIGHT_MAX}; resident "
            f"{seen.resident_mib[0]:.0f} MiB at the start, {max(seen.resident_mib):.0f} at most"
        )
        assert len(found) == len(set(found)) == sent + 1
        assert 0 < max(seen.rows_in_flight) <= ROWS_IN_FLIGHT_MAX
        assert decided(risk, degraded=True) == 0


async def test_a_slow_model_within_its_deadline_holds_the_fetching_back_and_degrades_nothing(
    tmp_path, kafka, keys, triton, network
):
    """Each answer takes a quarter of a second: rows wait up to the bound, the rest of them in Kafka."""
    port = network.proxy("triton", triton.grpc_port)
    with risk_under_test(
        tmp_path / "risk",
        kafka,
        keys,
        f"{LOOPBACK}:{port}",
        rows_in_flight_max=ROWS_IN_FLIGHT_MAX,
        batch_rows_max=BATCH_ROWS_MAX,
        score_deadline_ms=20_000,
    ) as risk:
        await asyncio.to_thread(risk.start)
        network.link(ANY, "triton", Link(delay_s=0.125))
        sent = await asyncio.to_thread(
            fill,
            kafka.bootstrap_servers,
            risk.topics.transactions,
            risk.partitions,
            accounts=1000,
            after=39_000,
        )
        async with watching(risk) as seen:
            await until(lambda: decided(risk) >= sent // 4, "a part is decided slowly", DEADLINE_S)
            slow = list(seen.rows_in_flight)
            assert decided(risk) < sent
            network.mend()
            begun_s, behind = time.monotonic(), sent - decided(risk)
            await until(lambda: decided(risk) >= sent, "the rest is decided", DEADLINE_S)
            took_s = time.monotonic() - begun_s
        print(
            f"slow model: rows in flight at most {max(slow):.0f} of {ROWS_IN_FLIGHT_MAX}; quick again: "
            f"{behind:.0f} behind, {behind / took_s:.0f} decisions/s; resident {seen.resident_mib[0]:.0f} "
            f"MiB at the start, {max(seen.resident_mib):.0f} at most"
        )
        await settled(risk)
        found = await ids_of(risk)
        assert len(found) == len(set(found)) == sent
        # The bound was reached, and kept.
        assert ROWS_IN_FLIGHT_MAX - BATCH_ROWS_MAX < max(seen.rows_in_flight) <= ROWS_IN_FLIGHT_MAX
        assert decided(risk, degraded=True) == 0


async def test_a_model_slower_than_its_deadline_is_not_waited_for_and_the_decisions_say_so(
    tmp_path, kafka, keys, triton, network
):
    """Rules decide meanwhile, marked; once it is quick again the model decides."""
    port = network.proxy("triton", triton.grpc_port)
    with risk_under_test(tmp_path / "risk", kafka, keys, f"{LOOPBACK}:{port}", score_deadline_ms=200) as risk:
        await asyncio.to_thread(risk.start)
        network.link(ANY, "triton", Link(delay_s=1.0))
        servers, topic = kafka.bootstrap_servers, risk.topics.transactions
        sent = await asyncio.to_thread(fill, servers, topic, risk.partitions, accounts=1000, after=19_000)
        begun_s = time.monotonic()
        await until(lambda: decided(risk, degraded=True) >= sent, "rules decide", DEADLINE_S)
        print(f"model too slow: {sent / (time.monotonic() - begun_s):.0f} degraded decisions/s")
        assert decided(risk) == 0
        network.mend()

        async def by_the_model():
            ends_s = time.monotonic() + DEADLINE_S
            number = 0
            while not await asyncio.to_thread(decided, risk):
                assert time.monotonic() < ends_s, "the model is not asked again"
                await pay(risk, [payment(f"later-{number}")])
                await settled(risk)
                number += 1
            return number

        later = await by_the_model()
        found = await ids_of(risk)
        assert len(found) == len(set(found)) == sent + later
        said = Counter(each.degraded for each in await decisions(risk))
        assert (said[True], said[False]) == (decided(risk, degraded=True), decided(risk))
        assert said.total() == sent + later
