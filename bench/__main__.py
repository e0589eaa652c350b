"""`python -m bench`: what a decision costs, beside the floor and the peers, on this machine, in one run.

Everything copies or decides the same payments over the same broker. The copies read and write bytes and
nothing else. Weir decodes, validates, computes features, asks Triton, decides, explains, encodes, seals and
publishes.
"""

import argparse
import asyncio
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from rich.console import Console
from rich.table import Table

from bench.latency import Latency, at_rate
from bench.measure import Cost, watch
from bench.memory import of_state
from weir.config import TopicSettings

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = 4
DEADLINE_S = 240.0
STAGES = ("decode", "features", "model", "decide", "encode", "seal", "send")
PEERS = {
    "aiokafka copy (the floor)": "bench.peers.aiokafka_copy",
    "Quix Streams copy": "bench.peers.quix_copy",
    "Faust agent copy": "bench.peers.faust_copy",
}
# The plain agent is so slow that all events would take minutes; its rate does not depend on their number.
SHARE = {"bench.peers.faust_copy": 0.2}


def run(*arguments: str, env: dict[str, str]) -> None:
    """One command of the project's own, its output kept for the case that it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=env, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


@contextmanager
def process(*arguments: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker in the background; it is gone when the block ends."""
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", *arguments], env=env, stdout=out, stderr=out, cwd=ROOT
        )
    try:
        yield worker
    finally:
        worker.terminate()
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


async def make_topics(servers: str, names: list[str]) -> None:
    """The copies' targets."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    finally:
        await admin.close()


def risk_env(env: dict[str, str], config: dict[str, dict[str, str]], metrics_port: int) -> dict[str, str]:
    """The environment of a risk worker of the embedded stack."""
    role = config["roles"]["risk-worker"]
    return {
        **env,
        "WEIR_KEYS_SSL_CERTIFICATE": role["ssl_certificate"],
        "WEIR_KEYS_SSL_KEY": role["ssl_key"],
        "WEIR_RISK_METRICS_PORT": str(metrics_port),
        "WEIR_RISK_RESTORE_DAYS": "0",
        "WEIR_LOG_LEVEL": "warning",
    }


def stage_seconds(port: int) -> dict[str, float]:
    """Seconds that the worker has spent in each stage so far."""
    found = {}
    for line in httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines():
        if line.startswith("weir_stage_duration_seconds_sum"):
            labels, value = line.split("} ")
            found[labels.split('stage="')[1].split('"')[0]] = float(value)
    return found


def wait_ready(port: int, worker: subprocess.Popen[bytes], log: Path) -> None:
    """Until the worker says that it is ready."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        if worker.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"the risk worker did not start:\n{log.read_text()[-3000:]}")


def machine() -> str:
    """What this was measured on."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.split(":")[1].strip() for line in cpu if line.startswith("model name")),
        platform.machine(),
    )
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB, Python {platform.python_version()}"


def costs_table(rows: dict[str, Cost]) -> Table:
    """Every worker beside the floor."""
    floor = rows["aiokafka copy (the floor)"]
    table = Table(title="One worker process, broker and Triton on the same machine")
    for column in ("worker", "events/s", "CPU µs an event", "CPU / floor", "peak RSS MiB"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for name, cost in rows.items():
        table.add_row(
            name,
            f"{cost.events_s:,.0f}",
            f"{cost.cpu_us:.1f}",
            f"{cost.cpu_us / floor.cpu_us:.2f}",
            f"{cost.rss_mb:,.0f}",
        )
    return table


def stages_table(seconds: dict[str, float], events: int, total: Cost) -> Table:
    """Where a decision's time goes."""
    table = Table(title="Where the microseconds of a decision go (wall time of each stage a row)")
    table.add_column("stage")
    table.add_column("µs", justify="right")
    for stage in STAGES:
        table.add_row(stage, f"{seconds.get(stage, 0.0) / events * 1e6:.2f}")
    table.add_row("worker CPU in all", f"{total.cpu_us:.2f}")
    table.caption = "model and send are waiting, beside the work on other batches"
    return table


def memory_table() -> Table:
    """What the windows hold."""
    table = Table(title="Windows of a million accounts, and of a million terminals")
    for column in ("entity", "bytes in the tables", "bytes of resident memory"):
        table.add_column(column, justify="left" if column == "entity" else "right")
    for name, accounts in (("account", True), ("terminal", False)):
        memory = of_state(1_000_000, accounts=accounts)
        table.add_row(name, f"{memory.state_bytes:.0f}", f"{memory.resident_bytes:.0f}")
    return table


def latency_table(latency: Latency) -> Table:
    """End to end, as a reader sees it."""
    table = Table(title=f"From publishing to reading, at {latency.rate:,.0f} payments a second")
    for column in ("p50 ms", "p99 ms", "p99.9 ms", "max ms", "payments"):
        table.add_column(column, justify="right")
    table.add_row(*(f"{value:.1f}" for value in latency.percentiles_ms()), f"{len(latency.ms):,}")
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rate", type=float, default=1000.0, help="of the latency run, a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the latency run")
    parser.add_argument("--no-peers", action="store_true", help="the floor and Weir only")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    arguments = parser.parse_args()
    console = Console(width=110)
    home = Path(tempfile.mkdtemp(prefix="weir-bench-"))
    foreign = [name for name in os.environ if name.startswith("WEIR_") and not name.startswith("WEIR_STACK_")]
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env["WEIR_STACK_HOME"] = str(home)
    console.print(machine())
    try:
        run("weir", "up", "kafka", "topics", "keys", "triton", env=env)
        try:
            measure(console, home, env, arguments)
        finally:
            run("weir", "down", env=env)
    finally:
        if arguments.keep:
            console.print(f"logs: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)


def measure(console: Console, home: Path, env: dict[str, str], arguments: argparse.Namespace) -> None:
    """Fill the topic once, then let each worker have it in turn."""
    env = {**env, "WEIR_CONFIG": str(home / "run" / "weir.toml")}
    config = tomllib.loads((home / "run" / "weir.toml").read_text())
    servers = config["kafka"]["bootstrap_servers"]
    topics = TopicSettings(**config.get("topics", {}))
    peers = dict(list(PEERS.items())[: 1 if arguments.no_peers else None])
    console.print(f"sending {arguments.events:,} payments ...")
    run("weir", "simulate", "--count", str(arguments.events), "--rate", "0", env=env)
    rows: dict[str, Cost] = {}
    targets = {name: f"bench.copy.{number}" for number, name in enumerate(peers)}
    asyncio.run(make_topics(servers, list(targets.values())))
    for name, module in peers.items():
        goal = int(arguments.events * SHARE.get(module, 1.0))
        copying = (module, servers, targets[name], topics.transactions, targets[name])
        with process(*copying, env=env, log=home / f"{module}.log") as worker:
            rows[name] = asyncio.run(watch(servers, targets[name], goal, [worker.pid], DEADLINE_S))
        console.print(f"{name}: {rows[name].events_s:,.0f} events/s")
    log = home / "risk.log"
    port = config["risk"]["metrics_port"]
    with process("services.risk", env=risk_env(env, config, port), log=log) as worker:
        wait_ready(port, worker, log)
        cost = asyncio.run(watch(servers, topics.decisions, arguments.events, [worker.pid], DEADLINE_S))
        rows["Weir, whole decision path"] = cost
        stages = stage_seconds(port)
        latency = asyncio.run(at_rate(env, config, topics, arguments.rate, arguments.seconds))
    console.print(costs_table(rows), stages_table(stages, arguments.events, cost))
    console.print(latency_table(latency), memory_table())


if __name__ == "__main__":
    main()
