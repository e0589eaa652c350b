"""Carries a replay out: opens what it needs, follows each partition, decides what lies in the range again.

It reads without a consumer group and commits nothing, so the live ones never notice.
"""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from services.risk.archive import PolicyArchive
from services.risk.labels import LabelReading
from services.risk.policy import InForce
from services.risk.ports import Tables
from services.risk.reading import PaymentReading
from services.risk.reasons import ReasonTable
from services.risk.replay.compare import Again, compare
from services.risk.replay.past import Past, Readers, Reread
from services.risk.replay.plan import Plan
from services.risk.replay.publishing import Publishing
from services.risk.replay.recorded import Recorded
from services.risk.replay.report import Report
from services.risk.replay.start import Sizes, from_nothing, from_snapshot, partitions_in
from services.risk.replay.topic_reader import TopicReader
from services.risk.replay.versions import Models, Policies, other_tables
from services.risk.settings import RiskSettings
from services.risk.state import StateTopics
from services.risk.validate import Rates
from services.risk.wiring import SCHEMAS
from services.risk.writing import DecisionWriting, Names, ReadySealer, Scored
from weir.client.opening import RecordOpener
from weir.client.records import Decision, Position
from weir.clock import now_ms
from weir.codec.avro import RowCodec
from weir.codec.columns import LabelReader, TransactionReader
from weir.codec.decision import DecisionWriter
from weir.codec.framing import unframe
from weir.codec.registry import SchemaRegistry, fetch_unknown, open_registry
from weir.codec.schemas import SUBJECTS, load_schema
from weir.columns import ByteColumn, Column
from weir.crypto.keyring import Keyring
from weir.errors import ConfigError
from weir.features.spec import DEFAULT, FEATURES
from weir.obs.metrics import Metrics
from weir.streams.dead_letter import DeadLetterWriter
from weir.streams.history import partition_counts
from weir.streams.journal import JournalRecord
from weir.streams.neighbours import KEYS_DEADLINE_S, Connections

PURPOSE = "replay"
CLIENT_ID = "weir-replay"

# A batch's decisions are published after it was read; a clock that was set back in between is allowed this.
_CLOCK_MS = 600_000


class Progress(Protocol):
    """Told where the replay is."""

    def __call__(self, partition: int, read_ms: int, compared: int) -> None:
        """A batch of `partition`, read at `read_ms` then, has passed; `compared` decisions in all."""


class Tap:
    """A sealer that keeps a copy of what it is given; without one behind it nothing is sealed, or leaves."""

    def __init__(self, behind: ReadySealer | None) -> None:
        self._behind = behind
        self._given: list[bytes] = []

    async def ready(self, deadline_s: float | None = None) -> None:
        """Return when the sealer behind is ready."""
        if self._behind is not None:
            await self._behind.ready(deadline_s)

    def seal_column(self, plaintexts: Column, record_ids: NDArray[np.uint8], schema_id: int) -> ByteColumn:
        """As the sealer behind; without one the values are empty."""
        given = ByteColumn(plaintexts.buffer, plaintexts.start, plaintexts.length).to_list()
        self._given += [value for value in given if value is not None]
        if self._behind is None:
            return ByteColumn.from_list([b""] * len(given))
        return self._behind.seal_column(plaintexts, record_ids, schema_id)

    def seal_batch(
        self, plaintexts: Sequence[bytes], record_ids: Sequence[bytes], schema_id: int
    ) -> list[bytes]:
        """Dead letters are not written again."""
        return [b""] * len(plaintexts)

    def take(self) -> list[bytes]:
        """What was given since the last call."""
        given, self._given = self._given, []
        return given


@dataclass(frozen=True, slots=True)
class _Tools:
    """What all partitions share."""

    settings: RiskSettings
    to: Connections
    counts: Mapping[str, int]
    registry: SchemaRegistry
    ids: Mapping[str, int]
    hash_key: bytes
    rates: Rates
    metrics: Metrics
    opener: RecordOpener
    policies: Policies
    tables: Tables
    models: Models
    writing: DecisionWriting
    tap: Tap
    publishing: Publishing | None

    async def schemas(self, values: Sequence[bytes | None]) -> None:
        """Return when the schemas that these name are known."""
        await fetch_unknown(self.registry, values)


