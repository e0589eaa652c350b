"""What every local server has in common: prepare, start, wait until ready, stop, show its log.

A supervisor takes `prepare()`, `command()`, `env()` and `probe()` and runs the process its own way; a test
takes the server as a context manager.
"""

import ctypes
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from weir.errors import NeighbourUnavailable, WeirError

_POLL_S = 0.02
_PR_SET_PDEATHSIG = 1


class ServerFailed(WeirError):
    """A server ended before it was ready; `log` holds the end of what it said."""

    def __init__(self, name: str, exit_status: int, log_path: Path, log: str) -> None:
        self.name, self.exit_status, self.log_path, self.log = name, exit_status, log_path, log
        said = _last_words(log)
        super().__init__(f"{name} ended with status {exit_status} while starting{said}. Its log: {log_path}")


class ServerNotReady(NeighbourUnavailable):
    """A server runs but was not ready before the deadline; `log` holds the end of what it said."""

    def __init__(self, name: str, waited_s: float, missing: str, log_path: Path, log: str) -> None:
        self.name, self.waited_s, self.missing, self.log_path, self.log = (
            name,
            waited_s,
            missing,
            log_path,
            log,
        )
        super().__init__(f"{name}: {missing} after {waited_s:.1f} s. Its log: {log_path}")


def _last_words(log: str) -> str:
    """The last line that looks like an error, as a clause for a sentence."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    wrong = [line for line in lines if any(word in line.lower() for word in ("error", "exception", "fatal"))]
    return f" ({wrong[-1][:200]})" if wrong else ""


def tail(path: Path, line_count: int = 40, bytes_max: int = 65536) -> str:
    """The last lines of a log file; empty when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - bytes_max))
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-line_count:])
    except FileNotFoundError:
        return ""


def _die_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the child when the thread that started it dies (Linux)."""
    prctl = ctypes.CDLL(None).prctl

    def ask_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return ask_kernel


class LocalServer(ABC):
    """One server process on this machine, bound to the loopback interface."""

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, log_path: Path) -> None:
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Everything that must be on disk before the process starts; quick and harmless when repeated."""

    @abstractmethod
    def command(self) -> list[str]:
        """The program and its arguments."""

    @abstractmethod
    def probe(self) -> str | None:
        """None when ready for callers, else what is still missing, as a clause."""

    def env(self) -> dict[str, str]:
        """The whole environment of the process."""
        return dict(os.environ)

    @property
    def pid(self) -> int | None:
        """The process id while it runs under this object."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def log_tail(self, line_count: int = 40) -> str:
        """The end of the server's log."""
        return tail(self.log_path, line_count)

    def start(self, *, die_with_parent: bool = True) -> None:
        """Prepare and start the process in a process group of its own, its output to `log_path`.

        Args:
            die_with_parent: let the kernel kill it when the starting thread dies, however it dies.

        Raises:
            WeirError: already started, or `prepare` says why it cannot be.
        """
        if self.pid is not None:
            raise WeirError(f"{self.name} runs already (process {self.pid}). Stop it first.")
        self.prepare()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                env=self.env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent() if die_with_parent else None,
            )

    def wait_ready(self, deadline_s: float = 60.0) -> float:
        """Wait until callers are served; the seconds that took.

        Raises:
            ServerFailed: the process ended.
            ServerNotReady: it runs, but was not ready within `deadline_s`.
        """
        began = time.monotonic()
        while True:
            missing = self.probe()
            waited_s = time.monotonic() - began
            if missing is None:
                return waited_s
            if self._process is not None and self._process.poll() is not None:
                raise ServerFailed(self.name, self._process.returncode, self.log_path, self.log_tail())
            if waited_s > deadline_s:
                raise ServerNotReady(self.name, waited_s, missing, self.log_path, self.log_tail())
            time.sleep(_POLL_S)

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask the process to end, then make it; nothing of its group is left."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(self.stop_signal)
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
        try:
            # What it started itself (Triton's Python stubs) is in its group.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            process.wait()

    def kill(self) -> None:
        """End the whole process group at once, as a power cut would."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            process.wait()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop(grace_s=0.5)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
