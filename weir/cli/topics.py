"""`weir topics`: the topics of Weir, how far they are filled and how far each group has read them."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from weir.config import KafkaSettings, TopicSettings
from weir.errors import AccessDenied, MissingPart, NeighbourUnavailable, WeirError
from weir.kafka_options import client_options, closed, connect

_DAY_MS = 86_400_000
# What windows can be built from again: 31 days, labels twice as far. Kafka keeps 7.
_KEPT = {"retention.ms": str(70 * _DAY_MS)}
# The newest row of each account; one that was not touched for so long is in no window any more.
ACCOUNTS_CONFIG = {
    "cleanup.policy": "compact,delete",
    "retention.ms": str(70 * _DAY_MS),
    "segment.ms": str(_DAY_MS),
    "min.cleanable.dirty.ratio": "0.3",
}
# The newest row of each conversation, for as long as a customer may come back to it.
CONVERSATIONS_CONFIG = {
    "cleanup.policy": "compact,delete",
    "retention.ms": str(30 * _DAY_MS),
    "segment.ms": str(_DAY_MS),
    "min.cleanable.dirty.ratio": "0.3",
}
# A dead letter holds all of its original, which may be as large as a broker takes by default, and more.
DEAD_LETTER_CONFIG = {"max.message.bytes": str(2 * 1024 * 1024)}

app = typer.Typer(help="Topics: end offsets, lag; create the missing.", invoke_without_command=True)


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: the offset after its last record, and by group the records not yet committed."""

    partition: int
    end_offset: int
    lag: dict[str, int]


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic; no partitions when it does not exist."""

    name: str
    partitions: list[Partition]

    @property
    def exists(self) -> bool:
        """Whether the cluster has it."""
        return bool(self.partitions)

    @property
    def record_count(self) -> int:
        """The sum of the end offsets: what was ever written, markers of transactions included."""
        return sum(each.end_offset for each in self.partitions)

    def lag(self) -> dict[str, int]:
        """Records that each group has not committed, over all partitions."""
        total: dict[str, int] = {}
        for partition in self.partitions:
            for group, behind in partition.lag.items():
                total[group] = total.get(group, 0) + behind
        return total


def wanted(settings: TopicSettings) -> list[str]:
    """The names of every topic that Weir reads or writes."""
    return [
        settings.transactions,
        settings.labels,
        settings.decisions,
        settings.risk_dlq,
        settings.risk_accounts,
        settings.risk_journal,
        settings.chat_messages,
        settings.chat_replies,
        settings.chat_handovers,
        settings.chat_audit,
        settings.chat_conversations,
        settings.chat_dlq,
        settings.card_commands,
    ]


@asynccontextmanager
async def admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connected admin client.

    Raises:
        NeighbourUnavailable, AccessDenied: as `weir.kafka_options.connect`.
    """
    client = AIOKafkaAdminClient(**client_options(settings))
    await connect(client, settings)
    try:
        yield client
    except KafkaError as error:
        raise _said(error, settings) from error
    finally:
        await closed(client.close(), client._client)


async def describe(settings: KafkaSettings, names: Sequence[str]) -> list[Topic]:
    """The named topics as the cluster has them, with the lag of every group that has committed to one.

    Raises:
        NeighbourUnavailable, AccessDenied: Kafka is away, or denies it.
    """
    async with admin(settings) as client:
        known = {
            each["topic"]: sorted(part["partition"] for part in each["partitions"])
            for each in await client.describe_topics()
        }
        places = [TopicPartition(name, index) for name in names for index in known.get(name, ())]
        committed = {
            group: await client.list_consumer_group_offsets(group)
            for group, _ in await client.list_consumer_groups()
        }
    ends = await _end_offsets(settings, places)
    return [
        Topic(
            name,
            [
                Partition(
                    place.partition,
                    ends[place],
                    {
                        group: max(0, ends[place] - offsets[place].offset)
                        for group, offsets in sorted(committed.items())
                        if place in offsets and offsets[place].offset >= 0
                    },
                )
                for place in places
                if place.topic == name
            ],
        )
        for name in names
    ]