async def replay(
    plan: Plan, settings: RiskSettings, to: Connections, progress: Progress | None = None
) -> Report:
    """Decide again what was read in the plan's range, and compare it with what was decided.

    Raises:
        WeirError: a neighbour is away, a policy or model of then is missing, a file is not what it claims.
    """
    report = Report(plan, to.topics.transactions)
    async with AsyncExitStack() as stack:
        tools = await _open(stack, plan, settings, to, report)
        report.partitions = _partitions(plan, tools.counts[to.topics.transactions])
        for partition in report.partitions:
            await _Replay(plan, tools, report, progress).of(partition)
    return report


class _Replay:
    """One partition's replay."""

    def __init__(self, plan: Plan, tools: _Tools, report: Report, progress: Progress | None) -> None:
        self._plan, self._tools, self._report, self._progress = plan, tools, report, progress
        self._in_force: InForce | None = None
        self._codec = RowCodec(load_schema("decision"))

    async def of(self, partition: int) -> None:
        """Follow the partition, and decide its batches in the range."""
        plan, tools, topics = self._plan, self._tools, self._tools.to.topics
        state_topics = StateTopics(topics.risk_accounts, topics.risk_journal)
        sizes = Sizes(tools.settings.accounts_max, tools.settings.terminals_max)
        if plan.snapshots is None:
            state = from_nothing(partition, state_topics, sizes)
        else:
            state = from_snapshot(plan.snapshots, partition, state_topics, sizes)
        begun_at = state.positions.inputs[partition]
        async with AsyncExitStack() as stack:

            async def read(topic: str, starts: Mapping[int, int], since_ms: int | None = None) -> TopicReader:
                reader = TopicReader(tools.to.kafka, topic, CLIENT_ID, starts, since_ms)
                return await stack.enter_async_context(reader)

            readers = Readers(
                await read(topics.transactions, {partition: begun_at}),
                await read(topics.labels, state.positions.labels),
                await read(topics.risk_journal, state.positions.journal),
            )
            decisions = await read(topics.decisions, {}, max(plan.from_ms - _CLOCK_MS, 0))
            recorded = Recorded(decisions, tools.opener, topics.transactions, partition)
            past = Past(
                partition,
                state,
                readers,
                self._reading(),
                self._label_reading(),
                tools.schemas,
                self._report.note,
            )
            skipping = plan.snapshots is not None
            if skipping:
                # Batches of the range that are in the snapshot already are to be found, not passed over.
                await readers.journal.back_to(partition, max(plan.from_ms - _CLOCK_MS, 0))
            while (record := await past.next_record()) is not None:
                if record.read_ms >= plan.to_ms + _CLOCK_MS:
                    break
                in_range = plan.from_ms <= record.read_ms < plan.to_ms
                if skipping and record.next_offset <= begun_at:
                    if in_range:
                        raise _later_than_asked(plan, partition, begun_at, record)
                    continue
                skipping = False
                self._in_force = tools.policies.of_then(record.policy)
                for line in other_tables(record, tools.tables):
                    self._report.note(line)
                reread = await past.batch(record)
                if in_range:
                    await self._batch(partition, record, reread, recorded)
                else:
                    self._report.absorbed += 1
                if self._progress is not None:
                    self._progress(partition, record.read_ms, self._report.compared)

    async def _batch(
        self, partition: int, record: JournalRecord, reread: Reread | None, recorded: Recorded
    ) -> None:
        report = self._report
        if reread is None:
            report.not_replayable += 1
            return
        report.state_differs += not reread.same_state
        again = await self._decide(record, reread)
        report.add(compare(await recorded.of(record.offset_first, record.next_offset), again))

    async def _decide(self, record: JournalRecord, reread: Reread) -> dict[int, Again]:
        """The batch's decisions by offset, under the versions that are asked for."""
        tools, report, read = self._tools, self._report, reread.read
        policy = tools.policies.deciding(read.in_force)
        report.policies[policy.policy.sha256] = policy.policy.version
        if record.degraded:
            # There was no model then, and there is none now: what it would have said is another question.
            scored = Scored(None, record.degraded, 0)
        else:
            scored, models = await tools.models.score(read, record)
            report.models |= {each.ref.sha256: f"{each.ref.name} {each.ref.version}" for each in models}
        outputs, _ = await tools.writing(reread.group, replace(read, in_force=policy, bad=()), scored)
        framed = tools.tap.take()
        if tools.publishing is not None:
            report.published += await tools.publishing.publish(outputs)
        offsets = [reread.group.offsets[row] for row in read.columns.row.tolist()]
        amounts = dict(zip(offsets, read.payments.amount.tolist(), strict=True))
        decisions = map(self._decoded, framed)
        return {each.feature_ref.offset: Again(each, amounts[each.feature_ref.offset]) for each in decisions}

    def _decoded(self, framed: bytes) -> Decision:
        return Decision.from_avro(self._codec.decode(unframe(framed)[1]), Position("replay", 0, 0))

    def _reading(self) -> PaymentReading:
        tools = self._tools
        return PaymentReading(
            TransactionReader(tools.registry.known),
            tools.ids["transaction"],
            rates=tools.rates,
            hash_key=tools.hash_key,
            policy=self._policy_of_then,
            metrics=tools.metrics,
            now_ms=now_ms,
        )

    def _policy_of_then(self) -> InForce:
        assert self._in_force is not None
        return self._in_force

    def _label_reading(self) -> LabelReading:
        tools = self._tools
        return LabelReading(
            LabelReader(tools.registry.known), tools.ids["label"], tools.hash_key, CollectorRegistry()
        )


