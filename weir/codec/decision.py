"""Decisions a batch at a time: columns become framed Avro records of `decision.avsc` by one compiled loop.

Of the extra `services` (numpy, numba). What a batch has in common is encoded once for the batch, a reason's
texts once for the writer. The bytes are those that `RowCodec` would read back; the tests prove it.
"""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weir.codec import _decision_kernel as kernel
from weir.codec.columns import DECIMAL_SCALE, StringColumn
from weir.codec.framing import header
from weir.codec.schemas import Schema
from weir.errors import ConfigError

OUTCOMES = ("APPROVE", "REVIEW", "DECLINE")
REASONS_MAX = kernel.REASONS_MAX
RULES_MAX = 64

_TEXT, _DOUBLE_OR_NULL, _TEXT_OR_NULL = "string", "null|double", "null|string"
# What the compiled loop writes, in its order; the schema must say the same.
_WRITTEN = {
    "decision_id": _TEXT,
    "tenant": _TEXT,
    "event_id": _TEXT,
    "account_id": _TEXT,
    "kind": _TEXT,
    "outcome": f"enum({','.join(OUTCOMES)})",
    "score": _DOUBLE_OR_NULL,
    "probability": _DOUBLE_OR_NULL,
    "logit": _DOUBLE_OR_NULL,
    "base_logit": _DOUBLE_OR_NULL,
    "reasons": "array(record(code:string,feature:string,contribution:double,text_en:string,text_zh:string))",
    "rules": "array(string)",
    "amount": f"decimal({DECIMAL_SCALE})",
    "currency": _TEXT,
    "terminal_id": _TEXT,
    "event_time": "long",
    "decided_time": "long",
    "model_name": _TEXT,
    "model_version": _TEXT,
    "model_sha256": _TEXT,
    "policy_version": _TEXT,
    "policy_sha256": _TEXT,
    "feature_ref": "record(topic:string,partition:int,offset:long,feature_spec:string)",
    "timings": "record(queue_us:long,decode_us:long,features_us:long,model_us:long,decide_us:long)",
    "degraded": "boolean",
    "degraded_reason": _TEXT_OR_NULL,
    "traceparent": _TEXT_OR_NULL,
}


class ReasonText(NamedTuple):
    """A reviewed reason, as it is shown."""

    code: str
    feature: str
    text_en: str
    text_zh: str


class StageTimings(NamedTuple):
    """Microseconds that the batch spent in each stage."""

    queue_us: int
    decode_us: int
    features_us: int
    model_us: int
    decide_us: int


@dataclass(frozen=True, slots=True)
class DecisionColumns:
    """A batch of n decisions; what all of them share stands once. Checked when made."""

    decision_id: NDArray[np.uint8]  # (n, 16) uuid bytes
    event_id: StringColumn
    account_id: StringColumn
    currency: StringColumn
    terminal_id: StringColumn
    outcome: NDArray[np.int8]  # (n,) index into OUTCOMES
    score: NDArray[np.float64]  # (n,) NaN is written as null, as in the next two
    probability: NDArray[np.float64]
    logit: NDArray[np.float64]
    base_logit: float | None
    reason_index: NDArray[np.int16]  # (n, 4) into the writer's reasons, -1 for none
    reason_contribution: NDArray[np.float64]  # (n, 4) logit units
    rules: NDArray[np.uint64]  # (n,) bit k: rule_ids[k] fired
    rule_ids: Sequence[str]  # at most 64
    amount: NDArray[np.int64]  # (n,) unscaled, at scale 4
    event_ms: NDArray[np.int64]
    decided_ms: NDArray[np.int64]
    row_offset: NDArray[np.int64]  # (n,) offset of each event
    tenant: str
    kind: str
    model_name: str
    model_version: str
    model_sha256: str
    policy_version: str
    policy_sha256: str
    topic: str
    partition: NDArray[np.int64] | int  # (n,) of each event, or of all
    feature_spec: str
    timings: StageTimings
    degraded: bool
    degraded_reason: str | None = None
    traceparent: Sequence[bytes | None] | None = None  # (n,) UTF-8

    def __post_init__(self) -> None:
        n = len(self.event_ms)
        rows = (
            self.event_id, self.account_id, self.currency, self.terminal_id, self.decided_ms, self.amount,
            self.row_offset, self.outcome, self.score, self.probability, self.logit, self.rules,
            self.decision_id, self.reason_index, self.reason_contribution,
        )  # fmt: skip
        if (
            any(len(column) != n for column in rows)
            or (self.traceparent is not None and len(self.traceparent) != n)
            or (not isinstance(self.partition, int) and len(self.partition) != n)
        ):
            raise ValueError("columns of a batch of decisions differ in length")
        if self.decision_id.shape != (n, kernel.UUID_BYTES):
            raise ValueError(f"decision_id must be ({n}, {kernel.UUID_BYTES})")
        if not self.reason_index.shape == self.reason_contribution.shape == (n, REASONS_MAX):
            raise ValueError(f"reason_index and reason_contribution must be ({n}, {REASONS_MAX})")
        if len(self.rule_ids) > RULES_MAX:
            raise ValueError(f"{len(self.rule_ids)} rules; at most {RULES_MAX} fit")
        # As unsigned bytes, what is below the first lies above the last.
        if n and np.asarray(self.outcome, np.int8).view(np.uint8).max() >= len(OUTCOMES):
            raise ValueError("an outcome is not one of OUTCOMES")
        if n and len(self.rule_ids) < RULES_MAX and int(self.rules.max()) >> len(self.rule_ids):
            raise ValueError("a rule fired that has no id")

    @property
    def row_count(self) -> int:
        """n."""
        return len(self.event_ms)


