"""A process that is known for certain: by its id and its start, so that a recycled id is never ended."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

_LINUX: bool = sys.platform == "linux"
_PROC = Path("/proc")
_EXEC = Path(__file__).with_name("_exec.py")
_POLL_S = 0.02


class ProcessRef(msgspec.Struct, frozen=True):
    """A process id with the start of that process, in a form that only compares."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether this very process runs; one that waits to be reaped does not."""
        return start_of(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    session: int
    start_ticks: int


def start_of(pid: int) -> str | None:
    """When process `pid` started, on which boot; None when there is none, or only its remains."""
    if _LINUX:
        stat = _stat(pid)
        return None if stat is None or stat.state in "ZX" else f"{_boot()}:{stat.start_ticks}"
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def this_process() -> ProcessRef:
    """The process that asks."""
    return ProcessRef(os.getpid(), start_of(os.getpid()) or "")


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> _Stat | None:
    try:
        # The command's name stands in brackets, and may hold anything.
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return _Stat(state=fields[0], session=int(fields[3]), start_ticks=int(fields[19]))


def session_members(ref: ProcessRef) -> Iterator[int]:
    """Every running process of the session that `ref` leads or led, itself included."""
    if not _LINUX:
        yield from [ref.pid] if ref.alive else []
        return
    boot, _, first = ref.started.rpartition(":")
    if boot != _boot():
        return
    for entry in _PROC.iterdir():
        if entry.name.isdecimal():
            stat = _stat(int(entry.name))
            # A session's id is not given out again while a member lives, so older members are not ours.
            if stat and stat.session == ref.pid and stat.start_ticks >= int(first) and stat.state not in "ZX":
                yield int(entry.name)


def signal_session(ref: ProcessRef, number: signal.Signals) -> int:
    """Send a signal to every process of the session; how many there were."""
    count = 0
    for pid in list(session_members(ref)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        count += 1
    return count


def end_session(ref: ProcessRef, grace_s: float) -> bool:
    """Ask the session's processes to end, then make them; whether there were any."""
    if not signal_session(ref, signal.SIGTERM):
        return False
    deadline = time.monotonic() + grace_s
    while any(True for _ in session_members(ref)):
        if time.monotonic() > deadline:
            signal_session(ref, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(_POLL_S)
    return True


def dies_with_us() -> tuple[str, ...]:
    """What to put before a command so that the kernel ends it when this process ends, however (Linux)."""
    return sys.executable, "-I", "-S", str(_EXEC), str(os.getpid())


@dataclass(frozen=True, slots=True)
class Child:
    """A process that was started here, and what it prints."""

    process: asyncio.subprocess.Process
    ref: ProcessRef
    output: asyncio.StreamReader


async def spawn(command: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> Child:
    """Start a process that leads a session of its own and dies with this one (Linux).

    Raises:
        OSError: this machine cannot start another process.
    """
    # A pipe of our own: with asyncio's, `wait()` also waits for whoever inherited the output.
    read_end, write_end = os.pipe()
    try:
        # The little script asks the kernel for that death, then becomes the command: the id stays the same.
        process = await asyncio.create_subprocess_exec(
            *dies_with_us(),
            *command,
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=write_end,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except BaseException:
        os.close(read_end)
        raise
    finally:
        os.close(write_end)
    output = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(read_end, "rb", buffering=0)
    )
    return Child(process, ProcessRef(process.pid, start_of(process.pid) or ""), output)
