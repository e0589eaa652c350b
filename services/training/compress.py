"""A served model made smaller and faster, and what that costs: size, speed, precision, reasons.

    pruned      neighbouring cells of a table are joined (`prune`), beyond what training joined already
    quantised   a table's shares take 256 (int8) or 16 (int4) evenly spaced values, and neighbours that are
                alike join. ONNX's tree operator holds float32 alone, so the gain is the nodes that go
    as tensors  no trees at all (`tensors`), the shares in float32 or in real int8: small, and for a GPU

All keep the model additive: its reasons stay exact reasons of the smaller model. How far they are from the
larger one's is measured as well.

Source of the affine quantisation: Jacob et al. 2018.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from services.training.additive import AdditiveModel, Floats, Floats32, Table
from services.training.export import INPUT, OUTPUTS, to_onnx
from services.training.prune import pruned
from services.training.tensors import to_tensors, with_int8_shares

TOLERANCES = (0.003, 0.01, 0.03, 0.1, 0.3)
TOP = 3  # reasons that a decision shows first


@dataclass(frozen=True, slots=True)
class Variant:
    """A smaller model, how it was made, and whether as trees or, with so many bits a share, as tensors."""

    name: str
    model: AdditiveModel
    tensor_bits: Literal[8, 32] | None = None

    def graph(self, feature_spec: str, name: str = "risk") -> onnx.ModelProto:
        """What serves it."""
        if self.tensor_bits is None:
            return to_onnx(self.model, name=name, feature_spec=feature_spec)
        return to_tensors(self.model, name=name, feature_spec=feature_spec, bits=self.tensor_bits)


def variants(model: AdditiveModel, x: Floats32, weight: Floats) -> list[Variant]:
    """The model itself and all that this module makes of it.

    Args:
        x: (n, F) float32, payments that say how often a cell is met. weight: (n,) float64, of each.
    """
    out = [Variant("as served", model)]
    out += [Variant(f"pruned {tolerance:g}", pruned(model, x, weight, tolerance)) for tolerance in TOLERANCES]
    out += [Variant(f"int{bits}", quantised(model, bits)) for bits in (8, 4)]
    out += [
        Variant(f"pruned {tolerance:g}, int{bits}", quantised(pruned(model, x, weight, tolerance), bits))
        for tolerance, bits in ((0.03, 8), (0.1, 8), (0.1, 4))
    ]
    out.append(Variant("as tensors", model, 32))
    out.append(Variant("as tensors, int8", with_int8_shares(model), 8))
    return out


def quantised(model: AdditiveModel, bits: int) -> AdditiveModel:
    """The model whose shares take at most 2^bits values in each table."""
    return replace(model, tables=tuple(_merged(_rounded(table, bits)) for table in model.tables))


def _rounded(table: Table, bits: int) -> Table:
    out = []
    for share in table.shares:
        low, high = float(share.min()), float(share.max())
        step = (high - low) / (2**bits - 1)
        out.append(low + np.round((share - low) / step) * step if step else share)
    return Table(table.features, table.edges, tuple(out))


def _merged(table: Table) -> Table:
    """The same function without edges at which nothing changes."""
    edges, shares = list(table.edges), list(table.shares)
    for axis in range(len(edges)):
        others = tuple(each for each in range(len(edges)) if each != axis)
        moves = np.zeros(len(edges[axis]), np.bool_)
        for share in shares:
            moves |= (np.diff(share, axis=axis) != 0).any(axis=others)
        edges[axis] = edges[axis][moves]
        shares = [np.compress(np.append(moves, True), share, axis=axis) for share in shares]
    return Table(table.features, tuple(edges), tuple(shares))


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near a smaller model's reasons are to the larger one's.

    logit_rmse: root mean square, logit units. contribution_max: largest change of one contribution.
    first_same: share of payments whose main reason is the same. top_same: share of the first `TOP` reasons
    that both name.
    """

    logit_rmse: float
    contribution_max: float
    first_same: float
    top_same: float


def fidelity(larger: Floats, smaller: Floats, base_moved: float = 0.0) -> Fidelity:
    """Of contributions, (n, F) each; `base_moved` is the smaller model's base less the larger one's."""
    moved = (smaller - larger).sum(axis=1) + base_moved
    first, second = _top(larger), _top(smaller)
    common = (first[:, :, None] == second[:, None, :]).any(axis=2).mean()
    return Fidelity(
        float(np.sqrt(np.mean(moved**2))),
        float(np.abs(smaller - larger).max()),
        float((first[:, 0] == second[:, 0]).mean()),
        float(common),
    )


def _top(contributions: Floats) -> NDArray[np.intp]:
    return np.argsort(-contributions, axis=1, kind="stable")[:, :TOP]


@dataclass(frozen=True, slots=True)
class Speed:
    """ONNX Runtime in this process with one thread: microseconds a call, at 1 row and at 256."""

    one_p50_us: float
    one_p99_us: float
    many_p50_us: float
    many_p99_us: float

    @property
    def rows_s(self) -> float:
        """Rows a second at 256 rows a call."""
        return 256 / self.many_p50_us * 1e6


def speeds(graphs: Mapping[str, onnx.ModelProto], x: Floats32, *, calls: int = 400) -> dict[str, Speed]:
    """The graphs' speeds, measured in turns, so that what else the machine does meets them all alike."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    runs = {
        name: onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        for name, proto in graphs.items()
    }
    took: dict[str, dict[int, list[int]]] = {name: {1: [], 256: []} for name in graphs}
    random = np.random.default_rng(7)
    for call in range(calls + 20):
        for size in (1, 256):
            start = int(random.integers(0, max(len(x) - size, 1)))
            rows = np.ascontiguousarray(x[start : start + size])
            # Who comes first after other work finds cold caches: that must not always be the same one.
            for name in random.permutation(list(runs)).tolist():
                session = runs[name]
                began = time.perf_counter_ns()
                session.run(list(OUTPUTS), {INPUT: rows})
                if call >= 20:  # the first calls lay out memory
                    took[name][size].append(time.perf_counter_ns() - began)
    return {
        name: Speed(
            *(float(np.percentile(times[size], point)) / 1000 for size in (1, 256) for point in (50, 99))
        )
        for name, times in took.items()
    }


@dataclass(frozen=True, slots=True)
class Line:
    """One variant with all that was measured of it."""

    name: str
    size: int
    cells: int
    average_precision: float
    average_precision_low: float
    average_precision_high: float
    fidelity: Fidelity
    speed: Speed
    best: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rows_s": self.speed.rows_s}


def pareto(lines: Sequence[Line]) -> list[Line]:
    """The lines, those marked `best` that no other beats in size and average precision both."""
    out = []
    for line in lines:
        beaten = any(
            other.size <= line.size
            and other.average_precision >= line.average_precision
            and (other.size, other.average_precision) != (line.size, line.average_precision)
            for other in lines
        )
        out.append(replace(line, best=not beaten))
    return out


def cell_count(model: AdditiveModel) -> int:
    """Cells of all tables."""
    return sum(int(np.prod([len(edges) + 1 for edges in table.edges])) for table in model.tables)
