"""What the supervisor writes down for everyone else (`stack.json`), and the lock that only one holds."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from infra.local.process import ProcessRef
from weir.errors import ExitCode, WeirError

STATE_NAME = "stack.json"
LOCK_NAME = "stack.lock"


class Phase(StrEnum):
    """Of the whole stack: STARTING -> RUNNING -> STOPPING -> STOPPED, or STARTING -> STOPPING -> FAILED."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"


class PartPhase(StrEnum):
    """Of one part.

    WAITING -> STARTING -> HEALTHY <-> UNHEALTHY; when its process ends RESTARTING -> STARTING again;
    on demand STOPPING -> STOPPED. A step (no process) goes WAITING -> STARTING -> DONE.
    """

    WAITING = "waiting"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DONE = "done"


class PartState(msgspec.Struct):
    """One part, as `weir status` shows it. `since` is in seconds of the Unix clock."""

    name: str
    phase: PartPhase = PartPhase.WAITING
    process: ProcessRef | None = None
    ports: dict[str, int] = {}
    restarts: int = 0
    since: float = 0.0
    detail: str | None = None


class StackState(msgspec.Struct):
    """The stack, as its supervisor knows it."""

    supervisor: ProcessRef
    phase: Phase
    started: float
    parts: list[PartState]
    failure: str | None = None
    failure_code: int = ExitCode.FAILED
    version: int = 1

    @property
    def alive(self) -> bool:
        """Whether the supervisor that wrote this still runs."""
        return self.supervisor.alive


class AlreadyRunning(WeirError):
    """Another supervisor holds this stack."""

    def __init__(self, run_dir: Path, pid: int | None) -> None:
        self.run_dir, self.pid = run_dir, pid
        who = f"process {pid}" if pid else "another process"
        super().__init__(
            f"this stack ({run_dir}) is run by {who}. See `weir status`; stop it with `weir down`."
        )


def read_state(run_dir: Path) -> StackState | None:
    """The last state that a supervisor wrote; None when there is none that can be read."""
    try:
        return msgspec.json.decode((run_dir / STATE_NAME).read_bytes(), type=StackState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_state(run_dir: Path, state: StackState) -> None:
    """Replace the state whole: a reader sees the old one or the new one.

    Raises:
        OSError: the disk is full, or the folder is not ours.
    """
    path = run_dir / STATE_NAME
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def exclusive(run_dir: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the stack's lock; the kernel lets it go when this process ends, however it ends.

    Raises:
        AlreadyRunning: another process holds it and keeps it for `wait_s`.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with open(run_dir / LOCK_NAME, "a+b") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise AlreadyRunning(run_dir, holder(run_dir)) from None
                time.sleep(0.05)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        yield


def holder(run_dir: Path) -> int | None:
    """The process id in the lock file, if there is one."""
    try:
        text = (run_dir / LOCK_NAME).read_text()
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() else None


def is_held(run_dir: Path) -> bool:
    """Whether some process holds the lock now."""
    try:
        with open(run_dir / LOCK_NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
