"""The second half of a batch's way: decisions, encoded and sealed, and dead letters of what has none."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter_ns
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.risk.decide import ModelRef, RiskBatch, RiskDecisions, Scores, decide
from services.risk.ports import Counts
from services.risk.reading import NOT_DECIDED, Bad, ReadBatch
from weir.codec.decision import DecisionColumns, DecisionWriter, StageTimings
from weir.columns import ByteColumn, Column, interleaved
from weir.crypto.columns import decision_id_column, envelope_header_column
from weir.crypto.envelope import HEADER_NAME
from weir.crypto.keyring import SealingKeyExpired
from weir.crypto.pseudonym import Pseudonymizer
from weir.kafka.records import AnyOutput, ColumnOutput, HeaderColumns
from weir.obs import trace
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics
from weir.streams import BatchGroup, Output
from weir.streams.dead_letter import DeadLetterWriter, dead_letter

log = get_logger("weir.risk.writing")

KIND = "payment_fraud"
NO_MODEL = ModelRef("none", "", "")
_NS_PER_US = 1000


class ReadySealer(Protocol):
    """A sealer that may have to wait for its key: `weir.crypto.keyring.LiveSealer`."""

    async def ready(self, deadline_s: float | None = None) -> None:
        """Return when batches can be sealed."""

    def seal_column(self, plaintexts: Column, record_ids: NDArray[np.uint8], schema_id: int) -> ByteColumn:
        """One value for each plaintext; record_ids: (n, 16)."""


@dataclass(frozen=True, slots=True)
class Canaried:
    """What a canary says of these rows, for which it decides; share: of the accounts that are its."""

    rows: NDArray[np.intp]
    scores: Scores
    share: float


@dataclass(frozen=True, slots=True)
class Scored:
    """The model's answer for each row, or why there is none; how long it took; where a canary decides."""

    scores: Scores | None
    degraded_reason: str
    model_us: int
    canary: Canaried | None = None

    def rows(self, part: NDArray[np.intp]) -> "Scored":
        """The champion's answer for some of the rows, a canary left out."""
        return replace(self, scores=None if self.scores is None else self.scores.rows(part), canary=None)

    def row(self, index: int) -> "Scored":
        """The answer for one row, of the version that decides it."""
        if self.canary is not None and len(place := np.flatnonzero(self.canary.rows == index)):
            return replace(self, scores=self.canary.scores.rows(place), canary=None)
        return self.rows(np.array([index]))

    def by_version(self, count: int) -> "list[tuple[NDArray[np.intp], Scored]]":
        """Which of `count` rows each version decides, ascending, and its answer for them."""
        every = np.arange(count)
        if self.canary is None:
            return [(every, self)]
        theirs = replace(self, scores=self.canary.scores, canary=None)
        rest = np.setdiff1d(every, self.canary.rows, assume_unique=True)
        parts = [(rest, self.rows(rest)), (self.canary.rows, theirs)]
        return [(rows, scored) for rows, scored in parts if len(rows)]


@dataclass(frozen=True, slots=True)
class Names:
    """What stands in every decision, and where it goes."""

    tenant: str
    feature_spec: str
    decisions_topic: str
    decisions_partitions: int
    dlq_topic: str
    dlq_partitions: int
    schema_id: int


@dataclass(frozen=True, slots=True)
class _Shared:
    """What rows have whoever decides them: ids (n, 16), partition (n,), traces; how long the first waited."""

    ids: NDArray[np.uint8]
    partition: NDArray[np.int64]
    traces: Sequence[bytes | None] | None
    queued_ms: int

    def rows(self, part: NDArray[np.intp]) -> "_Shared":
        traces = None if self.traces is None else [self.traces[row] for row in part.tolist()]
        return replace(self, ids=self.ids[part], partition=self.partition[part], traces=traces)


@dataclass(slots=True)
class _Spent:
    decide_ns: int = 0
    encode_ns: int = 0


