"""`python -m bench.commits`: what a transaction takes by each client, and what a record costs to send.

One broker of one node, one machine, one run. A transaction is 100 records of 300 bytes over 4 partitions and
a consumer group's offset. That decides which client commits.
"""

import argparse
import asyncio
import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from infra.local.kafka import KafkaServer
from weir.columns import ByteColumn
from weir.config import KafkaSettings
from weir.kafka.idempotent import IdempotentProducer
from weir.kafka.producer import TransactionalProducer
from weir.kafka.protocol import GroupMember
from weir.kafka.records import AnyOutput, ColumnOutput
from weir.memory import keep_freed_memory
from weir.streams.output import Output

TOPIC, SOURCE, GROUP = "out", "in", "group"
PARTITIONS, ROWS, VALUE_BYTES = 4, 100, 300
SEND_ROWS = 2000
WARM = 0.2  # of the transactions come first, and are not counted

Transact = Callable[[int], Awaitable[None]]


def outputs(rows: int) -> list[Output]:
    """Random bytes over the partitions, each record with a key and a header, as a sealed decision has."""
    each = rows // PARTITIONS
    return [
        Output(
            TOPIC,
            partition,
            [os.urandom(16) for _ in range(each)],
            [os.urandom(VALUE_BYTES) for _ in range(each)],
            [[("weir-envelope", os.urandom(40))] for _ in range(each)],
            int(time.time() * 1000),
        )
        for partition in range(PARTITIONS)
    ]


async def send_batches(producer: AIOKafkaProducer, outs: list[Output]) -> None:
    """What Weir did before: aiokafka's builder, a record at a time, and whole batches sent."""
    sent = []
    for out in outs:
        builder = producer.create_batch()
        for row, value in enumerate(out.values):
            builder.append(
                key=out.keys[row], value=value, timestamp=out.timestamps_ms, headers=out.headers[row]
            )
        builder.close()
        sent.append(await producer.send_batch(builder, out.topic, partition=out.partition))
    await asyncio.gather(*sent)


@asynccontextmanager
async def by_aiokafka(servers: str) -> AsyncIterator[Transact]:
    """aiokafka, with the smallest back-off that helps."""
    producer = AIOKafkaProducer(
        bootstrap_servers=servers,
        transactional_id="aiokafka",
        retry_backoff_ms=5,
        max_batch_size=512 * 1024,
    )
    await producer.start()
    outs = outputs(ROWS)

    async def transact(turn: int) -> None:
        await producer.begin_transaction()
        await send_batches(producer, outs)
        await producer.send_offsets_to_transaction({TopicPartition(SOURCE, 0): turn}, GROUP)
        await producer.commit_transaction()

    try:
        yield transact
    finally:
        await producer.stop()


@asynccontextmanager
async def by_librdkafka(servers: str) -> AsyncIterator[Transact]:
    """confluent-kafka; its calls block, so the loop stands still meanwhile."""
    import confluent_kafka

    producer = confluent_kafka.Producer(
        {"bootstrap.servers": servers, "transactional.id": "librdkafka", "linger.ms": 0}
    )
    consumer = confluent_kafka.Consumer({"bootstrap.servers": servers, "group.id": GROUP})
    member = consumer.consumer_group_metadata()
    producer.init_transactions(30)
    outs = outputs(ROWS)

    async def transact(turn: int) -> None:
        producer.begin_transaction()
        for out in outs:
            for row, value in enumerate(out.values):
                producer.produce(
                    out.topic, value, out.keys[row], out.partition, headers=list(out.headers[row])
                )
        producer.send_offsets_to_transaction([confluent_kafka.TopicPartition(SOURCE, 0, turn)], member, 30)
        producer.commit_transaction(30)

    try:
        yield transact
    finally:
        consumer.close()


@asynccontextmanager
async def ours(servers: str, name: str, version: int) -> AsyncIterator[TransactionalProducer]:
    """One of our producers, started."""
    producer = TransactionalProducer(
        KafkaSettings.model_validate({"bootstrap_servers": servers}),
        transactional_id=name,
        client_id="bench",
        version_max=version,
    )
    await producer.start()
    if producer.version != version:
        raise SystemExit(f"the broker speaks transaction version {producer.version}, not {version}")
    try:
        yield producer
    finally:
        await producer.stop()


async def fill(producer: TransactionalProducer, outs: list[Output], turn: int) -> None:
    """Records and offset, at once."""
    await asyncio.gather(
        producer.produce(outs), producer.send_offsets(GroupMember(GROUP, -1, ""), {(SOURCE, 0): (turn, "")})
    )


@asynccontextmanager
async def by_ours(servers: str, version: int) -> AsyncIterator[Transact]:
    """Our own, back to back."""
    outs = outputs(ROWS)
    async with ours(servers, f"one-{version}", version) as producer:

        async def transact(turn: int) -> None:
            await fill(producer, outs, turn)
            await producer.commit()

        yield transact


