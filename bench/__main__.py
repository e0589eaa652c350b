"""`python -m bench`: what a decision costs, beside the floors and the peers, on this machine, in one run.

Everything copies or decides the same payments over the same broker. The copies read and write bytes and
nothing else. Weir decodes, validates, computes features, asks Triton, decides, explains, encodes, seals and
publishes. Kafka Streams does of that what it can without terminals and labels.
"""

import argparse
import asyncio
import os
from dataclasses import dataclass, field

import httpx
from rich.console import Console

from bench import profiling, report
from bench.latency import Latency, at_rate
from bench.measure import Cost, cost_of, watch
from bench.peers.kafka_streams import build, check
from bench.stage import Stage, stage
from bench.workers import FLOOR, OWN_TOPICS, WEIR, KafkaStreams, Weir, Worker, chosen

PARTITIONS = 4
DEADLINE_S = 400.0


@dataclass(slots=True)
class Found:
    """What the run has measured so far, by the workers' keys."""

    costs: dict[str, Cost] = field(default_factory=dict)
    latencies: dict[str, Latency] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)


def stage_seconds(port: int) -> dict[str, float]:
    """Seconds that the worker has spent in each stage so far."""
    found = {}
    for line in httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines():
        if line.startswith("weir_stage_duration_seconds_sum"):
            labels, value = line.split("} ")
            found[labels.split('stage="')[1].split('"')[0]] = float(value)
    return found


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    console = Console(width=130)
    console.print(report.machine())
    workers = arguments.workers
    notes = [report.NOTE]
    if any(isinstance(worker, KafkaStreams) for worker in workers):
        try:
            built = build.build()
            compared = sum(check.check(built, terminals=terminals) for terminals in (False, True))
        except build.NoJavac as error:
            console.print(str(error))
            notes.append(str(error))
            workers = [worker for worker in workers if not isinstance(worker, KafkaStreams)]
        else:
            console.print(f"Kafka Streams decides {compared:,} payments as Weir does")
            notes.append(report.KAFKA_STREAMS)
    if arguments.profile:
        profiling.find_py_spy()
    with stage(partitions=PARTITIONS, keep=arguments.keep) as theatre:
        total = arguments.warm + arguments.events
        console.print(f"sending {total:,} payments ...")
        theatre.simulate("--count", str(total), "--rate", "0")
        if arguments.profile:
            worker = next((each for each in workers if isinstance(each, Weir)), WEIR[0])
            console.print(*profiling.tables(*profiling.of_worker(theatre, worker, total), worker.title))
            return
        found = Found()
        for worker in workers:
            measure(theatre, worker, arguments, found)
            _say(console, worker, found)
    console.print(report.costs(found.costs, workers, notes))
    for worker in workers:
        if worker.key in found.stages:
            cost = found.costs[worker.key]
            console.print(report.stages(found.stages[worker.key], total, cost, worker.title))
    if found.latencies:
        console.print(report.latencies(found.latencies, workers))
    if not arguments.only:
        console.print(report.memory())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=str(__doc__).splitlines()[0])
    parser.add_argument("--events", type=int, default=500_000, help="that count, of each worker")
    parser.add_argument(
        "--warm",
        type=int,
        default=1_000_000,
        help="events before them, which do not count: for as long a JVM compiles",
    )
    parser.add_argument("--rate", type=float, default=1000.0, help="of the latency runs, a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each latency run; 0 leaves them out")
    parser.add_argument(
        "--only", help="some of the rows, by comma: " + ", ".join(w.key for w in chosen(None))
    )
    parser.add_argument("--no-peers", action="store_true", help="the floor and Weir only")
    parser.add_argument("--profile", action="store_true", help="where Weir's time goes, and nothing else")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    arguments = parser.parse_args()
    only = arguments.only.split(",") if arguments.only else None
    if arguments.no_peers:
        only = [FLOOR, *(worker.key for worker in WEIR)]
    try:
        arguments.workers = chosen(only)
    except ValueError as error:
        parser.error(str(error))
    return arguments


def measure(theatre: Stage, worker: Worker, arguments: argparse.Namespace, found: Found) -> None:
    """Let the worker have the events, then payments at the fixed rate if it decides."""
    goal = int((arguments.warm + arguments.events) * worker.share)
    with worker.running(theatre) as running:
        span = asyncio.run(
            watch(
                theatre.servers,
                running.topic,
                goal,
                [running.process.pid],
                warm=int(arguments.warm * worker.share),
                deadline_s=DEADLINE_S,
                beside=theatre.model_pids if worker.models else (),
                check=running.process.check,
            )
        )
        if running.metrics_port is not None:
            found.stages[worker.key] = stage_seconds(running.metrics_port)
        if worker.decides and arguments.seconds:
            # Gigabytes of the counted part would be written out in the middle of this one.
            os.sync()
            found.latencies[worker.key] = asyncio.run(
                at_rate(theatre, running.topic, arguments.rate, arguments.seconds)
            )
    found.costs[worker.key] = asyncio.run(cost_of(theatre.servers, span))
    # Gigabytes that no one reads any more would only take the page cache from the next.
    theatre.delete_topics(prefix=OWN_TOPICS)


def _say(console: Console, worker: Worker, found: Found) -> None:
    cost = found.costs[worker.key]
    said = f"{worker.title}: {cost.events_s:,.0f} events/s, {cost.cpu_us:.1f} µs"
    if worker.key in found.latencies:
        p50, p99, *_ = found.latencies[worker.key].percentiles_ms()
        said += f", p50 {p50:.1f} ms, p99 {p99:.1f} ms"
    console.print(said)


if __name__ == "__main__":
    main()