async def create_missing(settings: KafkaSettings, topics: TopicSettings) -> list[str]:
    """Make those topics of `topics` that the cluster lacks; their names.

    Raises:
        NeighbourUnavailable, AccessDenied: Kafka is away, or denies it.
        WeirError: the cluster refuses, with its reason (too few brokers for the replication factor).
    """
    async with admin(settings) as client:
        known = set(await client.list_topics())
        missing = [name for name in wanted(topics) if name not in known]
        if not missing:
            return []
        configs = {
            topics.transactions: _KEPT,
            topics.labels: _KEPT,
            # As far back as the journal, so that a replay has what to compare with.
            topics.decisions: _KEPT,
            topics.risk_dlq: DEAD_LETTER_CONFIG,
            topics.risk_accounts: ACCOUNTS_CONFIG,
            topics.risk_journal: _KEPT,
            topics.chat_conversations: CONVERSATIONS_CONFIG,
            topics.chat_dlq: DEAD_LETTER_CONFIG,
        }
        answer = await client.create_topics(
            [
                NewTopic(
                    name,
                    topics.partitions,
                    topics.replication_factor,
                    topic_configs=configs.get(name, {}),
                )
                for name in missing
            ]
        )
    for name, code, *message in answer.topic_errors:
        kind = for_code(code)
        # Another worker may have made it in the meantime.
        if code and kind is not TopicAlreadyExistsError:
            said = f" ({message[0]})" if message and message[0] else ""
            raise WeirError(f"Kafka does not create {name}: {kind.__name__}{said}. Correct [topics].")
    return missing


async def _end_offsets(settings: KafkaSettings, places: list[TopicPartition]) -> dict[TopicPartition, int]:
    if not places:
        return {}
    consumer = AIOKafkaConsumer(**client_options(settings))
    await connect(consumer, settings)
    try:
        return dict(await consumer.end_offsets(places))
    except KafkaError as error:
        raise _said(error, settings) from error
    finally:
        await closed(consumer.stop(), consumer._client)


def _said(error: KafkaError, settings: KafkaSettings) -> WeirError:
    name = type(error).__name__
    if "Authorization" in name:
        return AccessDenied(
            f"Kafka at {settings.bootstrap_servers} denies it: {name}. Ask for the right ACL."
        )
    return NeighbourUnavailable(
        f"Kafka at {settings.bootstrap_servers}: {name}. Try again, or `weir doctor kafka`."
    )


@app.callback()
def show(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Topics: end offsets, lag; create the missing."""
    if ctx.invoked_subcommand is not None:
        return
    found = asyncio.run(describe(KafkaSettings.load(), wanted(TopicSettings.load())))
    if as_json:
        typer.echo(
            json.dumps(
                [{"name": each.name, "exists": each.exists, **asdict(each)} for each in found], indent=2
            )
        )
    else:
        _print_table(found)
    missing = [each.name for each in found if not each.exists]
    if missing:
        raise MissingPart(f"no topic {', '.join(missing)}. Make it with `weir topics create`.")


@app.command()
def create() -> None:
    """Create the topics that the settings name and that are missing."""
    settings = TopicSettings.load()
    made = asyncio.run(create_missing(KafkaSettings.load(), settings))
    for name in made:
        typer.echo(f"created {name} with {settings.partitions} partitions")
    if not made:
        typer.echo("nothing to create: all topics are there")


def _print_table(topics: list[Topic]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("topic", box=None, pad_edge=False)
    table.add_column("partitions", justify="right")
    table.add_column("end offsets", justify="right")
    table.add_column("lag by group")
    for topic in topics:
        lag = ", ".join(f"{group} {behind:,}" for group, behind in topic.lag().items()) or "-"
        count = str(len(topic.partitions)) if topic.exists else "missing"
        table.add_row(topic.name, count, f"{topic.record_count:,}" if topic.exists else "-", lag)
    Console().print(table)
