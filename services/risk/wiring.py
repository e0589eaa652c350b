"""One worker's parts, opened in order and closed in reverse: keys, schemas, model, state, delivery."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Gauge

from services.risk.archive import PolicyArchive
from services.risk.canary import Canary
from services.risk.champion import Champion
from services.risk.labels import LabelReading
from services.risk.policy import PolicyFile
from services.risk.ports import Tables
from services.risk.processor import RiskProcessor
from services.risk.reading import PaymentReading
from services.risk.reasons import ReasonTable
from services.risk.restore import Restoring
from services.risk.scoring import OUTPUTS, ROW_MULTIPLE, ModelScoring, ServedModel, rows_max_of
from services.risk.settings import RiskSettings
from services.risk.shadow import Shadow
from services.risk.snapshots import Snapshots
from services.risk.standby import Standbys
from services.risk.state import RiskState, StateTopics
from services.risk.validate import Rates
from services.risk.warm import warm
from services.risk.writing import DecisionWriting, Names
from weir.clock import now_ms
from weir.codec.columns import LabelReader, TransactionReader
from weir.codec.decision import DecisionWriter
from weir.codec.registry import open_registry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.crypto.keyring import Keyring
from weir.errors import ConfigError, NeighbourUnavailable
from weir.features.accounts import Accounts
from weir.features.spec import DEFAULT
from weir.features.terminals import Terminals
from weir.inference.client import ModelClient
from weir.kafka.idempotent import IdempotentProducer
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.obs.stream_metrics import StreamMetrics
from weir.state.memory import Need, require_memory
from weir.streams.assignor import Warmth
from weir.streams.at_least_once import AtLeastOnce
from weir.streams.dead_letter import DeadLetterWriter
from weir.streams.engine import Engine
from weir.streams.engine_app import EXACTLY_ONCE
from weir.streams.folder import own_folder
from weir.streams.history import partition_counts
from weir.streams.neighbours import KEYS_DEADLINE_S, Connections, Identity, schemas_at_hand
from weir.streams.ports import Delivery
from weir.streams.side_input import SideInput
from weir.streams.source import BatchSource
from weir.streams.transactions import GroupOffsets, exactly_once

log = get_logger("weir.risk")

_DAY_MS = 86_400_000
# What the service reads and writes.
SCHEMAS = ("transaction", "label", "decision", "dead_letter")


@dataclass(frozen=True)
class Worker:
    """What the application drives."""

    engine: Engine
    state: RiskState
    policy: PolicyFile
    scoring: ModelScoring
    champion: Champion
    canary: Canary
    shadow: Shadow
    followers: Sequence[SideInput]
    snapshots: Snapshots
    snapshot_interval_s: float
    input_topic: str
    # None where no partition is kept warm for another.
    standbys: Standbys | None

    def warmth(self) -> Warmth:
        """What state is at hand: in memory, as standby, or in a snapshot."""
        standby = self.standbys.positions if self.standbys is not None else {}
        warm = self.snapshots.positions() | standby | dict(self.state.positions.inputs)
        return Warmth(
            warm={(self.input_topic, partition): offset for partition, offset in warm.items()},
            follows=self.standbys is not None,
        )

    async def keep_snapshots(self) -> None:
        """Write one after each interval, until cancelled."""
        while True:
            await asyncio.sleep(self.snapshot_interval_s)
            try:
                await self.snapshots.write(self.state)
            except NeighbourUnavailable as error:
                log.warning("snapshot_put_off", error=str(error))


@asynccontextmanager
async def open_worker(
    settings: RiskSettings,
    to: Connections,
    identity: Identity,
    metrics: Metrics,
    source: BatchSource,
    on_fatal: Callable[[BaseException], None],
) -> AsyncIterator[Worker]:
    """A worker whose neighbours answered; Triton may be away, for then rules decide.

    Raises:
        WeirError: the first part that is missing, denied or wrong.
    """
    model = ServedModel.deciding(settings.model_repository, settings.model, settings.model_version)
    reasons, rates = ReasonTable.load(settings.reasons, model.features), Rates.of(settings.rates)
    archive = PolicyArchive(settings.data_dir / "policies")
    policy = PolicyFile(settings.policy, model.features, metrics.policy_reloaded, archive.keep)
    topics, client_id = to.topics, identity.name
    async with AsyncExitStack() as stack:
        stack.enter_context(own_folder(settings.data_dir))
        counts = await _partition_counts(to, client_id)
        per_partition = _rows_a_partition(settings.accounts_max, counts[topics.transactions])
        require_memory(_memory_needed(settings, counts[topics.transactions]))
        state_topics = StateTopics(topics.risk_accounts, topics.risk_journal)

        def new_state() -> RiskState:
            return RiskState(
                state_topics,
                accounts_max=per_partition,
                terminals_max=settings.terminals_max,
                owner=identity.owner,
            )

        registry = open_registry(to.registry)
        stack.push_async_callback(registry.close)
        ids = {name: await registry.id_of(SUBJECTS[name], load_schema(name)) for name in SCHEMAS}
        keyring = await stack.enter_async_context(await Keyring.connect(to.keys))
        pseudonymizer = await keyring.pseudonymizer(settings.tenant, deadline_s=KEYS_DEADLINE_S)
        sealer = await keyring.sealer(topics.decisions, deadline_s=KEYS_DEADLINE_S)
        dlq_sealer = await keyring.sealer(topics.risk_dlq, deadline_s=KEYS_DEADLINE_S)

        def clients(place: str = "") -> Callable[[ServedModel], ModelClient]:
            """Opens clients; what they count stands under the model's name, and its place if it has one."""
            counted = metrics.model(model.ref.name + place)
            return lambda served: ModelClient(
                to.triton,
                served.ref.name,
                served.ref.version,
                outputs=OUTPUTS,
                rows_max=rows_max_of(settings),
                row_multiple=ROW_MULTIPLE,
                deadline_s=settings.score_deadline_ms / 1000,
                metrics=counted,
            )

        open_client = clients()
        shadow = Shadow(settings, clients(":shadow"), metrics.registry)
        stack.push_async_callback(shadow.close)
        canary = Canary(settings, clients(":canary"), metrics.registry)
        stack.push_async_callback(canary.close)
        scoring = ModelScoring(open_client(model), model, metrics, shadow.show)
        scoring.canary = canary
        version = Gauge("weir_champion_version", "The version that decides.", registry=metrics.registry)
        version.set_function(lambda: int(scoring.model.ref.version))
        champion = Champion(settings, scoring, open_client)
        stack.push_async_callback(champion.close)
        names = Names(
            settings.tenant,
            DEFAULT.id,
            topics.decisions,
            counts[topics.decisions],
            topics.risk_dlq,
            counts[topics.risk_dlq],
            ids["decision"],
        )

        def halves(metrics: Metrics) -> tuple[PaymentReading, DecisionWriting]:
            return PaymentReading(
                TransactionReader(registry.known),
                ids["transaction"],
                rates=rates,
                hash_key=pseudonymizer.hash_key,
                policy=lambda: policy.in_force,
                metrics=metrics,
                now_ms=now_ms,
            ), DecisionWriting(
                names,
                DecisionWriter(load_schema("decision"), ids["decision"], reasons.texts),
                DeadLetterWriter(dlq_sealer, ids["dead_letter"]),
                sealer=sealer,
                dlq_sealer=dlq_sealer,
                pseudonymizer=pseudonymizer,
                metrics=metrics,
                now_ms=now_ms,
            )

        # Compiled loops are loaded by their first call: let that be on a payment of nobody.
        scrap = RiskState(state_topics, accounts_max=1000, terminals_max=1000, owner="")
        await warm(
            scrap,
            *halves(Metrics("risk", CollectorRegistry())),
            LabelReading(
                LabelReader(registry.known), ids["label"], pseudonymizer.hash_key, CollectorRegistry()
            ),
            model.ref,
            (ids["transaction"], ids["label"]),
            next(iter(settings.rates)),
        )
        state = new_state()
        reading, writing = halves(metrics)
        stream_metrics = StreamMetrics("risk", metrics.registry)
        stream_metrics.watch_rows("account", lambda: state.account_count)
        stream_metrics.watch_rows("terminal", lambda: state.terminals.row_count)
        snapshots = Snapshots(
            settings.data_dir / "state",
            to.kafka,
            topics.risk_accounts,
            client_id=client_id,
            metrics=stream_metrics,
        )
        labels, journal = _followers(settings, to, client_id)
        snapshots.load_terminals(state)
        labels.rewind(state.positions.labels)
        journal.rewind(state.positions.journal)
        offsets = GroupOffsets(to.kafka, settings.group, identity.name)
        standbys = (
            Standbys(
                to.kafka,
                topics.risk_accounts,
                f"{client_id}-standby",
                begin=partial(snapshots.load_accounts, state),
                lag_max=settings.standby_lag_max,
                metrics=stream_metrics,
                on_failure=on_fatal,
                on_near=source.rejoin,
            )
            if settings.standby_replicas
            else None
        )
        restoring = Restoring(
            to.kafka,
            topics,
            state,
            reading,
            snapshots=snapshots,
            standbys=standbys,
            exact=settings.processing_guarantee == EXACTLY_ONCE,
            restore_days=settings.restore_days,
            client_id=client_id,
            metrics=stream_metrics,
            now_ms=now_ms,
        )
        processor = RiskProcessor(
            state,
            reading,
            LabelReading(LabelReader(registry.known), ids["label"], pseudonymizer.hash_key, metrics.registry),
            scoring,
            writing,
            restoring,
            schemas=lambda values: schemas_at_hand(registry, values),
            labels=labels,
            journal=journal,
            input_topic=topics.transactions,
            tables=Tables(rates.sha256, reasons.sha256),
            metrics=metrics,
            stream_metrics=stream_metrics,
            now_ms=now_ms,
        )
        engine = Engine(
            source,
            processor,
            _delivery(settings, to, identity, source, offsets, stream_metrics),
            rows_in_flight_max=settings.rows_in_flight_max,
            group_rows_max=settings.batch_rows_max,
            linger_s=settings.gather_ms / 1000,
            drain_deadline_s=settings.drain_deadline_s,
            on_fatal=on_fatal,
        )
        stream_metrics.watch_in_flight(lambda: engine.rows_in_flight)
        stack.push_async_callback(engine.shutdown)
        yield Worker(
            engine,
            state,
            policy,
            scoring,
            champion,
            canary,
            shadow,
            (labels, journal),
            snapshots,
            settings.snapshot_interval_s,
            topics.transactions,
            standbys,
        )


