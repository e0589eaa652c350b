"""Another version of a flat schema, read by the same compiled loop straight into this version's columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weir.codec import _kernels as kernels
from weir.codec.schemas import Schema, plain_type

Step = Sequence[int]

# How a field is passed over that only the writer has: its bytes, whatever they mean.
_SKIPS = {
    "int": kernels.LONG,
    "long": kernels.LONG,
    "enum": kernels.LONG,
    "boolean": kernels.BOOLEAN,
    "float": kernels.FLOAT,
    "double": kernels.DOUBLE,
    "string": kernels.BYTES,
    "bytes": kernels.BYTES,
}
_INTS = frozenset({kernels.LONG, kernels.BOOLEAN})


@dataclass(frozen=True, slots=True)
class Spare:
    """The slots behind those of the columns: what is read there is nobody's."""

    ints: int
    floats: int
    strings: int
    present: int

    def of(self, op: int) -> int:
        """The spare slot among the columns that `op` writes."""
        if op in _INTS:
            return self.ints
        return self.floats if op in (kernels.FLOAT, kernels.DOUBLE) else self.strings


def steps_of(writer: Schema, reader: Schema, own: Mapping[str, Step], spare: Spare) -> list[Step] | None:
    """The steps that read `writer`'s records into `reader`'s columns; None where it takes more than that.

    What they can: fields that only the writer has, in any place and of any flat type; nullable ones that only
    the reader has, whose default is null; enums to which the reader's version has added symbols at the end.

    Args:
        own: the reader's step of each of its fields.
    """
    missing = {field["name"]: field for field in reader["fields"]}
    if any("aliases" in field for field in missing.values()):
        return None
    steps: list[Step] = []
    for field in writer["fields"]:
        mine = missing.pop(field["name"], None)
        step = (
            _skipping(field["type"], spare)
            if mine is None
            else _as_mine(field["type"], mine["type"], own[mine["name"]])
        )
        if step is None:
            return None
        steps.append(step)
    for name, field in missing.items():
        op, slot, null_branch, present_slot, _ = own[name]
        if null_branch == kernels.NOT_NULLABLE or field.get("default", ...) is not None:
            return None
        steps.append([kernels.ABSENT, slot, kernels.NOT_NULLABLE, present_slot, op])
    return steps


def _skipping(kind: Any, spare: Spare) -> Step | None:
    null_branch, base = _parts(kind)
    op = _SKIPS.get(base["type"] if isinstance(base, dict) else base)
    return None if op is None else [op, spare.of(op), null_branch, spare.present, 0]


def _as_mine(theirs: Any, mine: Any, step: Step) -> Step | None:
    null_branch, base = _parts(theirs)
    my_null_branch, my_base = _parts(mine)
    if (null_branch == kernels.NOT_NULLABLE) != (my_null_branch == kernels.NOT_NULLABLE):
        return None
    op, slot, _, present_slot, limit = step
    base, my_base = plain_type(base), plain_type(my_base)
    if op == kernels.ENUM and isinstance(base, dict) and isinstance(my_base, dict):
        symbols, mine_all = base.get("symbols", ()), my_base["symbols"]
        if symbols != mine_all[: len(symbols)]:
            return None
        limit = len(symbols)
        base, my_base = ({k: v for k, v in each.items() if k != "symbols"} for each in (base, my_base))
    return [op, slot, null_branch, present_slot, limit] if base == my_base else None


def _parts(kind: Any) -> tuple[int, Any]:
    """Which branch of a union with null is null, and the other one; a union of more is left whole."""
    if isinstance(kind, list) and len(kind) == 2 and "null" in kind:
        null_branch = kind.index("null")
        return null_branch, kind[1 - null_branch]
    return kernels.NOT_NULLABLE, {"type": "union"} if isinstance(kind, list) else kind
