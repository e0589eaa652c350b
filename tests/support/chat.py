"""A real chat worker with its real neighbours, on topics of the test's own, and customers to write to it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.local.ports import free_port
from services.chat.knowledge.cli import STARTER
from services.chat.knowledge.folder import FolderStore
from services.chat.knowledge.importer import import_folder
from services.chat.knowledge.settings import KnowledgeSettings
from tests.support.keys import KeysProcess
from tests.support.payments import raw_records
from tests.support.servers import KafkaUnderTest
from tests.support.workers import WorkerUnderTest
from weir.cli.topics import CONVERSATIONS_CONFIG, DEAD_LETTER_CONFIG
from weir.client.chat import AgentReply, ChatMessage, HandOver, HandOvers, Replies, Reply
from weir.client.opening import RecordOpener
from weir.client.publisher import Publisher
from weir.codec.registry import open_registry
from weir.config import TopicSettings
from weir.crypto.keyring import Keyring

DEADLINE_S = 30.0


@dataclass
class ChatUnderTest(WorkerUnderTest):
    """A chat worker; knowledge: a folder of versions."""

    service = "chat"
    role = "chat-worker"

    knowledge: Path = Path()
    stream_port: int = field(default_factory=free_port)
    grpc_port: int = field(default_factory=free_port)

    def _make_topics(self) -> TopicSettings:
        make = self.kafka.make_topic
        return TopicSettings(
            labels=make("bank.labels", self.partitions),
            chat_messages=make("bank.chat.messages", self.partitions),
            chat_replies=make("weir.chat.replies", self.partitions),
            chat_handovers=make("weir.chat.handovers", 1),
            chat_audit=make("weir.chat.audit", self.partitions),
            chat_conversations=make("weir.chat.conversations", self.partitions, CONVERSATIONS_CONFIG),
            chat_dlq=make("weir.chat.dlq", 1, DEAD_LETTER_CONFIG),
            card_commands=make("weir.card.commands", 1),
            partitions=self.partitions,
        )

    def _own(self) -> dict[str, Any]:
        self.tables.setdefault("knowledge", {"folder": str(self.knowledge)})
        ports = {"stream_port": self.stream_port, "grpc_port": self.grpc_port}
        return {"group": self.topics.chat_messages, **ports}

    def another(self, directory: Path) -> "ChatUnderTest":
        """A worker of the same group, not yet started."""
        other = replace(
            self,
            directory=directory,
            metrics_port=free_port(),
            stream_port=free_port(),
            grpc_port=free_port(),
            process=None,
            tables=dict(self.tables),
        )
        other.topics = self.topics
        return other

    def publisher(self) -> Publisher:
        return Publisher.connect(kafka=self.kafka_settings, topics=self.topics, registry=self.registry)

    def replies(self, role: str = "analyst", purpose: str = "investigation") -> Replies:
        """Every reply that was committed by now."""
        return Replies.connect(
            purpose=purpose,
            start="beginning",
            follow=False,
            kafka=self.kafka_settings,
            topics=self.topics,
            registry=self.registry,
            keys=self.reader(role),
        )

    def hand_overs(self) -> HandOvers:
        """Every hand-over that was committed by now."""
        return HandOvers.connect(
            purpose="service",
            start="beginning",
            follow=False,
            kafka=self.kafka_settings,
            topics=self.topics,
            registry=self.registry,
            keys=self.reader("agent-desk"),
        )


def message(
    event_id: str, text: str, conversation: str = "talk", customer: str = "anna", **more: Any
) -> ChatMessage:
    return ChatMessage(event_id, conversation, customer, text, datetime.now(UTC), **more)


def agent_reply(event_id: str, text: str, conversation: str = "talk", *, closes: bool = False) -> AgentReply:
    return AgentReply(event_id, conversation, "agent-7", text, datetime.now(UTC), closes)


async def say(chat: ChatUnderTest, *messages: ChatMessage | AgentReply) -> None:
    async with chat.publisher() as bank:
        for each in messages:
            if isinstance(each, ChatMessage):
                await bank.publish_message(each)
            else:
                await bank.publish_agent_reply(each)


async def replied(chat: ChatUnderTest, *event_ids: str) -> dict[str, list[Reply]]:
    """All replies by their event, once each of these has one."""
    ends = time.monotonic() + DEADLINE_S
    while True:
        found: dict[str, list[Reply]] = {}
        async with chat.replies() as replies:
            async for reply in replies:
                found.setdefault(reply.event_id, []).append(reply)
        if set(event_ids) <= found.keys():
            return found
        assert time.monotonic() < ends, (
            f"no reply to {set(event_ids) - found.keys()}:\n{chat.log_text()[-3000:]}"
        )
        await asyncio.sleep(0.1)


async def reply_to(chat: ChatUnderTest, sent: ChatMessage | AgentReply) -> Reply:
    """Say it, and the one reply to it."""
    await say(chat, sent)
    (reply,) = (await replied(chat, sent.event_id))[sent.event_id]
    return reply


async def handed_over(chat: ChatUnderTest) -> list[HandOver]:
    async with chat.hand_overs() as queue:
        return [each async for each in queue]


async def opened(
    chat: ChatUnderTest, topic: str, schema: str, role: str, purpose: str
) -> list[dict[str, Any]]:
    """What stands on a topic, opened by a role."""
    registry = open_registry(chat.registry)
    async with await Keyring.connect(chat.reader(role)) as keyring:
        opener = RecordOpener(schema, keyring, registry, purpose=purpose)
        records = await raw_records(chat.kafka.bootstrap_servers, topic)
        return [(await opener.open(topic, each.value, each.headers)).record for each in records]


async def dead_letters(chat: ChatUnderTest, count: int, *, reason: str | None) -> list[dict[str, Any]]:
    """The dead letters with this reason, or all, once there are so many."""
    ends = time.monotonic() + DEADLINE_S
    while True:
        letters = await opened(chat, chat.topics.chat_dlq, "dead_letter", "analyst", "investigation")
        found = [each for each in letters if reason in (None, each["reason"])]
        if len(found) >= count:
            return found
        assert time.monotonic() < ends, (
            f"{len(found)} dead letters {reason or ''}:\n{chat.log_text()[-3000:]}"
        )
        await asyncio.sleep(0.1)


def starter_knowledge(folder: Path) -> Path:
    """A folder with the starter set in use."""
    settings = KnowledgeSettings(folder=folder)
    asyncio.run(
        import_folder(STARTER, FolderStore(folder), settings, now_ms=time.time_ns() // 1_000_000, use=True)
    )
    return folder


@contextmanager
def chat_under_test(
    directory: Path,
    kafka: KafkaUnderTest,
    keys: KeysProcess,
    knowledge: Path,
    triton_endpoint: str = "127.0.0.1:1",
    **overrides: Any,
) -> Iterator[ChatUnderTest]:
    """A worker, not yet started; it is gone when the block ends."""
    chat = ChatUnderTest(directory, kafka, keys, triton_endpoint, overrides=overrides, knowledge=knowledge)
    try:
        yield chat
    finally:
        chat.kill()