class DecisionWriting:
    """Decides a batch under the policy in force and makes what is published; nothing leaves unsealed."""

    def __init__(
        self,
        names: Names,
        writer: DecisionWriter,
        dead_letters: DeadLetterWriter,
        *,
        sealer: ReadySealer,
        dlq_sealer: ReadySealer,
        pseudonymizer: Pseudonymizer,
        metrics: Metrics,
        now_ms: Callable[[], int],
    ) -> None:
        self._names, self._writer, self._dead_letters = names, writer, dead_letters
        self._sealer, self._dlq_sealer, self._pseudonymizer = sealer, dlq_sealer, pseudonymizer
        self._metrics, self._now_ms = metrics, now_ms

    async def __call__(
        self, group: BatchGroup, read: ReadBatch, scored: Scored
    ) -> tuple[Sequence[AnyOutput], Counts]:
        """The outputs of one batch, and what is counted once they are durable."""
        await self._sealer.ready()
        outputs: list[AnyOutput] = []
        decisions: Mapping[tuple[str, str], int] = {}
        bad = list(read.bad)
        if read.payments.row_count:
            try:
                decided, decisions = self._decisions(group, read, scored)
                outputs += decided
            except SealingKeyExpired:
                raise
            except Exception as error:  # noqa: BLE001 - one record must not stop its partition
                log.error("batch_split", row_count=len(group), error=type(error).__name__)
                single, decisions, culprits = self._one_by_one(group, read, scored)
                outputs += single
                bad += culprits
        if bad:
            await self._dlq_sealer.ready()
            outputs += self._letters(group, bad)
        return outputs, Counts(decisions, Counter(each.reason for each in bad), read.late)

    def _one_by_one(
        self, group: BatchGroup, read: ReadBatch, scored: Scored
    ) -> tuple[list[AnyOutput], Mapping[tuple[str, str], int], list[Bad]]:
        """The batch again, row by row: those that can be decided are, the others become dead letters."""
        outputs: list[AnyOutput] = []
        counts: Counter[tuple[str, str]] = Counter()
        culprits: list[Bad] = []
        for index in range(read.payments.row_count):
            try:
                decided, counted = self._decisions(group, read.rows(np.array([index])), scored.row(index))
            except SealingKeyExpired:
                raise
            except Exception:  # noqa: BLE001 - as above; the record's place stands in the dead letter
                culprits.append(Bad(int(read.columns.row[index]), *NOT_DECIDED))
            else:
                outputs += decided
                counts.update(counted)
        return outputs, counts, culprits

    def _decisions(
        self, group: BatchGroup, read: ReadBatch, scored: Scored
    ) -> tuple[list[AnyOutput], Mapping[tuple[str, str], int]]:
        names = self._names
        ids = decision_id_column(names.tenant, read.columns.strings["event_id"], KIND)
        traces = self._traces(group, read)
        # Rows are in the order of the batches, so each partition's decisions lie together.
        starts = np.searchsorted(read.columns.row, group.starts)
        partition = np.repeat(np.array([batch.partition for batch in group.batches]), np.diff(starts))
        shared = _Shared(ids, partition, traces, read.read_at_ms - group.batches[0].timestamps_ms[0])
        spent, counts = _Spent(), Counter[tuple[str, str]]()
        parts: list[tuple[NDArray[np.intp], ByteColumn]] = []
        versions = scored.by_version(read.payments.row_count)
        for rows, answer in versions:
            whole = len(versions) == 1
            framed = self._framed(
                group,
                read if whole else read.rows(rows),
                answer,
                shared if whole else shared.rows(rows),
                spent,
                counts,
            )
            column = ByteColumn(framed.buffer, framed.start, framed.length)
            parts.append((rows, column if whole else column.kept()))
        framed = parts[0][1] if len(parts) == 1 else interleaved(parts)
        encoded = perf_counter_ns()
        values = self._sealer.seal_column(framed, ids, names.schema_id)
        keys = self._pseudonymizer.of_column(read.columns.strings["account_id"])
        headers = _headers(envelope_header_column(names.schema_id, ids), traces)
        sealed = perf_counter_ns()
        self._metrics.stage("decide", spent.decide_ns / 1e9)
        self._metrics.stage("encode", spent.encode_ns / 1e9)
        self._metrics.stage("seal", (sealed - encoded) / 1e9)
        now_ms, rows = self._now_ms(), starts.tolist()
        outputs: list[AnyOutput] = [
            ColumnOutput(
                names.decisions_topic,
                batch.partition % names.decisions_partitions,
                keys.rows(start, end),
                values.rows(start, end),
                now_ms,
                headers.rows(start, end),
            )
            for batch, start, end in zip(group.batches, rows, rows[1:], strict=False)
            if end > start
        ]
        return outputs, counts

    def _framed(
        self,
        group: BatchGroup,
        read: ReadBatch,
        scored: Scored,
        shared: "_Shared",
        spent: "_Spent",
        counts: Counter[tuple[str, str]],
    ) -> Column:
        """What one version decides, encoded, over the writer's own buffer; adds to `spent` and `counts`."""
        policy, begun = read.in_force.policy, perf_counter_ns()
        risk = RiskBatch(read.features, read.payments.amount, read.payments.channel, read.currency)
        decisions = decide(risk, scored.scores, read.in_force.rules, policy, scored.degraded_reason)
        decided = perf_counter_ns()
        timings = StageTimings(
            queue_us=max(0, shared.queued_ms) * 1000,
            decode_us=read.decode_us,
            features_us=read.features_us,
            model_us=scored.model_us,
            decide_us=(decided - begun) // _NS_PER_US,
        )
        columns = self._columns(group, read, decisions, policy.version, policy.sha256, shared, timings)
        framed = self._writer.write_column(columns)
        spent.decide_ns += decided - begun
        spent.encode_ns += perf_counter_ns() - decided
        counts.update(decisions.counts())
        return framed

    def _columns(
        self,
        group: BatchGroup,
        read: ReadBatch,
        decisions: RiskDecisions,
        policy_version: str,
        policy_sha256: str,
        shared: "_Shared",
        timings: StageTimings,
    ) -> DecisionColumns:
        columns, count = read.columns, read.columns.row_count
        model = decisions.model or NO_MODEL
        offsets = np.fromiter(group.offsets, np.int64, len(group))
        return DecisionColumns(
            decision_id=shared.ids,
            event_id=columns.strings["event_id"],
            account_id=columns.strings["account_id"],
            currency=columns.strings["currency"],
            terminal_id=columns.strings["terminal_id"],
            outcome=decisions.outcome,
            score=decisions.score,
            probability=decisions.probability,
            logit=decisions.logit,
            base_logit=decisions.base_logit,
            reason_index=decisions.reason_index,
            reason_contribution=decisions.reason_contribution,
            rules=decisions.rules_fired,
            rule_ids=decisions.rule_ids,
            amount=columns.ints["amount"],
            event_ms=columns.ints["event_time"],
            decided_ms=np.full(count, self._now_ms(), np.int64),
            row_offset=offsets[columns.row],
            tenant=self._names.tenant,
            kind=KIND,
            model_name=model.name,
            model_version=model.version,
            model_sha256=model.sha256,
            policy_version=policy_version,
            policy_sha256=policy_sha256,
            topic=group.batches[0].topic,
            partition=shared.partition,
            feature_spec=self._names.feature_spec,
            timings=timings,
            degraded=decisions.degraded,
            degraded_reason=decisions.degraded_reason,
            traceparent=shared.traces,
        )

    def _traces(self, group: BatchGroup, read: ReadBatch) -> list[bytes | None] | None:
        """Each decision's own step of the trace that its event belongs to; None when no event has one."""
        headers = group.headers
        if headers is None:
            return None
        contexts = [trace.from_headers(headers[row]) for row in read.columns.row.tolist()]
        if not any(contexts):
            return None
        return [context.child().traceparent.encode() if context else None for context in contexts]

    def _letters(self, group: BatchGroup, bad: Sequence[Bad]) -> list[Output]:
        now_ms = self._now_ms()
        outputs = []
        for batch, start, end in zip(group.batches, group.starts, group.starts[1:], strict=False):
            letters = []
            for each in bad:
                if start <= each.row < end:
                    row = each.row - start
                    letters.append(
                        dead_letter(
                            batch.topic,
                            batch.partition,
                            batch.offsets[row],
                            batch.timestamps_ms[row],
                            batch.keys[row],
                            batch.values[row],
                            batch.headers[row] if batch.headers is not None else (),
                            each.reason,
                            each.detail,
                            "risk",
                            now_ms,
                        )
                    )
            if letters:
                written = self._dead_letters.write(letters)
                outputs.append(
                    Output(
                        self._names.dlq_topic,
                        batch.partition % self._names.dlq_partitions,
                        [None] * len(written),
                        [value for value, _ in written],
                        [headers for _, headers in written],
                        now_ms,
                    )
                )
        return outputs


def _headers(envelope: ByteColumn, traces: Sequence[bytes | None] | None) -> HeaderColumns:
    """Each decision's headers: its envelope's, and its step of a trace where it has one."""
    count = len(envelope)
    names = (HEADER_NAME, trace.TRACEPARENT)
    if traces is None:
        return HeaderColumns(np.arange(count + 1), np.zeros(count, np.int64), names, envelope)
    values: list[bytes | None] = []
    name: list[int] = []
    first = [0]
    for header, traceparent in zip(envelope.to_list(), traces, strict=True):
        values.append(header)
        name.append(0)
        if traceparent is not None:
            values.append(traceparent)
            name.append(1)
        first.append(len(values))
    return HeaderColumns(np.array(first), np.array(name), names, ByteColumn.from_list(values))
