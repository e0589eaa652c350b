"""Decisions that were made again, sealed, on a topic of their own; never on one that is live."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from weir.cli.topics import admin
from weir.client.connection import TopicMissing, partitions_of
from weir.errors import ConfigError, WeirError
from weir.kafka.idempotent import IdempotentProducer
from weir.kafka.records import AnyOutput, ColumnOutput
from weir.streams.neighbours import Connections


class Publishing:
    """Publishes to `topic`, which is made when it is missing; use it as a context."""

    def __init__(self, to: Connections, topic: str) -> None:
        """Nothing is sent yet.

        Raises:
            ConfigError: the topic is one that Weir uses for something else.
        """
        live = {
            name
            for field in type(to.topics).model_fields
            if isinstance(name := getattr(to.topics, field), str)
        }
        if topic in live:
            raise ConfigError(f"{topic} is a live topic: a replay publishes to one of its own. Name another.")
        self._to, self.topic = to, topic
        self.partitions = 0
        self._producer = IdempotentProducer(to.kafka, client_id="weir-replay")

    async def __aenter__(self) -> Self:
        try:
            found = await partitions_of(self.topic, self._to.kafka)
        except TopicMissing:
            await self._create()
            found = await partitions_of(self.topic, self._to.kafka)
        self.partitions = len(found)
        await self._producer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.stop()

    async def publish(self, outputs: Sequence[AnyOutput]) -> int:
        """Send the decisions among these; how many, once all replicas in sync have them."""
        ours = [each for each in outputs if isinstance(each, ColumnOutput) and each.topic == self.topic]
        await self._producer.produce(ours)
        return sum(len(each.values.start) for each in ours)

    async def _create(self) -> None:
        topics = self._to.topics
        async with admin(self._to.kafka) as client:
            answer = await client.create_topics(
                [NewTopic(self.topic, topics.partitions, topics.replication_factor)]
            )
        for name, code, *message in answer.topic_errors:
            kind = for_code(code)
            if code and kind is not TopicAlreadyExistsError:
                said = f" ({message[0]})" if message and message[0] else ""
                raise WeirError(f"Kafka does not create {name}: {kind.__name__}{said}. Make it by hand.")