class DecisionWriter:
    """Writes `DecisionColumns` as framed records. It keeps a buffer: one writer for a thread."""

    def __init__(self, schema: Schema, schema_id: int, reasons: Sequence[ReasonText]) -> None:
        """Write under `schema_id`; `reasons` is what `reason_index` points into.

        Raises:
            ConfigError: `schema` is not laid out as this writer writes it.
        """
        _check_layout(schema)
        self._head = header(schema_id) + _long(36)
        texts: list[bytes] = []
        for reason in reasons:
            texts += [
                _text(reason.code) + _text(reason.feature),
                _text(reason.text_en) + _text(reason.text_zh),
            ]
        self._reason_text, self._reason_offset = _table(texts)
        self._rule_ids: tuple[str, ...] = ()
        self._rule_table = _table([])
        self._shared: tuple[object, ...] = ()
        self._shared_segments: list[bytes] = []
        self._scratch = np.empty(0, np.uint8)

    def write(self, c: DecisionColumns) -> list[bytes]:
        """One framed record for each row, in order.

        Raises:
            ValueError: a reason that this writer does not have, or a string outside its buffer.
        """
        return self.write_column(c).to_list()

    def write_column(self, c: DecisionColumns) -> StringColumn:
        """`write` as a column over the writer's own buffer: good until it writes again.

        Raises:
            ValueError: as `write`.
        """
        n = c.row_count
        start, length = np.empty(n, np.int64), np.empty(n, np.int64)
        if n == 0:
            return StringColumn(self._scratch, start, length)
        if tuple(c.rule_ids) != self._rule_ids:
            self._rule_ids = tuple(c.rule_ids)
            self._rule_table = _table([_text(rule) for rule in self._rule_ids])
        rule_text, rule_offset = self._rule_table
        constant, segment = _table(self._constants(c))
        columns = (
            constant,
            segment,
            self._reason_text,
            self._reason_offset,
            rule_text,
            rule_offset,
            np.ascontiguousarray(c.decision_id, np.uint8),
            *_parts(c.event_id),
            *_parts(c.account_id),
            *_parts(c.currency),
            *_parts(c.terminal_id),
            *_nullable(c.traceparent, n),
            np.ascontiguousarray(c.outcome, np.int8),
            _bits(c.score),
            _bits(c.probability),
            _bits(c.logit),
            np.ascontiguousarray(c.reason_index, np.int16),
            _bits(c.reason_contribution),
            np.ascontiguousarray(c.rules, np.uint64),
            np.ascontiguousarray(c.amount, np.int64),
            np.ascontiguousarray(c.event_ms, np.int64),
            np.ascontiguousarray(c.decided_ms, np.int64),
            np.array([c.partition], np.int64)
            if isinstance(c.partition, int)
            else np.ascontiguousarray(c.partition, np.int64),
            np.ascontiguousarray(c.row_offset, np.int64),
        )
        written = kernel.write_rows(self._scratch, start, length, *columns)
        if written < min(kernel.OUTSIDE, kernel.NO_REASON):
            self._scratch = np.empty(-written, np.uint8)
            written = kernel.write_rows(self._scratch, start, length, *columns)
        if written == kernel.NO_REASON:
            raise ValueError("reason_index points behind the writer's reasons")
        if written == kernel.OUTSIDE:
            raise ValueError("a string of the batch lies outside its buffer")
        return StringColumn(self._scratch, start, length)

    def _constants(self, c: DecisionColumns) -> list[bytes]:
        """The segments of a record that are the same for the whole batch, in the loop's order."""
        model = (c.model_name, c.model_version, c.model_sha256, c.policy_version, c.policy_sha256, c.topic)
        shared = (c.tenant, c.kind, c.base_logit, *model, c.feature_spec)
        if shared != self._shared:
            base_logit = c.base_logit if c.base_logit is not None and not math.isnan(c.base_logit) else None
            self._shared_segments = [
                self._head,
                _text(c.tenant),
                _text(c.kind),
                b"\x00" if base_logit is None else b"\x02" + struct.pack("<d", base_logit),
                b"".join(map(_text, model)),
                _text(c.feature_spec),
            ]
            self._shared = shared
        *before, feature_spec = self._shared_segments
        return [
            *before,
            feature_spec
            + b"".join(map(_long, c.timings))
            + (b"\x01" if c.degraded else b"\x00")
            + (b"\x00" if c.degraded_reason is None else b"\x02" + _text(c.degraded_reason)),
        ]


