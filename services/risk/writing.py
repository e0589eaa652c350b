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
from weir.columns import ByteColumn, Column
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
        """The model's answer for some of the rows, a canary left out."""
        return replace(self, scores=None if self.scores is None else self.scores.rows(part), canary=None)

    def by_model(self, read: ReadBatch) -> "list[tuple[ReadBatch, Scored]]":
        """The batch, cut into what each version decides, in the order of its rows."""
        if self.canary is None:
            return [(read, self)]
        theirs = replace(self, scores=self.canary.scores, canary=None)
        rest = np.setdiff1d(np.arange(read.payments.row_count), self.canary.rows, assume_unique=True)
        parts = [(rest, self.rows(rest)), (self.canary.rows, theirs)]
        return [(read.rows(rows), scored) for rows, scored in parts if len(rows)]


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
        decisions: Counter[tuple[str, str]] = Counter()
        bad = list(read.bad)
        for part, answer in scored.by_model(read) if read.payments.row_count else ():
            try:
                decided, counted = self._decisions(group, part, answer)
                outputs += decided
            except SealingKeyExpired:
                raise
            except Exception as error:  # noqa: BLE001 - one record must not stop its partition
                log.error("batch_split", row_count=len(group), error=type(error).__name__)
                single, counted, culprits = self._one_by_one(group, part, answer)
                outputs += single
                bad += culprits
            decisions.update(counted)
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
            row = np.array([index])
            try:
                decided, counted = self._decisions(group, read.rows(row), scored.rows(row))
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
        names, policy, rules = self._names, read.in_force.policy, read.in_force.rules
        begun = perf_counter_ns()
        risk = RiskBatch(read.features, read.payments.amount, read.payments.channel, read.currency)
        decisions = decide(risk, scored.scores, rules, policy, scored.degraded_reason)
        decided = perf_counter_ns()
        ids = decision_id_column(names.tenant, read.columns.strings["event_id"], KIND)
        traces = self._traces(group, read)
        timings = StageTimings(
            queue_us=max(0, read.read_at_ms - group.batches[0].timestamps_ms[0]) * 1000,
            decode_us=read.decode_us,
            features_us=read.features_us,
            model_us=scored.model_us,
            decide_us=(decided - begun) // _NS_PER_US,
        )
        # Rows are in the order of the batches, so each partition's decisions lie together.
        starts = np.searchsorted(read.columns.row, group.starts)
        partition = np.repeat(np.array([batch.partition for batch in group.batches]), np.diff(starts))
        columns = self._columns(
            group, read, decisions, policy.version, policy.sha256, ids, partition, timings, traces
        )
        framed = self._writer.write_column(columns)
        encoded = perf_counter_ns()
        values = self._sealer.seal_column(framed, ids, names.schema_id)
        keys = self._pseudonymizer.of_column(read.columns.strings["account_id"])
        headers = _headers(envelope_header_column(names.schema_id, ids), traces)
        sealed = perf_counter_ns()
        for stage, start, end in (
            ("decide", begun, decided),
            ("encode", decided, encoded),
            ("seal", encoded, sealed),
        ):
            self._metrics.stage(stage, (end - start) / 1e9)  # type: ignore[arg-type]
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
        return outputs, decisions.counts()

    def _columns(
        self,
        group: BatchGroup,
        read: ReadBatch,
        decisions: RiskDecisions,
        policy_version: str,
        policy_sha256: str,
        ids: NDArray[np.uint8],
        partition: NDArray[np.int64],
        timings: StageTimings,
        traces: Sequence[bytes | None] | None,
    ) -> DecisionColumns:
        columns, count = read.columns, read.columns.row_count
        model = decisions.model or NO_MODEL
        offsets = np.fromiter(group.offsets, np.int64, len(group))
        return DecisionColumns(
            decision_id=ids,
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
            partition=partition,
            feature_spec=self._names.feature_spec,
            timings=timings,
            degraded=decisions.degraded,
            degraded_reason=decisions.degraded_reason,
            traceparent=traces,
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
