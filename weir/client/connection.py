"""Reaching a topic: it is looked for before a client subscribes, so that a wrong name is one line at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

from weir.config import KafkaSettings
from weir.errors import AccessDenied, MissingPart, NeighbourUnavailable, WeirError
from weir.kafka_options import client_options, closed, connect, unavailable

_DENIALS = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)


class TopicMissing(MissingPart):
    """The brokers answer, and have no such topic."""

    def __init__(self, topic: str, settings: KafkaSettings) -> None:
        self.topic = topic
        super().__init__(
            f"Kafka at {settings.bootstrap_servers} has no topic {topic}. "
            "Create it (`weir topics create`), or correct its name in [topics]."
        )


class TopicDenied(AccessDenied):
    """The brokers answer, and this client may not use the topic."""

    def __init__(self, topic: str, settings: KafkaSettings) -> None:
        self.topic = topic
        super().__init__(
            f"Kafka at {settings.bootstrap_servers} does not let {settings.sasl_username or 'this client'} "
            f"use topic {topic}. Ask for the permission, or correct [kafka]."
        )


async def partitions_of(topic: str, settings: KafkaSettings) -> tuple[int, ...]:
    """The topic's partition numbers, in order; it is not created when it is missing.

    Raises:
        TopicMissing, TopicDenied: the brokers say so.
        NeighbourUnavailable, AccessDenied, ConfigError: no broker takes this client.
    """
    admin = AIOKafkaAdminClient(**client_options(settings))
    await connect(admin, settings)
    try:
        with one_line(settings, topic):
            # aiokafka's public call lets the broker create the topic that it asks about.
            answer = await admin._send_request(MetadataRequest([topic], allow_auto_topic_creation=False))
            (found,) = answer.to_object()["topics"]
            if found["error_code"]:
                raise for_code(found["error_code"])(topic)
    finally:
        await closed(admin.close(), admin._client)
    return tuple(sorted(partition["partition"] for partition in found["partitions"]))


async def stop(consumer: AIOKafkaConsumer) -> None:
    """Stops a consumer that was started, even a moment ago; a cancellation comes out once it has stopped."""
    await closed(_stop(consumer), consumer._client)


async def _stop(consumer: AIOKafkaConsumer) -> None:
    # Of a task that has not begun, aiokafka would let the cancellation out as if it were the caller's.
    await asyncio.sleep(0)
    await consumer.stop()


@contextmanager
def one_line(settings: KafkaSettings, topic: str) -> Iterator[None]:
    """Inside, what aiokafka raises becomes one of our errors, which says what to do.

    Raises:
        TopicMissing, AccessDenied: trying again does not help.
        NeighbourUnavailable: trying again may help.
    """
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise as_weir(error, settings, topic) from error


def as_weir(error: BaseException, settings: KafkaSettings, topic: str) -> WeirError:
    """The one line for what a Kafka client raised while it used `topic`."""
    if isinstance(error, UnknownTopicOrPartitionError):
        return TopicMissing(topic, settings)
    if isinstance(error, GroupAuthorizationFailedError):
        group = str(error.args[0]) if error.args else "of that name"
        return AccessDenied(
            f"Kafka at {settings.bootstrap_servers} does not let {settings.sasl_username or 'this client'} "
            f"use consumer group {group} on {topic}. Take a group that it may use, or ask for the permission."
        )
    if isinstance(error, _DENIALS):
        return TopicDenied(topic, settings)
    if isinstance(error, KafkaError) and not error.retriable:
        return NeighbourUnavailable(
            f"Kafka at {settings.bootstrap_servers} failed on {topic} ({type(error).__name__}). "
            "See the broker's log, and try again."
        )
    return unavailable(settings, error)