def _rows_a_partition(accounts_max: int, partitions: int) -> int:
    """Rows of one partition's accounts at most: its share, and a quarter more since shares are uneven."""
    return max(-(-accounts_max * 5 // (partitions * 4)), 1000)


def _memory_needed(settings: RiskSettings, partitions: int) -> list[Need]:
    """What the state may grow to, if this worker gets every partition."""
    accounts = partitions * Accounts.bytes_max(_rows_a_partition(settings.accounts_max, partitions))
    terminals = Terminals.bytes_max(settings.terminals_max)
    return [
        Need("accounts", "[risk] accounts_max", accounts),
        Need("terminals", "[risk] terminals_max", terminals),
    ]


async def _partition_counts(to: Connections, client_id: str) -> dict[str, int]:
    """How many partitions each topic has.

    Raises:
        ConfigError: the state's topics do not have as many as the input.
    """
    topics = to.topics
    own = [topics.risk_accounts, topics.risk_journal]
    names = [topics.transactions, topics.labels, topics.decisions, topics.risk_dlq, *own]
    counts = await partition_counts(to.kafka, names, client_id)
    for name in own:
        if counts[name] != counts[topics.transactions]:
            raise ConfigError(
                f"Topic {name} has {counts[name]} partitions and {topics.transactions} has "
                f"{counts[topics.transactions]}: they must have the same number. Make {name} anew."
            )
    return counts


def _followers(settings: RiskSettings, to: Connections, client_id: str) -> tuple[SideInput, SideInput]:
    """The labels and the journal, from as far back as windows can see."""
    since_ms = now_ms() - 2 * settings.restore_days * _DAY_MS
    return (
        SideInput(to.kafka, to.topics.labels, f"{client_id}-labels", since_ms=since_ms),
        SideInput(to.kafka, to.topics.risk_journal, f"{client_id}-journal", since_ms=since_ms),
    )


def _delivery(
    settings: RiskSettings,
    to: Connections,
    identity: Identity,
    source: BatchSource,
    offsets: GroupOffsets,
    metrics: StreamMetrics,
) -> Callable[[Callable[[BaseException], None], Callable[[int], None]], Delivery]:
    """How results are published, by the guarantee that is asked for."""

    def at_least_once(
        on_failure: Callable[[BaseException], None], on_committed: Callable[[int], None]
    ) -> Delivery:
        return AtLeastOnce(
            IdempotentProducer(to.kafka, client_id=identity.name),
            committed=offsets,
            on_failure=on_failure,
            on_committed=on_committed,
        )

    if settings.processing_guarantee != EXACTLY_ONCE:
        return at_least_once
    return exactly_once(
        to.kafka,
        settings.group,
        identity.name,
        identity.owner,
        source,
        offsets,
        timeout_s=settings.transaction_timeout_s,
        rows_max=settings.transaction_rows_max,
        observe=metrics.committed,
    )
