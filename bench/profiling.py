"""Where the microseconds of a worker go: py-spy samples it from outside, native frames included."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from bench.measure import Cost, Span, cost_of, watch
from bench.stage import Process, Stage
from bench.workers import Worker
from weir.errors import MissingPart

SAMPLES_S = 250
WARM_SHARE, END_SHARE = 0.3, 0.85
DEADLINE_S = 400.0
TOP = 25
# The innermost frame of a sample that lies in one of these names its stage.
_STAGE_OF_PATH = (
    ("weir/codec/columns", "decode"),
    ("weir/codec/_kernels", "decode"),
    ("services/risk/validate", "decode"),
    ("weir/features/", "features"),
    ("weir/state/", "features"),
    ("services/risk/decide", "decide"),
    ("services/risk/rules", "decide"),
    ("weir/codec/decision", "encode"),
    ("weir/codec/_decision", "encode"),
    ("weir/ids", "encode"),
    ("weir/crypto/", "seal"),
    ("weir/inference/", "model"),
    ("grpc/", "model"),
    ("aiokafka/producer", "send"),
    ("weir/kafka/", "send"),
    ("aiokafka/consumer", "fetch"),
    ("weir/streams/transport", "fetch"),
    ("aiokafka/", "Kafka client"),
    ("weir/streams/", "streams"),
    ("weir/obs/", "metrics"),
    ("services/risk/", "service"),
    ("faust/", "Faust"),
)
ELSEWHERE = "event loop and other"
# With native frames the profiler cannot tell waiting from work: in these no CPU is used.
_WAITING = (
    "epoll_wait",
    "epoll_pwait",
    "poll ",
    "ppoll",
    "select ",
    "pthread_cond_",
    "__futex",
    "futex",
    "do_futex_wait",
    "sem_wait",
    "sem_timedwait",
    "sem_clockwait",
    "clock_nanosleep",
    "nanosleep",
    "accept",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """Shares of the samples that were at work, 0 to 1: by stage, and by the innermost function."""

    samples: int
    stages: dict[str, float]
    functions: dict[str, float]


def read(lines: Iterable[str]) -> Profile:
    """The profile in py-spy's raw format: frames from outermost to innermost by `;`, then a count.

    Raises:
        ValueError: there is no sample.
    """
    stages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        # Frames without a name are an address: machine code without symbols, such as numba's.
        frames = [frame for frame in stack.split(";") if not frame.startswith("0x")]
        if frames and not frames[-1].startswith(_WAITING):
            stages[_stage(frames)] += int(count)
            functions[_name(frames[-1])] += int(count)
    total = stages.total()
    if not total:
        raise ValueError("the profile holds no sample")
    return Profile(
        total,
        {name: count / total for name, count in stages.most_common()},
        {name: count / total for name, count in functions.most_common()},
    )


def _stage(frames: list[str]) -> str:
    for frame in reversed(frames):
        for path, stage in _STAGE_OF_PATH:
            if path in frame:
                return stage
    return ELSEWHERE


def _name(frame: str) -> str:
    """A frame without its line: `seal_batch (weir/crypto/envelope.py)`."""
    head, colon, line = frame.rpartition(":")
    return f"{head})" if colon and line.removesuffix(")").isdigit() else frame


def find_py_spy() -> Path:
    """The profiler's program.

    Raises:
        MissingPart: it is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.is_file() else shutil.which("py-spy")
    if found is None:
        raise MissingPart("py-spy is not installed. Install it (`make setup-all`), then run this again.")
    return Path(found)


@contextmanager
def sampled(process: Process, path: Path) -> Iterator[None]:
    """Sample the process during the block; afterwards `path` holds the raw profile.

    Raises:
        SystemExit: the profiler may not look into the process.
    """
    command = [str(find_py_spy()), "record", "--pid", str(process.pid), "--rate", str(SAMPLES_S)]
    options = ["--native", "--format", "raw", "--output", str(path), "--duration", "unlimited"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as profiler:
        try:
            yield
        finally:
            os.kill(profiler.pid, signal.SIGINT)
            said, _ = profiler.communicate(timeout=60)
    if not path.is_file():
        raise SystemExit(f"py-spy: {said.decode(errors='replace')[-500:]}")


def of_worker(theatre: Stage, worker: Worker, events: int) -> tuple[Profile, Cost]:
    """Its profile over the events that come after its warming up, and what they cost meanwhile."""
    path = theatre.home / "profile.raw"
    warm = int(events * WARM_SHARE)
    with worker.running(theatre) as running:

        def until(goal: int) -> Span:
            pids = [running.process.pid]
            check = running.process.check
            return asyncio.run(
                watch(theatre.servers, running.topic, goal, pids, warm=0, deadline_s=DEADLINE_S, check=check)
            )

        until(warm)
        with sampled(running.process, path):
            # Not to the very end: what the worker did before the sampling began is already there.
            span = until(int(events * END_SHARE))
    with path.open(encoding="utf-8", errors="replace") as lines:
        return read(lines), asyncio.run(cost_of(theatre.servers, span))


def tables(profile: Profile, cost: Cost, title: str) -> list[Table]:
    """The profile as a person reads it."""
    by_stage = Table(title=f"{title}: samples by stage ({profile.samples:,} samples)")
    by_function = Table(title=f"{title}: the functions at work, the first {TOP}")
    for table, what in ((by_stage, "stage"), (by_function, "function")):
        table.add_column(what)
        table.add_column("share", justify="right")
        table.add_column("CPU µs an event", justify="right")
    for table, shares in (
        (by_stage, list(profile.stages.items())),
        (by_function, list(profile.functions.items())[:TOP]),
    ):
        for name, share in shares:
            table.add_row(name, f"{share:.1%}", f"{share * cost.cpu_us:.2f}")
    by_function.caption = (
        f"{cost.events_s:,.0f} events/s at {cost.cpu_us:.1f} µs of CPU while sampled; machine code without "
        "symbols (numba's) counts for the function that called it"
    )
    return [by_stage, by_function]
