"""One worker's parts, opened in order and closed in reverse: keys, schemas, model, windows, delivery."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
from prometheus_client import CollectorRegistry, Counter

from services.risk.decide import Scores
from services.risk.pipeline import Pipeline
from services.risk.policy import PolicyFile
from services.risk.reading import PaymentReading
from services.risk.reasons import ReasonTable
from services.risk.scoring import OUTPUTS, ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from services.risk.validate import Rates
from services.risk.writing import DecisionWriting, Names, Scored
from weir.codec.avro import RowCodec
from weir.codec.columns import LabelReader, TransactionReader
from weir.codec.decision import DecisionWriter
from weir.codec.framing import frame
from weir.codec.registry import SchemaRegistry, fetch_unknown, open_registry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.config import (
    KafkaSettings,
    KeyServiceSettings,
    RegistrySettings,
    TopicSettings,
    TritonSettings,
)
from weir.crypto.keyring import Keyring
from weir.errors import NeighbourUnavailable
from weir.features.payments import DEFAULT, Labels, PaymentState
from weir.inference.client import ModelClient
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.state.hashing import keyed_hash
from weir.streams import AtLeastOnce, BatchGroup, RecordBatch
from weir.streams.dead_letter import DeadLetterWriter
from weir.streams.history import partition_counts

log = get_logger("weir.risk")

CLIENT_ID = "weir-risk"
# How long the start waits for the key service before it says so and ends; the supervisor tries again.
KEYS_DEADLINE_S = 30.0
# The application has drained before it closes its parts: what is left waits for a neighbour that is away.
CLOSE_DEADLINE_S = 1.0


@dataclass(frozen=True)
class Connections:
    """How the neighbours are reached."""

    kafka: KafkaSettings
    topics: TopicSettings
    triton: TritonSettings
    keys: KeyServiceSettings
    registry: RegistrySettings

    @classmethod
    def load(cls) -> "Connections":
        """From the settings file and the environment.

        Raises:
            ConfigError: what is wrong, and where.
        """
        return cls(
            KafkaSettings.load(),
            TopicSettings.load(),
            TritonSettings.load(),
            KeyServiceSettings.load(),
            RegistrySettings.load(),
        )


@dataclass(frozen=True)
class Worker:
    """What the application drives."""

    pipeline: Pipeline
    reading: PaymentReading
    state: PaymentState
    policy: PolicyFile
    model: ModelClient
    labels: "LabelReading"
    registry: SchemaRegistry


class LabelReading:
    """Lets labels enter the windows; what is not a label is counted and left out."""

    def __init__(
        self,
        reader: LabelReader,
        schema_id: int,
        state: PaymentState,
        hash_key: bytes,
        registry: CollectorRegistry,
    ) -> None:
        self._reader, self._schema_id, self._state, self._hash_key = reader, schema_id, state, hash_key
        labels = Counter(
            "weir_labels_total", "Labels, learnt or refused.", ["service", "result"], registry=registry
        )
        self._learnt, self._refused = labels.labels("risk", "learnt"), labels.labels("risk", "refused")

    def __call__(self, values: list[bytes | None]) -> None:
        """Learn from one batch."""
        columns, poison = self._reader.read(values, self._schema_id)
        # A time outside the clock's range would break the windows' rings.
        event_ms, reported_ms = columns.ints["event_time"], columns.ints["reported_time"]
        sound = (event_ms >= 0) & (reported_ms >= event_ms) & (reported_ms < _NEVER_MS)
        sound &= (columns.strings["account_id"].length > 0) & (columns.strings["terminal_id"].length > 0)
        refused = len(poison) + int(np.count_nonzero(~sound))
        if refused:
            self._refused.inc(refused)
            log.warning("labels_refused", row_count=refused)
        columns = columns.take(np.flatnonzero(sound))
        self._state.learn(
            Labels(
                account=keyed_hash(columns.strings["account_id"], self._hash_key),
                terminal=keyed_hash(columns.strings["terminal_id"], self._hash_key),
                event_ms=columns.ints["event_time"],
                reported_ms=columns.ints["reported_time"],
                is_fraud=columns.ints["is_fraud"].astype(np.bool_),
            )
        )
        self._learnt.inc(columns.row_count)


_NEVER_MS = 7_258_118_400_000


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_worker(
    settings: RiskSettings, to: Connections, metrics: Metrics, on_failure: Callable[[BaseException], None]
) -> AsyncIterator[Worker]:
    """A worker whose neighbours answered; Triton may be away, for then rules decide.

    Raises:
        WeirError: the first part that is missing, denied or wrong.
    """
    model = ServedModel.read(settings.model_repository, settings.model, settings.model_version)
    reasons = ReasonTable.load(settings.reasons, model.features)
    policy = PolicyFile(settings.policy, model.features, metrics.policy_reloaded)
    state = PaymentState(accounts_max=settings.accounts_max, terminals_max=settings.terminals_max)
    topics = to.topics
    async with AsyncExitStack() as stack:
        counts = await partition_counts(
            to.kafka, [topics.transactions, topics.labels, topics.decisions, topics.risk_dlq], CLIENT_ID
        )
        registry = open_registry(to.registry)
        stack.push_async_callback(registry.close)
        ids = {name: await registry.id_of(subject, load_schema(name)) for name, subject in SUBJECTS.items()}
        keyring = await stack.enter_async_context(await Keyring.connect(to.keys))
        pseudonymizer = await keyring.pseudonymizer(settings.tenant, deadline_s=KEYS_DEADLINE_S)
        sealer = await keyring.sealer(topics.decisions, deadline_s=KEYS_DEADLINE_S)
        dlq_sealer = await keyring.sealer(topics.risk_dlq, deadline_s=KEYS_DEADLINE_S)
        client = await stack.enter_async_context(
            ModelClient(
                to.triton,
                model.ref.name,
                model.ref.version,
                outputs=OUTPUTS,
                rows_max=settings.model_rows_max,
                deadline_s=settings.score_deadline_ms / 1000,
                metrics=metrics.model(model.ref.name),
            )
        )
        delivery = AtLeastOnce(to.kafka, client_id=CLIENT_ID)
        stack.push_async_callback(delivery.stop)
        await delivery.start()
        names = Names(
            settings.tenant,
            DEFAULT.id,
            topics.decisions,
            counts[topics.decisions],
            topics.risk_dlq,
            counts[topics.risk_dlq],
            ids["decision"],
        )

        def halves(state: PaymentState, metrics: Metrics) -> tuple[PaymentReading, DecisionWriting]:
            return PaymentReading(
                TransactionReader(registry.known),
                ids["transaction"],
                state,
                rates=Rates.of(settings.rates),
                hash_key=pseudonymizer.hash_key,
                policy=lambda: policy.policy,
                metrics=metrics,
                now_ms=now_ms,
            ), DecisionWriting(
                names,
                DecisionWriter(load_schema("decision"), ids["decision"], reasons.texts),
                DeadLetterWriter(dlq_sealer, ids["dead_letter"]),
                policy,
                sealer=sealer,
                dlq_sealer=dlq_sealer,
                pseudonymizer=pseudonymizer,
                metrics=metrics,
                now_ms=now_ms,
            )

        # Compiled loops are loaded by their first call: let that be on a payment of nobody.
        scrap = halves(
            PaymentState(accounts_max=1000, terminals_max=1000), Metrics("risk", CollectorRegistry())
        )
        await warm(*scrap, model, ids["transaction"], next(iter(settings.rates)), now_ms())
        reading, writing = halves(state, metrics)
        pipeline = Pipeline(
            prepare=lambda group: schemas_at_hand(registry, group.values),
            read=reading,
            score=ModelScoring(client, model, metrics),
            write=writing,
            delivery=delivery,
            metrics=metrics,
            rows_in_flight_max=settings.rows_in_flight_max,
            on_failure=on_failure,
            now_ms=now_ms,
        )
        stack.push_async_callback(pipeline.close, CLOSE_DEADLINE_S)
        labels = LabelReading(
            LabelReader(registry.known), ids["label"], state, pseudonymizer.hash_key, metrics.registry
        )
        yield Worker(pipeline, reading, state, policy, client, labels, registry)


async def schemas_at_hand(registry: SchemaRegistry, values: Sequence[bytes | None]) -> None:
    """Return when the schemas that the records name are known; waits while a remote registry is away."""
    wait_s, said = 0.2, False
    while True:
        try:
            return await fetch_unknown(registry, values)
        except NeighbourUnavailable as error:
            if not said:
                log.warning("registry_away", error=str(error))
                said = True
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, 5.0)


async def warm(
    reading: PaymentReading,
    writing: DecisionWriting,
    model: ServedModel,
    schema_id: int,
    currency: str,
    at_ms: int,
) -> None:
    """Take one made-up payment through both halves; nothing is published."""
    payment = {
        "event_id": "warm",
        "account_id": "warm",
        "terminal_id": "warm",
        "amount": Decimal("1.0000"),
        "currency": currency,
        "event_time": datetime.fromtimestamp(at_ms / 1000, UTC),
        "channel": "POS",
    }
    value = frame(schema_id, RowCodec(load_schema("transaction")).encode(payment))
    record = SimpleNamespace(offset=0, key=b"warm", value=value, timestamp=at_ms, headers=())
    group = BatchGroup([RecordBatch("warm", 0, [record])])
    read = reading(group)
    nothing = np.zeros((1, len(model.features)), np.float32)
    scores = Scores(nothing[:, 0], nothing[:, 0], nothing, 0.0, model.ref)
    await writing(group, read, Scored(scores, "", 0))


async def every(seconds: float, call: Callable[[], object]) -> None:
    """Call again and again until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        call()
