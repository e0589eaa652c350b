"""The second floor: a bare confluent-kafka (librdkafka) copy, a list of records at a time, same partition.

python -m bench.peers.confluent_copy SERVERS GROUP SOURCE TARGET
"""

import sys
import time

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

RECORDS_MAX = 500


def copy(servers: str, group: str, source: str, target: str) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "queued.min.messages": 200_000,
            # A full queue makes the fetcher wait for so long: with the default of a second it runs dry.
            "fetch.queue.backoff.ms": 5,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "enable.idempotence": True,
            "linger.ms": 5,
            "batch.size": 512 * 1024,
            "queue.buffering.max.messages": 200_000,
            "compression.type": "none",
        }
    )
    failed: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failed.append(error)

    consumer.subscribe([source])
    committed_s = time.monotonic()
    try:
        while True:
            for message in consumer.consume(RECORDS_MAX, 0.1):
                if message.error():
                    raise KafkaException(message.error())
                partition = message.partition()
                while True:
                    try:
                        producer.produce(
                            target, message.value(), message.key(), partition, on_delivery=delivered
                        )
                        break
                    except BufferError:
                        producer.poll(0.01)
            producer.poll(0)
            if failed:
                raise KafkaException(failed[0])
            if time.monotonic() - committed_s > 1.0:
                producer.flush()
                consumer.commit(asynchronous=True)
                committed_s = time.monotonic()
    finally:
        producer.flush(10)
        consumer.close()


if __name__ == "__main__":
    copy(*sys.argv[1:5])
