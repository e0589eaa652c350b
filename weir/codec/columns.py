"""Avro a batch at a time: framed records of a flat schema, read into columns by one compiled loop.

Of the extra `services` (numpy, numba). `weir.codec.avro.RowCodec` reads the same bytes one by one and is the
reference that the tests hold this against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from weir.codec import _kernels as kernels
from weir.codec._versions import Spare, Step, steps_of
from weir.codec.avro import RowCodec, full_name
from weir.codec.framing import frame, unframe
from weir.codec.schemas import Schema, load_schema, without_keys
from weir.errors import BadInput, ConfigError

DECIMAL_SCALE = 4

# Each further version is looked for at every record that bears none before it.
_VERSIONS_MAX = 16
_INT64_MAX = 2**63 - 1
_INT64_PRECISION = 18
_INT_OPS = {"long": kernels.LONG, "int": kernels.INT, "boolean": kernels.BOOLEAN}
_FLOAT_OPS = {"float": kernels.FLOAT, "double": kernels.DOUBLE}
_TEXT_OPS = {"string": kernels.STRING, "bytes": kernels.BYTES}


@dataclass(frozen=True, slots=True)
class StringColumn:
    """Strings (or bytes) as slices of one shared buffer; strings are valid UTF-8."""

    buffer: NDArray[np.uint8]  # (bytes,)
    start: NDArray[np.int64]  # (n,)
    length: NDArray[np.int64]  # (n,)

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, index: SupportsIndex) -> bytes:
        start = int(self.start[index])
        return self.buffer[start : start + int(self.length[index])].tobytes()

    def take(self, rows: NDArray[Any]) -> "StringColumn":
        """The strings of these rows (an index array or a mask), over the same buffer."""
        return StringColumn(self.buffer, self.start[rows], self.length[rows])

    def to_list(self) -> list[bytes]:
        """Every string as bytes."""
        whole = self.buffer.data
        ends = self.start + self.length
        return [bytes(whole[a:b]) for a, b in zip(self.start.tolist(), ends.tolist(), strict=True)]

    @classmethod
    def from_list(cls, values: Sequence[bytes]) -> Self:
        """A column of these values, in a buffer of its own."""
        length = np.fromiter(map(len, values), np.int64, len(values))
        start = np.zeros(len(values), np.int64)
        np.cumsum(length[:-1], out=start[1:])
        return cls(np.frombuffer(b"".join(values), np.uint8), start, length)


@dataclass(frozen=True, slots=True)
class Columns:
    """The good records of a batch, column by column; every array has `row_count` rows."""

    row_count: int
    row: NDArray[np.int64]  # index of each record in the batch that was read
    # int, long, timestamp; boolean as 0 and 1; enum as its symbol's index; decimal unscaled, at scale 4
    ints: dict[str, NDArray[np.int64]]
    floats: dict[str, NDArray[np.float64]]
    strings: dict[str, StringColumn]
    present: dict[str, NDArray[np.bool_]]  # nullable fields; where False the value is 0, NaN or empty

    def take(self, rows: NDArray[Any]) -> "Columns":
        """These rows (an index array or a mask), in this order."""
        row = self.row[rows]
        return Columns(
            len(row),
            row,
            {name: column[rows] for name, column in self.ints.items()},
            {name: column[rows] for name, column in self.floats.items()},
            {name: column.take(rows) for name, column in self.strings.items()},
            {name: column[rows] for name, column in self.present.items()},
        )


Poison = tuple[int, str]  # index in the batch, reason out of REASONS
REASONS = kernels.REASONS[1:]


class ColumnReader:
    """Reads framed records of one flat schema into `Columns`; made once, used for every batch."""

    def __init__(self, schema: Schema, known: Callable[[int], Schema | None] | None = None) -> None:
        """Compile `schema`. `known` finds the schemas of records that bear another id (`registry.known`).

        Raises:
            ConfigError: the schema is not flat, or a decimal has another scale than 4.
        """
        self.schema = schema
        self.enums: dict[str, tuple[str, ...]] = {}
        self._known = known
        self._ints: list[str] = []
        self._floats: list[str] = []
        self._strings: list[str] = []
        self._present: list[str] = []
        try:
            self._own_steps = {field["name"]: self._step(field) for field in schema["fields"]}
        except KeyError as error:
            raise ConfigError(f"schema {schema.get('name')} has no {error}; it must be a record.") from None
        self._spare = Spare(len(self._ints), len(self._floats), len(self._strings), len(self._present))
        # The programs of all versions, one after another; this reader's own is the first.
        self._version_ids: list[int] = []
        self._starts = np.zeros(1, np.int64)
        self._program = np.empty((0, kernels.STEP_WIDTH), np.int64)
        self._append(list(self._own_steps.values()))
        self._plain = without_keys(schema, {"logicalType"})
        self._own = RowCodec(self._plain)
        self._others: dict[int, RowCodec | None] = {}

    def _append(self, steps: list[Step]) -> None:
        added = np.array(steps, np.int64).reshape(len(steps), kernels.STEP_WIDTH)
        self._program = np.concatenate([self._program, added])
        self._starts = np.append(self._starts, len(self._program))

    def _step(self, field: dict[str, Any]) -> list[int]:
        name, kind = field["name"], field["type"]
        null_branch, present_slot = kernels.NOT_NULLABLE, 0
        if isinstance(kind, list):
            if len(kind) != 2 or "null" not in kind:
                raise ConfigError(f"{self.schema['name']}.{name}: a union must be of null and one type.")
            null_branch = kind.index("null")
            kind = kind[1 - null_branch]
            present_slot = _slot(self._present, name)
        named = kind if isinstance(kind, dict) else {"type": kind}
        base = named["type"]
        if named.get("logicalType") == "decimal" and base == "bytes":
            if named.get("scale", 0) != DECIMAL_SCALE:
                raise ConfigError(f"{self.schema['name']}.{name}: a decimal must have scale {DECIMAL_SCALE}.")
            digits = named["precision"]
            limit = 10**digits - 1 if digits <= _INT64_PRECISION else _INT64_MAX
            return [kernels.DECIMAL, _slot(self._ints, name), null_branch, present_slot, limit]
        if base == "enum":
            self.enums[name] = tuple(named["symbols"])
            count = len(named["symbols"])
            return [kernels.ENUM, _slot(self._ints, name), null_branch, present_slot, count]
        for ops, names in (
            (_INT_OPS, self._ints),
            (_FLOAT_OPS, self._floats),
            (_TEXT_OPS, self._strings),
        ):
            if base in ops:
                return [ops[base], _slot(names, name), null_branch, present_slot, 0]
        raise ConfigError(f"{self.schema['name']}.{name}: {base} is not flat; read it with RowCodec.")

    def read(self, values: Sequence[bytes | None], schema_id: int) -> tuple[Columns, list[Poison]]:
        """The good records as columns, and the others with the reason, in the order of the batch.

        Args:
            values: framed records as Kafka gave them; None (a tombstone) counts as empty.
            schema_id: the id of this reader's schema. Other known versions are read in their place, as fast
                where their fields differ only by what can be passed over or is null.
        """
        columns, status = self._read(values, schema_id)
        if columns.row_count == len(values):
            return columns, []
        if self._learn_versions(values, status):
            columns, status = self._read(values, schema_id)
            if columns.row_count == len(values):
                return columns, []
        reasons = {int(i): kernels.REASONS[status[i]] for i in np.flatnonzero(status)}
        resolved: dict[int, bytes] = {}
        for index in np.flatnonzero(status == kernels.UNKNOWN_SCHEMA).tolist():
            try:
                resolved[index] = self._resolved(values[index] or b"", schema_id)
            except BadInput as error:
                reasons[index] = error.reason if error.reason in REASONS else "overflow"
        if resolved:
            # Read again with those records rewritten in our schema, so that the rows keep their order.
            again = [resolved.get(index, value) for index, value in enumerate(values)]
            columns, status = self._read(again, schema_id)
            for index in resolved:
                del reasons[index]
                if status[index]:
                    reasons[index] = kernels.REASONS[status[index]]
        return columns, sorted(reasons.items())

    def _read(self, values: Sequence[bytes | None], schema_id: int) -> tuple[Columns, NDArray[np.uint8]]:
        count = len(values)
        try:
            joined = b"".join(values)  # type: ignore[arg-type]
            whole: Sequence[bytes] = values  # type: ignore[assignment]
        except TypeError:
            whole = [value or b"" for value in values]
            joined = b"".join(whole)
        buffer = np.frombuffer(joined, np.uint8)
        length = np.fromiter(map(len, whole), np.int64, count)
        spare = self._spare
        ints = np.empty((spare.ints + 1, count), np.int64)
        floats = np.empty((spare.floats + 1, count), np.float64)
        text_start = np.empty((spare.strings + 1, count), np.int64)
        text_length = np.empty((spare.strings + 1, count), np.int64)
        present = np.empty((spare.present + 1, count), np.bool_)
        row = np.empty(count, np.int64)
        status = np.empty(count, np.uint8)
        good = kernels.read_rows(
            buffer,
            length,
            np.array([schema_id, *self._version_ids], np.int64),
            self._starts,
            self._program,
            ints,
            floats,
            text_start,
            text_length,
            present,
            row,
            status,
        )
        columns = Columns(
            good,
            row[:good],
            {name: ints[slot, :good] for slot, name in enumerate(self._ints)},
            {name: floats[slot, :good] for slot, name in enumerate(self._floats)},
            {
                name: StringColumn(buffer, text_start[slot, :good], text_length[slot, :good])
                for slot, name in enumerate(self._strings)
            },
            {name: present[slot, :good] for slot, name in enumerate(self._present)},
        )
        return columns, status

    def _learn_versions(self, values: Sequence[bytes | None], status: NDArray[np.uint8]) -> bool:
        """Compile the versions that these records bear, where not met before; whether there are some."""
        unknown = np.flatnonzero(status == kernels.UNKNOWN_SCHEMA).tolist()
        learnt = False
        for written_as in {unframe(values[index] or b"")[0] for index in unknown} - self._others.keys():
            writer = self._known(written_as) if self._known is not None else None
            if writer is None:
                continue
            self._others[written_as] = codec = self._resolver(writer)
            if codec is None or len(self._version_ids) >= _VERSIONS_MAX:
                continue
            steps = steps_of(writer, self.schema, self._own_steps, self._spare)
            if steps is not None:
                self._version_ids.append(written_as)
                self._append(steps)
                learnt = True
        return learnt

    def _resolved(self, value: bytes, schema_id: int) -> bytes:
        """A record of another version, rewritten in our schema: for what the compiled loop cannot.

        Raises:
            BadInput: `unknown_schema`, or what is wrong with the record.
        """
        written_as, payload = unframe(value)
        if written_as not in self._others:
            raise BadInput("unknown_schema", f"schema id {written_as} is not at hand")
        codec = self._others[written_as]
        if codec is None:
            raise BadInput("unknown_schema", f"schema id {written_as} is not a {self.schema['name']}")
        return frame(schema_id, self._own.encode(codec.decode(payload)))

    def _resolver(self, writer: Schema) -> RowCodec | None:
        """A codec that reads `writer`'s records in our shape; None when it is another record altogether.

        Logical types are left out, so that numbers pass through untouched.
        """
        if full_name(writer) != full_name(self.schema):
            return None
        shared = {field["name"] for field in self.schema["fields"]}
        if {each for each in _decimals(writer) if each[0] in shared} - _decimals(self.schema):
            return None
        try:
            return RowCodec(without_keys(writer, {"logicalType"}), self._plain)
        except ConfigError:
            return None


def _slot(names: list[str], name: str) -> int:
    names.append(name)
    return len(names) - 1


def _decimals(schema: Schema) -> set[tuple[str, int]]:
    """Name and scale of each decimal field."""
    found: set[tuple[str, int]] = set()
    for field in schema.get("fields", ()):
        for kind in field["type"] if isinstance(field["type"], list) else [field["type"]]:
            if isinstance(kind, dict) and kind.get("logicalType") == "decimal":
                found.add((field["name"], kind.get("scale", 0)))
    return found


class TransactionReader(ColumnReader):
    """A reader of `transaction`."""

    def __init__(self, known: Callable[[int], Schema | None] | None = None) -> None:
        super().__init__(load_schema("transaction"), known)


class LabelReader(ColumnReader):
    """A reader of `label`."""

    def __init__(self, known: Callable[[int], Schema | None] | None = None) -> None:
        super().__init__(load_schema("label"), known)