@asynccontextmanager
async def by_ours_in_turn(servers: str) -> AsyncIterator[Transact]:
    """Two of our own: one is filled while the other ends. A transaction's time is that from end to end."""
    outs = outputs(ROWS)
    ending: list[asyncio.Task[None]] = []
    async with ours(servers, "even", 2) as even, ours(servers, "odd", 2) as odd:

        async def transact(turn: int) -> None:
            producer = (even, odd)[turn % 2]
            await fill(producer, outs, turn)
            if ending:
                await ending.pop()
            ending.append(asyncio.ensure_future(producer.commit()))

        yield transact
        await asyncio.gather(*ending)


async def times_ms(transact: Transact, count: int) -> NDArray[np.float64]:
    """How long each of `count` transactions takes."""
    ms = []
    for turn in range(count):
        began_s = time.perf_counter()
        await transact(turn)
        ms.append((time.perf_counter() - began_s) * 1000)
    return np.array(ms[int(count * WARM) :])


async def cpu_us(send: Callable[[], Awaitable[None]], count: int) -> float:
    """This process's CPU a record."""
    for _ in range(5):
        await send()
    began_s = time.process_time()
    for _ in range(count):
        await send()
    return (time.process_time() - began_s) / count / SEND_ROWS * 1e6


async def send_costs(servers: str, count: int) -> dict[str, float]:
    """Microseconds of CPU to build and send a record, acknowledged by all replicas."""
    outs = outputs(SEND_ROWS)
    columns: list[AnyOutput] = [
        ColumnOutput(
            out.topic,
            out.partition,
            ByteColumn.from_list(out.keys),
            ByteColumn.from_list(out.values),
            int(time.time() * 1000),
            [("weir-envelope", bytes(40))],
        )
        for out in outs
    ]
    theirs = AIOKafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, acks="all", max_batch_size=512 * 1024
    )
    own = IdempotentProducer(KafkaSettings.model_validate({"bootstrap_servers": servers}), client_id="bench")
    await theirs.start()
    await own.start()
    try:
        return {
            "aiokafka, create_batch and send_batch": await cpu_us(lambda: send_batches(theirs, outs), count),
            "weir.kafka, lists with a header each": await cpu_us(lambda: own.produce(outs), count),
            "weir.kafka, columns": await cpu_us(lambda: own.produce(columns), count),
        }
    finally:
        await theirs.stop()
        await own.stop()


async def run(servers: str, count: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    """Every contender, one after the other."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1), NewTopic(SOURCE, PARTITIONS, 1)])
    await admin.close()
    contenders = {
        "aiokafka, retry_backoff_ms 5": by_aiokafka(servers),
        "confluent-kafka": by_librdkafka(servers),
        "weir.kafka, transaction version 1": by_ours(servers, 1),
        "weir.kafka, transaction version 2": by_ours(servers, 2),
        "weir.kafka, version 2, two in turn": by_ours_in_turn(servers),
    }
    ms = {}
    for name, contender in contenders.items():
        async with contender as transact:
            ms[name] = await times_ms(transact, count)
    return ms, await send_costs(servers, count)


def main() -> None:
    """Run it and print."""
    parser = argparse.ArgumentParser(description="What a transaction and a record cost, by each client.")
    parser.add_argument("--transactions", type=int, default=300, help="of each client")
    parser.add_argument(
        "--broker", action="append", default=[], metavar="NAME=VALUE", help="a setting of the broker"
    )
    parser.add_argument(
        "--give-back", action="store_true", help="leave the C library to give freed memory back at once"
    )
    arguments = parser.parse_args()
    if not arguments.give_back:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        properties = dict(each.split("=", 1) for each in arguments.broker)
        kafka = KafkaServer(Path(folder) / "data", Path(folder) / "kafka.log", properties=properties)
        kafka.start()
        try:
            kafka.wait_ready()
            ms, cpu = asyncio.run(run(kafka.bootstrap_servers, arguments.transactions))
        finally:
            kafka.stop()
    console = Console()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    console.print(f"{os.cpu_count()} cores, load {load}, Python {platform.python_version()}")
    table = Table("a transaction of 100 records and offsets", "p50 ms", "p99 ms", "a second")
    for name, each in ms.items():
        p50, p99 = np.percentile(each, [50, 99])
        table.add_row(name, f"{p50:.1f}", f"{p99:.1f}", f"{1000 / each.mean():.0f}")
    console.print(table)
    table = Table(f"build and send {SEND_ROWS} records of {VALUE_BYTES} bytes", "CPU us a record")
    for name, us in cpu.items():
        table.add_row(name, f"{us:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