def _long(value: int) -> bytes:
    bits = ((value << 1) ^ (value >> 63)) & 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while bits >= 0x80:
        out.append(bits & 0x7F | 0x80)
        bits >>= 7
    out.append(bits)
    return bytes(out)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return _long(len(encoded)) + encoded


def _table(parts: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The parts one after another, and where each begins, with the end."""
    offset = np.array([0, *accumulate(map(len, parts))], np.int64)
    return np.frombuffer(b"".join(parts), np.uint8), offset


def _bits(values: NDArray[Any]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(values, np.float64).view(np.uint64)


def _parts(column: StringColumn) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    # One type for every caller: a writable buffer would have the loop compiled a second time.
    buffer = column.buffer.view()
    buffer.flags.writeable = False
    return buffer, np.ascontiguousarray(column.start), np.ascontiguousarray(column.length)


def _nullable(
    values: Sequence[bytes | None] | None, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    if values is None:
        return (
            np.frombuffer(b"", np.uint8),
            np.zeros(count, np.int64),
            np.full(count, kernel.NO_TEXT, np.int64),
        )
    column = StringColumn.from_list([value or b"" for value in values])
    length = np.fromiter((kernel.NO_TEXT if v is None else len(v) for v in values), np.int64, count)
    return column.buffer, column.start, length


def _shape(schema: Any) -> str:
    if isinstance(schema, list):
        return "|".join(map(_shape, schema))
    if not isinstance(schema, dict):
        return str(schema)
    kind = schema["type"]
    if kind == "record":
        fields = (f"{field['name']}:{_shape(field['type'])}" for field in schema["fields"])
        return f"record({','.join(fields)})"
    if kind == "enum":
        return f"enum({','.join(schema['symbols'])})"
    if kind == "array":
        return f"array({_shape(schema['items'])})"
    if schema.get("logicalType") == "decimal":
        return f"decimal({schema.get('scale', 0)})"
    return str(kind)


def _check_layout(schema: Schema) -> None:
    fields = [(field["name"], _shape(field["type"])) for field in schema.get("fields", ())]
    for place, (found, written) in enumerate(zip(fields, _WRITTEN.items(), strict=False), 1):
        if found != written:
            raise ConfigError(
                f"decision.avsc field {place} is {found[0]} {found[1]}, and the writer writes {written[0]} "
                f"{written[1]}. Change weir/codec/_decision_kernel.py with the schema."
            )
    if len(fields) != len(_WRITTEN):
        raise ConfigError(
            f"decision.avsc has {len(fields)} fields, and the writer writes {len(_WRITTEN)}. "
            "Change weir/codec/_decision_kernel.py with the schema."
        )