async def _open(
    stack: AsyncExitStack, plan: Plan, settings: RiskSettings, to: Connections, report: Report
) -> _Tools:
    topics = to.topics
    metrics = Metrics("risk", CollectorRegistry())
    archive = PolicyArchive(plan.policies or settings.data_dir / "policies")
    policies = Policies(archive, settings.policy, plan.policy, FEATURES, report.note)
    reasons, rates = ReasonTable.load(settings.reasons, FEATURES), Rates.of(settings.rates)
    models = await stack.enter_async_context(
        Models(settings, to.triton, metrics, plan.model, plan.model_version)
    )
    names = [topics.transactions, topics.labels, topics.decisions, topics.risk_journal]
    counts = await partition_counts(to.kafka, names, CLIENT_ID)
    registry = open_registry(to.registry)
    stack.push_async_callback(registry.close)
    ids = {name: await registry.id_of(SUBJECTS[name], load_schema(name)) for name in SCHEMAS}
    keyring = await stack.enter_async_context(await Keyring.connect(to.keys))
    pseudonymizer = await keyring.pseudonymizer(settings.tenant, deadline_s=KEYS_DEADLINE_S)
    publishing, sealer = None, None
    if plan.publish_topic is not None:
        publishing = await stack.enter_async_context(Publishing(to, plan.publish_topic))
        sealer = await keyring.sealer(plan.publish_topic, deadline_s=KEYS_DEADLINE_S)
    tap = Tap(sealer)
    published = plan.publish_topic or topics.decisions
    written = Names(
        settings.tenant,
        DEFAULT.id,
        published,
        counts[topics.decisions] if publishing is None else publishing.partitions,
        topics.risk_dlq,
        1,
        ids["decision"],
    )
    writing = DecisionWriting(
        written,
        DecisionWriter(load_schema("decision"), ids["decision"], reasons.texts),
        DeadLetterWriter(tap, ids["dead_letter"]),
        sealer=tap,
        dlq_sealer=tap,
        pseudonymizer=pseudonymizer,
        metrics=metrics,
        now_ms=now_ms,
    )
    return _Tools(
        settings,
        to,
        counts,
        registry,
        ids,
        pseudonymizer.hash_key,
        rates,
        metrics,
        RecordOpener("decision", keyring, registry, purpose=PURPOSE),
        policies,
        Tables(rates.sha256, reasons.sha256),
        models,
        writing,
        tap,
        publishing,
    )


def _partitions(plan: Plan, count: int) -> list[int]:
    found = partitions_in(plan.snapshots) if plan.snapshots is not None else list(range(count))
    if not plan.partitions:
        return found
    if unknown := sorted(set(plan.partitions) - set(found)):
        where = "has a snapshot there" if plan.snapshots is not None else "is there"
        raise ConfigError(f"No partition {unknown[0]} {where}. There are: {', '.join(map(str, found))}.")
    return sorted(set(plan.partitions))


def _later_than_asked(plan: Plan, partition: int, begun_at: int, record: JournalRecord) -> ConfigError:
    return ConfigError(
        f"{plan.snapshots}: the snapshot of partition {partition} stands at offset {begun_at}, and the range "
        f"begins at {record.offset_first}. Take an older copy, a later --from, or leave --snapshots out."
    )
