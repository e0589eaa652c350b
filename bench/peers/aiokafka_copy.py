"""The floor: a bare aiokafka copy, a partition's records at a time, one produce batch a partition.

python -m bench.peers.aiokafka_copy SERVERS GROUP SOURCE TARGET
"""

import asyncio
import sys
import time

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer


async def copy(servers: str, group: str, source: str, target: str) -> None:
    consumer = AIOKafkaConsumer(
        source,
        bootstrap_servers=servers,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_poll_records=2000,
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=servers, enable_idempotence=True, acks="all", max_batch_size=512 * 1024
    )
    await consumer.start()
    await producer.start()
    committed_s = time.monotonic()
    try:
        while True:
            fetched = await consumer.getmany(timeout_ms=500)
            sent = []
            for tp, records in fetched.items():
                builder = producer.create_batch()
                for record in records:
                    if builder.append(key=record.key, value=record.value, timestamp=None) is None:
                        builder.close()
                        sent.append(await producer.send_batch(builder, target, partition=tp.partition))
                        builder = producer.create_batch()
                        builder.append(key=record.key, value=record.value, timestamp=None)
                builder.close()
                sent.append(await producer.send_batch(builder, target, partition=tp.partition))
            if sent:
                await asyncio.gather(*sent)
            if time.monotonic() - committed_s > 1.0:
                await consumer.commit()
                committed_s = time.monotonic()
    finally:
        await producer.stop()
        await consumer.stop()


if __name__ == "__main__":
    uvloop.install()
    asyncio.run(copy(*sys.argv[1:5]))
