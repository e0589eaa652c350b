"""`python -m bench.compress --models OUT/models`: what `weir compress` made, on a real Triton through gRPC.

Each variant is asked through the client that the worker uses, for 1 row and for 256, in turns and in an order
drawn anew each time, so that what else the machine does meets all alike. Ratios are to the model as served.
Rows are drawn from the cells of the served model's own tables, so every branch of its trees is walked.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from bench import report
from infra.local.triton import TritonServer
from services.training.additive import AdditiveModel, Floats32
from services.training.export import OUTPUTS
from services.training.imported import from_onnx
from weir.config import TritonSettings
from weir.errors import WeirError
from weir.inference.client import ModelClient

SERVED = "risk-as-served"
ROWS = (1, 256)
WARM_CALLS = 20
READY_WITHIN_S = 60.0


def rows_of(model: AdditiveModel, count: int, seed: int) -> Floats32:
    """(count, F) float32: each value next to an edge of one of its feature's tables."""
    random = np.random.default_rng(seed)
    out = np.zeros((count, len(model.features)), np.float32)
    for table in model.tables:
        for feature, edges in zip(table.features, table.edges, strict=True):
            finite = edges[np.isfinite(edges)]
            if len(finite):
                out[:, feature] = random.choice(finite, count) + random.choice((-1e-3, 1e-3), count)
    return out


async def measure(
    names: Sequence[str], x: Floats32, server: TritonServer, calls: int
) -> dict[str, dict[int, list[float]]]:
    """Microseconds of each call, by variant and rows."""
    settings = TritonSettings.load(endpoint=server.endpoint)
    clients = {
        name: ModelClient(settings, name, "1", outputs=OUTPUTS, rows_max=256, deadline_s=10.0)
        for name in names
    }
    took: dict[str, dict[int, list[float]]] = {name: {rows: [] for rows in ROWS} for name in names}
    random = np.random.default_rng(7)
    try:
        for call in range(calls + WARM_CALLS):
            for rows in ROWS:
                start = int(random.integers(0, len(x) - rows))
                chosen = np.ascontiguousarray(x[start : start + rows])
                for name in random.permutation(names).tolist():
                    began = time.perf_counter_ns()
                    await clients[name].score(chosen)
                    if call >= WARM_CALLS:
                        took[name][rows].append((time.perf_counter_ns() - began) / 1000)
    finally:
        for client in clients.values():
            await client.close()
    return took


def main(words: Sequence[str]) -> int:
    """Serve, ask, print."""
    asked = argparse.ArgumentParser(prog="python -m bench.compress", description="Variants on Triton.")
    asked.add_argument("--models", type=Path, required=True, help="what `weir compress` wrote below models/")
    asked.add_argument("--calls", type=int, default=300, help="of each variant at each size")
    given = asked.parse_args(words)
    console = Console(width=None if sys.stdout.isatty() else 150)
    if not (given.models / SERVED / "1" / "model.onnx").is_file():
        console.print(f"{given.models} holds no {SERVED}. Make it with `weir compress risk --out DIR`.")
        return 1
    try:
        with TemporaryDirectory() as folder:
            server = TritonServer(given.models, Path(folder) / "triton.log", staged=Path(folder) / "models")
            server.start()
            try:
                server.wait_ready(READY_WITHIN_S)
                names = sorted(path.parent.name for path in given.models.glob("*/config.pbtxt"))
                served = from_onnx(onnx.load(given.models / SERVED / "1" / "model.onnx"))
                took = asyncio.run(measure(names, rows_of(served, 4096, 7), server, given.calls))
            finally:
                server.stop()
    except WeirError as error:
        console.print(str(error))
        return int(error.exit_code)
    console.print(report.machine())
    printed = Table(title=f"Variants on Triton through gRPC, {given.calls} calls each, in turns")
    printed.add_column("variant")
    for column in (
        "1 row, p50 µs",
        "p99 µs",
        "256 rows, p50 µs",
        "p99 µs",
        "µs a row",
        "rows/s",
        "to served",
    ):
        printed.add_column(column, justify="right")
    as_served = float(np.median(took[SERVED][256]))
    for name, times in sorted(took.items(), key=lambda each: float(np.median(each[1][256]))):
        one, many = ([float(np.percentile(times[rows], point)) for point in (50, 99)] for rows in ROWS)
        printed.add_row(
            name,
            *(f"{value:,.0f}" for value in (*one, *many)),
            f"{many[0] / 256:.2f}",
            f"{256 / many[0] * 1e6:,.0f}",
            f"{as_served / many[0]:.2f}",
        )
    console.print(printed)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
