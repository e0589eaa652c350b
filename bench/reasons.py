"""`python -m bench.reasons`: what exact reasons cost a decision, beside the score alone and beside TreeSHAP.

    score alone       the served model's own trees with one output, their sum: the floor
    with reasons      the served graph: a contribution of each feature; they add up to the logit
    strongest four    picking and ordering the reasons of each row, as the worker does
    written           the same decisions encoded with their four reasons, less without any
    TreeSHAP          LightGBM's own (`pred_contrib`), of a free booster of 100 trees of 31 leaves: what exact
                      Shapley values of each row's own trees cost where the model is not a sum

All in one process on one thread, in turns and in an order drawn anew each time; told are medians. Rows are
drawn next to the edges of the served model's tables, so every branch of its trees is walked.

Source: Lundberg et al. 2020, From local explanations to global understanding with explainable AI for trees.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lightgbm
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from bench import report
from bench.compress import rows_of
from infra.local import layout
from services.risk.decide import strongest
from services.risk.reasons import ReasonTable
from services.risk.settings import HERE
from services.training.additive import Floats32
from services.training.imported import from_onnx
from weir.codec.columns import StringColumn
from weir.codec.decision import DecisionColumns, DecisionWriter, StageTimings
from weir.codec.schemas import load_schema
from weir.features.spec import FEATURES

ROWS = (1, 256, 1024)
TURNS = 60
FLOOR = "score alone"


def alone(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same trees with one output: each leaf's shares added up beforehand."""
    (node,) = (each for each in proto.graph.node if each.op_type == "TreeEnsembleRegressor")
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    leaves: dict[tuple[int, int], float] = {}
    for tree, at, weight in zip(
        given["target_treeids"], given["target_nodeids"], given["target_weights"], strict=True
    ):
        leaves[tree, at] = leaves.get((tree, at), 0.0) + weight
    given |= {
        "n_targets": 1,
        "target_treeids": [tree for tree, _ in leaves],
        "target_nodeids": [at for _, at in leaves],
        "target_ids": [0] * len(leaves),
        "target_weights": list(leaves.values()),
    }
    (base,) = (each for each in proto.graph.initializer if each.name == "base_logit")
    graph = helper.make_graph(
        [
            helper.make_node("TreeEnsembleRegressor", ["features"], ["moved"], domain="ai.onnx.ml", **given),
            helper.make_node("Add", ["moved", "base_logit"], ["logit"]),
        ],
        "alone",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])],
        initializer=[base],
    )
    made = helper.make_model(graph, ir_version=proto.ir_version, opset_imports=proto.opset_import)
    onnx.checker.check_model(made)
    return made


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """On one thread, as the shipped model asks Triton for."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])


def booster(x: Floats32, probability: np.ndarray) -> lightgbm.Booster:
    """100 trees of 31 leaves, which join all features."""
    random = np.random.default_rng(7)
    label = (random.random(len(x)) < probability).astype(np.float64)
    parameters = {"objective": "binary", "num_leaves": 31, "num_threads": 1, "verbosity": -1, "seed": 7}
    return lightgbm.train(parameters, lightgbm.Dataset(x, label), 100)


def written(
    index: np.ndarray, contribution: np.ndarray, outcome: np.ndarray, logit: np.ndarray
) -> Callable[[], object]:
    """Encodes the decisions of a batch."""
    count = len(outcome)
    reasons = ReasonTable.load(HERE / "reasons.toml", FEATURES)
    writer = DecisionWriter(load_schema("decision"), 3, reasons.texts)
    strings = StringColumn.from_list([b"account-%06d" % row for row in range(count)])
    flat = logit.ravel().astype(np.float64)
    columns = DecisionColumns(
        decision_id=np.zeros((count, 16), np.uint8),
        event_id=strings,
        account_id=strings,
        currency=StringColumn.from_list([b"EUR"] * count),
        terminal_id=strings,
        outcome=outcome,
        score=flat,
        probability=flat,
        logit=flat,
        base_logit=-6.0,
        reason_index=index,
        reason_contribution=contribution,
        rules=np.zeros(count, np.uint64),
        rule_ids=(),
        amount=np.full(count, 10_000, np.int64),
        event_ms=np.zeros(count, np.int64),
        decided_ms=np.zeros(count, np.int64),
        row_offset=np.arange(count),
        tenant="default",
        kind="payment_fraud",
        model_name="risk",
        model_version="1",
        model_sha256="0" * 64,
        policy_version="1",
        policy_sha256="0" * 64,
        topic="bank.transactions",
        partition=0,
        feature_spec="0" * 12,
        timings=StageTimings(0, 0, 0, 0, 0),
        degraded=False,
        degraded_reason=None,
        traceparent=None,
    )
    return lambda: writer.write_column(columns)


def ways(proto: onnx.ModelProto, x: Floats32, free: lightgbm.Booster) -> dict[str, Callable[[], object]]:
    """What is timed, over these rows."""
    served, bare = session(proto), session(alone(proto))
    given = {"features": x}
    logit, contributions = served.run(["logit", "contributions"], given)
    (other,) = bare.run(None, given)
    if np.abs(logit - other).max() > 1e-3:
        raise SystemExit("the trees alone say another logit than the served graph")
    outcome = np.full(len(x), 2, np.int8)
    index, contribution = strongest(contributions, outcome)
    nothing = np.full_like(index, -1), np.zeros_like(contribution)
    return {
        FLOOR: lambda: bare.run(None, given),
        "with reasons": lambda: served.run(["logit", "probability", "contributions"], given),
        "strongest four": lambda: strongest(contributions, outcome),
        "written with reasons": written(index, contribution, outcome, logit),
        "written without": written(*nothing, outcome, logit),
        "TreeSHAP of a free booster": lambda: free.predict(x, pred_contrib=True),
    }


def medians(timed: dict[str, Callable[[], object]], rows: int) -> dict[str, float]:
    """µs a row of each, the median of the turns."""
    took: dict[str, list[float]] = {name: [] for name in timed}
    random, names = np.random.default_rng(rows), list(timed)
    repeats = max(1, 512 // rows)
    for name in names:
        timed[name]()
    for _ in range(TURNS):
        for place in random.permutation(len(names)):
            name = names[place]
            begun = time.perf_counter_ns()
            for _ in range(1 if "SHAP" in name else repeats):
                timed[name]()
            spent = time.perf_counter_ns() - begun
            took[name].append(spent / (1 if "SHAP" in name else repeats) / rows / 1000)
    return {name: statistics.median(each) for name, each in took.items()}


def main(words: Sequence[str]) -> int:
    """Time, print."""
    asked = argparse.ArgumentParser(prog="python -m bench.reasons", description="What exact reasons cost.")
    asked.add_argument("--model", type=Path, default=layout.MODEL_SOURCES / "risk" / "1" / "model.onnx")
    proto = onnx.load(asked.parse_args(words).model)
    model = from_onnx(proto)
    x = rows_of(model, max(ROWS), 7)
    many = rows_of(model, 20_000, 8)
    free = booster(many, model.probability(many))
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(report.machine())
    found = {rows: medians(ways(proto, x[:rows], free), rows) for rows in ROWS}
    table = Table(title="µs a decision, one thread; ratio to the score alone")
    table.add_column("what")
    for rows in ROWS:
        table.add_column(f"{rows} rows", justify="right")
        table.add_column("ratio", justify="right")

    def add(name: str, of: Callable[[dict[str, float]], float]) -> None:
        cells = []
        for rows in ROWS:
            value = of(found[rows])
            cells += [f"{value:.2f}", f"{value / found[rows][FLOOR]:.2f}"]
        table.add_row(name, *cells)

    add(FLOOR, lambda each: each[FLOOR])
    add("with reasons", lambda each: each["with reasons"])
    add("strongest four", lambda each: each["strongest four"])
    add("reasons in the record", lambda each: each["written with reasons"] - each["written without"])
    add(
        "reasons, all together",
        lambda each: (
            each["with reasons"]
            - each[FLOOR]
            + each["strongest four"]
            + each["written with reasons"]
            - each["written without"]
        ),
    )
    add("TreeSHAP of a free booster", lambda each: each["TreeSHAP of a free booster"])
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
