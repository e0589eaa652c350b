"""One worker's parts, opened in order and closed in reverse: keys, schemas, knowledge, model, delivery."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Literal, cast

from aiohttp import web

from services.chat.answer.answerer import Answerer
from services.chat.answer.prompt import Prompts
from services.chat.conversation import Conversations
from services.chat.domain import Encoder, Generator
from services.chat.guards import Guards
from services.chat.knowledge.encoding import opened
from services.chat.knowledge.live import LiveRetriever
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.stores import store_of
from services.chat.knowledge.tokens import stem
from services.chat.masking import Masker
from services.chat.metrics import ChatMetrics
from services.chat.processor import ChatProcessor
from services.chat.reading import MessageReading
from services.chat.restore import Restoring
from services.chat.settings import ChatSettings
from services.chat.streaming.live import LiveAnswers
from services.chat.streaming.rpc import AnswersServicer, serve_answers
from services.chat.streaming.sse import application
from services.chat.tools.asked import ToolWords
from services.chat.tools.bank import HttpBank
from services.chat.tools.tools import Tools
from services.chat.turn.respond import Limits, Responder
from services.chat.turn.texts import Texts
from services.chat.understanding import load_words
from services.chat.understanding.intents import OUTPUT as INTENT_OUTPUT
from services.chat.understanding.intents import VERSION as INTENT_VERSION
from services.chat.understanding.intents import About, Intents
from services.chat.writing import Outlets, ReplyWriting, Sealed
from weir.clock import now_ms
from weir.codec.registry import open_registry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.config import TopicSettings, TritonSettings
from weir.crypto.customer import CustomerKeys
from weir.crypto.keyring import Keyring
from weir.errors import ConfigError
from weir.inference.client import ModelClient
from weir.inference.generation import Generation
from weir.obs.http import PortTaken
from weir.obs.metrics import Metrics, ModelMetrics
from weir.obs.stream_metrics import StreamMetrics
from weir.streams.dead_letter import DeadLetterWriter
from weir.streams.engine import Engine
from weir.streams.folder import own_folder
from weir.streams.history import partition_counts
from weir.streams.neighbours import KEYS_DEADLINE_S, Connections, Identity, schemas_at_hand
from weir.streams.source import BatchSource
from weir.streams.transactions import GroupOffsets, exactly_once

# What the service reads and writes.
SCHEMAS = (
    "chat_message",
    "agent_reply",
    "chat_reply",
    "handover",
    "card_command",
    "chat_audit",
    "label",
    "dead_letter",
)
# Bytes of UTF-8 a token, at least, in the vocabularies of the models that are served: a bound, not a count.
_BYTES_A_TOKEN = 3
_CANARY_BYTES = 8
# A customer waits; without an intent he is answered all the same.
_INTENT_DEADLINE_S = 1.0


@dataclass(frozen=True)
class Worker:
    """What the application drives."""

    engine: Engine
    processor: ChatProcessor
    knowledge: LiveRetriever
    live: LiveAnswers


@asynccontextmanager
async def open_worker(
    settings: ChatSettings,
    to: Connections,
    identity: Identity,
    metrics: Metrics,
    source: BatchSource,
    on_fatal: Callable[[BaseException], None],
) -> AsyncIterator[Worker]:
    """A worker whose neighbours answered; Triton may be away, for then passages answer.

    Raises:
        WeirError: the first part that is missing, denied or wrong.
    """
    texts, tool_words = Texts.load(settings.texts), ToolWords.load(settings.tool_words)
    words, guards = load_words(settings.words), Guards.load(settings.guard_rules)
    topics, client_id = to.topics, identity.name
    async with AsyncExitStack() as stack:
        stack.enter_context(own_folder(settings.data_dir))
        counts = await _partition_counts(to, client_id)
        registry = open_registry(to.registry)
        stack.push_async_callback(registry.close)
        ids = {name: await registry.id_of(SUBJECTS[name], load_schema(name)) for name in SCHEMAS}
        keyring = await stack.enter_async_context(await Keyring.connect(to.keys))
        pseudonymizer = await keyring.pseudonymizer(settings.tenant, deadline_s=KEYS_DEADLINE_S)
        customers = CustomerKeys(pseudonymizer)

        async def sealed(topic: str, schema: str) -> Sealed:
            sealer = await keyring.sealer(topic, deadline_s=KEYS_DEADLINE_S)
            return Sealed(topic, counts[topic], schema, ids[schema], sealer)

        dlq_sealer = await keyring.sealer(topics.chat_dlq, deadline_s=KEYS_DEADLINE_S)
        writing = ReplyWriting(
            settings.tenant,
            topics,
            Outlets(
                replies=await sealed(topics.chat_replies, "chat_reply"),
                handovers=await sealed(topics.chat_handovers, "handover"),
                commands=await sealed(topics.card_commands, "card_command"),
                audit=await sealed(topics.chat_audit, "chat_audit"),
                labels_partitions=counts[topics.labels],
                label_schema_id=ids["label"],
                dlq_partitions=counts[topics.chat_dlq],
            ),
            await keyring.sealer(topics.chat_conversations, deadline_s=KEYS_DEADLINE_S),
            dlq_sealer,
            DeadLetterWriter(dlq_sealer, ids["dead_letter"]),
            customers=customers,
            model=settings.model,
            now_ms=now_ms,
        )
        knowledge_settings = KnowledgeSettings.load()
        encoders = await stack.enter_async_context(opened(knowledge_settings, to.triton))
        encoder = None if encoders is None else encoders.asked
        store = store_of(knowledge_settings)
        stack.callback(store.close)
        knowledge = LiveRetriever(
            store,
            encoder,
            encoder_name=knowledge_settings.encoder or None,
            relevance_min=knowledge_settings.relevance_min,
        )
        bank = None
        if settings.bank_url is not None:
            bank = await stack.enter_async_context(
                HttpBank(settings.bank_url, deadline_s=settings.bank_deadline_s)
            )
        responder = Responder(
            Masker(public_numbers=settings.public_numbers),
            words,
            guards,
            tool_words,
            Tools(texts, bank),
            knowledge,
            await answerer_of(settings, to.triton, stack),
            texts,
            intents=await intents_of(
                settings,
                to.triton,
                encoder,
                stack,
                metrics.model(settings.intent_model) if settings.intent_model else None,
            ),
            limits=Limits(settings.text_chars_max, settings.messages_per_minute_max),
            deadline_s=settings.turn_deadline_s,
            now_ms=now_ms,
        )
        live = LiveAnswers(time.monotonic, watchers_max=settings.watchers_max)
        await _serve_answers(
            settings, live, lambda customer: pseudonymizer.of(customer.encode()).decode(), stack
        )
        stream_metrics, chat_metrics = StreamMetrics("chat", metrics.registry), ChatMetrics(metrics)
        conversations = Conversations(settings.conversations_max)
        chat_metrics.watch(lambda: len(conversations), lambda: live.watcher_count)
        processor = ChatProcessor(
            conversations,
            MessageReading(registry.known, now_ms),
            responder,
            writing,
            Restoring(
                to.kafka,
                topics.chat_conversations,
                keyring,
                customers,
                client_id=client_id,
                metrics=stream_metrics,
            ),
            live,
            pseudonym=pseudonymizer.of,
            schemas=lambda values: schemas_at_hand(registry, values),
            turns_max=settings.turns_max,
            metrics=chat_metrics,
            stream_metrics=stream_metrics,
            now_ms=now_ms,
        )
        engine = Engine(
            source,
            processor,
            exactly_once(
                to.kafka,
                settings.group,
                identity.name,
                identity.owner,
                source,
                GroupOffsets(to.kafka, settings.group, identity.name),
                timeout_s=settings.transaction_timeout_s,
                rows_max=settings.transaction_rows_max,
                observe=stream_metrics.committed,
            ),
            rows_in_flight_max=settings.rows_in_flight_max,
            group_rows_max=settings.batch_rows_max,
            # An answer takes longer than a fetch's other partitions: nothing is gained by waiting for them.
            linger_s=0.0,
            drain_deadline_s=settings.drain_deadline_s,
            on_fatal=on_fatal,
        )
        stream_metrics.watch_in_flight(lambda: engine.rows_in_flight)
        stack.push_async_callback(engine.shutdown)
        yield Worker(engine, processor, knowledge, live)


async def intents_of(
    settings: ChatSettings,
    triton: TritonSettings,
    encoder: Encoder | None,
    stack: AsyncExitStack,
    metrics: ModelMetrics | None = None,
) -> Intents | None:
    """What asks for intents, where the settings name a head; it needs the encoder.

    Raises:
        ConfigError: a head without an encoder. MissingPart, IntegrityError: its description.
    """
    if not settings.intent_model:
        return None
    if encoder is None:
        raise ConfigError("[chat] intent_model needs [knowledge] encoder. Set it, or leave both empty.")
    head = ModelClient(
        triton,
        settings.intent_model,
        INTENT_VERSION,
        outputs=[INTENT_OUTPUT],
        rows_max=64,
        deadline_s=_INTENT_DEADLINE_S,
        metrics=metrics,
    )
    return Intents(encoder, await stack.enter_async_context(head), About.read(settings.intent_repository))


async def answerer_of(
    settings: ChatSettings,
    triton: TritonSettings,
    stack: AsyncExitStack,
    watched: Callable[[Generator], Generator] = lambda generator: generator,
) -> Answerer:
    """By passages alone, or with the language model that the settings name; `stack` disconnects it.

    watched: puts what takes its time around the model.
    """
    if not settings.generate:
        return Answerer(stem=stem)
    canary = secrets.token_hex(_CANARY_BYTES)
    generation = await stack.enter_async_context(Generation(triton, settings.model))
    prompts = Prompts(
        cast(Literal["chatml", "llama3", "deepseek"], settings.template),
        canary,
        lambda text: len(text.encode()) // _BYTES_A_TOKEN,
        tokens_max=settings.prompt_tokens_max,
    )
    return Answerer(watched(generation), prompts, canary=canary, stem=stem)


async def _serve_answers(
    settings: ChatSettings, live: LiveAnswers, pseudonym: Callable[[str], str], stack: AsyncExitStack
) -> None:
    """Answers as they are written, for the bank's gateway: as server-sent events, and as a gRPC stream.

    Raises:
        PortTaken: another process listens there.
    """
    # What customers see is whole already: their own data was put back when it was shown.
    runner = web.AppRunner(
        application(live, pseudonym, lambda _, text: text), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    try:
        await web.TCPSite(runner, settings.stream_host, settings.stream_port).start()
    except OSError as error:
        raise PortTaken(settings.stream_host, settings.stream_port) from error
    try:
        server = await serve_answers(
            AnswersServicer(live, pseudonym), settings.stream_host, settings.grpc_port
        )
    except OSError as error:
        raise PortTaken(settings.stream_host, settings.grpc_port) from error
    stack.push_async_callback(server.stop, 1.0)


async def _partition_counts(to: Connections, client_id: str) -> dict[str, int]:
    """How many partitions each topic has.

    Raises:
        ConfigError: the state's topic does not have as many as the input.
    """
    topics: TopicSettings = to.topics
    messages, state = topics.chat_messages, topics.chat_conversations
    names = [messages, state, topics.chat_replies, topics.chat_handovers, topics.chat_audit, topics.chat_dlq]
    counts = await partition_counts(to.kafka, [*names, topics.card_commands, topics.labels], client_id)
    if counts[state] != counts[messages]:
        raise ConfigError(
            f"Topic {state} has {counts[state]} partitions and {messages} has {counts[messages]}: "
            f"they must have the same number. Make {state} anew."
        )
    return counts
