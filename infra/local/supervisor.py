"""Local processes: started in order, watched, restarted with back-off, stopped in reverse.

A part starts when those it is `after` are ready, and stops when those that are after it have stopped.
"""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.logfile import RotatingLog
from infra.local.process import end_session, signal_session, spawn, this_process
from infra.local.server import tail
from infra.local.state import (
    PartPhase,
    PartState,
    Phase,
    StackState,
    exclusive,
    read_state,
    write_state,
)
from weir.errors import ExitCode, WeirError

# Often while a part starts, because a person waits; then seldom.
_PROBE_START_S, _PROBE_S = 0.05, 2.0
_PROBE_DEADLINE_S = 5.0
_ORPHAN_GRACE_S = 5.0
_DRAIN_DEADLINE_S = 1.0
_READ_BYTES = 65536

# None when the part serves its callers, else what is missing, as a clause.
Probe = Callable[[], Awaitable[str | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A part that is a process. `prepare`, `command` and `env` are asked again at each start."""

    name: str
    command: Callable[[], Sequence[str]]
    env: Callable[[], Mapping[str, str]]
    probe: Probe
    prepare: Callable[[], Awaitable[None]] | None = None
    cwd: Path | None = None
    after: tuple[str, ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    start_deadline_s: float = 60.0
    stop_grace_s: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A part that is done once at each start of the stack; `run` returns a word on what it did."""

    name: str
    run: Callable[[], Awaitable[str | None]]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When an ended process is started again.

    The first wait is `first_s`, each next one twice as long up to `cap_s`; a process that ran for `stable_s`
    is as good as new. One that never became ready in `start_attempts` attempts fails the start of the stack.
    """

    first_s: float = 0.25
    cap_s: float = 30.0
    stable_s: float = 30.0
    start_attempts: int = 3


class Backoff:
    """How long to wait before the next start. Time is passed in."""

    def __init__(self, policy: RestartPolicy) -> None:
        self.policy = policy
        self.failure_count = 0

    def ended(self, started_s: float, now_s: float) -> float:
        """A process that started at `started_s` ended now; seconds to wait before its next start."""
        if now_s - started_s >= self.policy.stable_s:
            self.failure_count = 0
        self.failure_count += 1
        # The exponent is bounded, for a process that fails for weeks.
        return min(self.policy.cap_s, self.policy.first_s * 2.0 ** min(self.failure_count - 1, 30))


class StartFailed(WeirError):
    """A part could not be brought up; everything was stopped again."""

    def __init__(
        self, part: str, reason: str, log: Path | None, exit_code: ExitCode = ExitCode.FAILED
    ) -> None:
        self.part, self.reason, self.log = part, reason, log
        self.exit_code = exit_code  # that of its cause
        where = f" Its log: {log}" if log else ""
        super().__init__(reason if reason.startswith(f"{part}:") else f"{part}: {reason}{where}")


@dataclass(slots=True)
class _Running:
    """What the supervisor holds for one part."""

    part: Process | Step
    state: PartState
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class Supervisor:
    """Brings parts up, keeps them up, takes them down.

    Args:
        parts: each after those named in its `after`.
        run_dir: holds the state file and the lock.
        log_dir: one log file a part.
        on_change: called after every change, with the state (for a progress display).
    """

    def __init__(
        self,
        parts: Sequence[Process | Step],
        *,
        run_dir: Path,
        log_dir: Path,
        policy: RestartPolicy | None = None,
        on_change: Callable[[StackState], None] | None = None,
    ) -> None:
        self.run_dir, self.log_dir = run_dir, log_dir
        self.policy = policy or RestartPolicy()
        self._on_change = on_change
        self._running: dict[str, _Running] = {}
        for part in parts:
            unknown = set(part.after) - set(self._running)
            if unknown or part.name in self._running:
                raise ValueError(f"{part.name}: listed twice, or before {', '.join(unknown)}")
            ports = dict(part.ports) if isinstance(part, Process) else {}
            self._running[part.name] = _Running(part, PartState(part.name, ports=ports))
        self._stop = asyncio.Event()
        self._failed: asyncio.Future[Exception] | None = None
        self.state = StackState(
            this_process(), Phase.STARTING, time.time(), [each.state for each in self._running.values()]
        )

    def stop(self) -> None:
        """Ask for the end; `run` returns when everything has stopped."""
        self._stop.set()

    async def run(self) -> None:
        """Hold the stack up until `stop`.

        Raises:
            AlreadyRunning: another supervisor holds it.
            StartFailed: a part did not come up; everything is stopped again.
        """
        with exclusive(self.run_dir):
            await asyncio.to_thread(end_leftovers, self.run_dir)
            await self.hold_up()

    async def hold_up(self) -> None:
        """As `run`, for a caller that holds the stack's lock and has ended what was left over."""
        self._failed = asyncio.get_running_loop().create_future()
        self._save()
        tasks = [
            asyncio.create_task(self._keep(each), name=each.part.name) for each in self._running.values()
        ]
        ready: asyncio.Future[Any] = asyncio.create_task(self._all_ready())
        stop: asyncio.Future[Any] = asyncio.create_task(self._stop.wait())
        failed: asyncio.Future[Any] = self._failed
        try:
            await asyncio.wait([ready, stop, failed], return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not stop.done():
                self.state.phase = Phase.RUNNING
                self._save()
                await asyncio.wait([stop, failed], return_when=asyncio.FIRST_COMPLETED)
        finally:
            failure = failed.result() if failed.done() else None
            if failure:
                self.state.failure = str(failure) or type(failure).__name__
                self.state.failure_code = getattr(failure, "exit_code", ExitCode.FAILED)
            self.state.phase = Phase.STOPPING
            self._save()
            self._stop.set()
            for task in (ready, stop):
                task.cancel()
            await asyncio.gather(*tasks)
            self.state.phase = Phase.FAILED if failure else Phase.STOPPED
            self._save()
        if failure:
            raise failure

    async def _all_ready(self) -> None:
        for each in self._running.values():
            await each.ready.wait()

    async def _keep(self, mine: _Running) -> None:
        try:
            if await self._before(mine):
                if isinstance(mine.part, Step):
                    await self._do(mine, mine.part)
                else:
                    await self._keep_process(mine, mine.part)
        except StartFailed as error:
            self._fail(mine, error)
        except WeirError as error:
            self._fail(mine, StartFailed(mine.part.name, str(error), None, ExitCode(error.exit_code)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are stopped first; `run` raises it
            self._fail(mine, error)
        finally:
            mine.stopped.set()

    def _fail(self, mine: _Running, error: Exception) -> None:
        self._set(mine, PartPhase.FAILED, str(error))
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)

    async def _before(self, mine: _Running) -> bool:
        """Wait for those that this part is after; False when the end came first."""
        for name in mine.part.after:
            if not await self._unless_stopped(self._running[name].ready.wait()):
                return False
        return not self._stop.is_set()

    async def _unless_stopped(self, waited: Awaitable[Any]) -> bool:
        wait: asyncio.Future[Any] = asyncio.ensure_future(waited)
        stop: asyncio.Future[Any] = asyncio.create_task(self._stop.wait())
        await asyncio.wait([wait, stop], return_when=asyncio.FIRST_COMPLETED)
        for task in (wait, stop):
            task.cancel()
        return not self._stop.is_set()

    async def _released(self, mine: _Running) -> None:
        """Wait until the end is asked for and nobody needs this part any more."""
        await self._stop.wait()
        for other in self._running.values():
            if mine.part.name in other.part.after:
                await other.stopped.wait()

    async def _do(self, mine: _Running, step: Step) -> None:
        self._set(mine, PartPhase.STARTING)
        work = asyncio.ensure_future(step.run())
        if await self._unless_stopped(asyncio.shield(work)):
            self._set(mine, PartPhase.DONE, work.result())
            mine.ready.set()
            # What it is after waits, through it, for those that are after it.
            await self._released(mine)
        else:
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work
            self._set(mine, PartPhase.STOPPED)

    async def _keep_process(self, mine: _Running, part: Process) -> None:
        backoff = Backoff(self.policy)
        log = RotatingLog(self._log_path(part.name))
        try:
            while True:
                started_s = time.monotonic()
                reason, code = await self._run_once(mine, part, log)
                if reason is None:
                    self._set(mine, PartPhase.STOPPED)
                    return
                wait_s = backoff.ended(started_s, time.monotonic())
                if not mine.ready.is_set() and backoff.failure_count >= self.policy.start_attempts:
                    raise StartFailed(part.name, reason, log.path, code)
                self._set(mine, PartPhase.RESTARTING, f"{reason}; next start in {wait_s:.2g} s")
                if not await self._unless_stopped(asyncio.sleep(wait_s)):
                    self._set(mine, PartPhase.STOPPED)
                    return
                mine.state.restarts += 1
        finally:
            log.close()

    async def _run_once(self, mine: _Running, part: Process, log: RotatingLog) -> tuple[str | None, ExitCode]:
        """One life of the process: why it ended (None: it was asked to), and the exit code that is worth."""
        try:
            if part.prepare:
                await part.prepare()
            command, env = list(part.command()), dict(part.env())
        except WeirError as error:
            # At the first start this is final (no Java, port taken); later the cause may pass.
            if mine.ready.is_set():
                return str(error), ExitCode(error.exit_code)
            raise
        born = await spawn(command, env, part.cwd)
        child = born.process
        mine.state.process = born.ref
        self._set(mine, PartPhase.STARTING)
        drain = asyncio.create_task(_drain(born.output, log))
        exited = asyncio.create_task(child.wait())
        watch = asyncio.create_task(self._watch(mine, part))
        released = asyncio.create_task(self._released(mine))
        try:
            await asyncio.wait([exited, watch, released], return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                signal_session(born.ref, signal.SIGKILL)
                # The last lines tell why.
                await asyncio.wait([drain], timeout=_DRAIN_DEADLINE_S)
                return _why_ended(child.returncode or 0, log), ExitCode.FAILED
            reason = None if released.done() else watch.result()
            watch.cancel()
            # Asked to end even when it is only too slow: a consumer that is killed keeps its group waiting.
            await self._take_down(mine, part, child, exited)
            return reason, ExitCode.OK if reason is None else ExitCode.UNAVAILABLE
        finally:
            for task in (watch, released):
                task.cancel()
            # What the process itself started is in its session, and goes with it.
            signal_session(born.ref, signal.SIGKILL)
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
            await exited
            # Should one have left the session with the output in its hands, it does not hold us up.
            await asyncio.wait([drain], timeout=_DRAIN_DEADLINE_S)
            drain.cancel()
            mine.state.process = None

    async def _take_down(
        self, mine: _Running, part: Process, child: asyncio.subprocess.Process, exited: asyncio.Task[int]
    ) -> None:
        self._set(mine, PartPhase.STOPPING)
        with suppress(ProcessLookupError):
            child.send_signal(part.stop_signal)
        # One that is halted (SIGSTOP) would not hear of its end.
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGCONT)
        await asyncio.wait([exited], timeout=part.stop_grace_s)

    async def _watch(self, mine: _Running, part: Process) -> str:
        """Keep the part's health up to date; returns, with the reason, only when its start takes too long."""
        began_s = time.monotonic()
        ready = False
        while True:
            try:
                missing = await asyncio.wait_for(part.probe(), _PROBE_DEADLINE_S)
            except TimeoutError:
                missing = f"no answer in {_PROBE_DEADLINE_S:.0f} s"
            except WeirError as error:
                missing = str(error)
            if missing is None:
                if mine.state.phase is not PartPhase.HEALTHY:
                    self._set(mine, PartPhase.HEALTHY)
                ready = True
                mine.ready.set()
            elif ready and mine.state.detail != missing:
                self._set(mine, PartPhase.UNHEALTHY, missing)
            elif not ready and time.monotonic() - began_s > part.start_deadline_s:
                return f"{missing} after {part.start_deadline_s:.0f} s"
            await asyncio.sleep(_PROBE_S if ready else _PROBE_START_S)

    def _log_path(self, name: str) -> Path:
        return self.log_dir / f"{name}.log"

    def _set(self, mine: _Running, phase: PartPhase, detail: str | None = None) -> None:
        mine.state.phase, mine.state.detail, mine.state.since = phase, detail, time.time()
        self._save()

    def _save(self) -> None:
        # On a full disk the parts still run; `weir status` then shows the last state that could be written.
        with suppress(OSError):
            write_state(self.run_dir, self.state)
        if self._on_change:
            self._on_change(self.state)


def _why_ended(status: int, log: RotatingLog) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    lines = [line.strip() for line in tail(log.path).splitlines() if line.strip()]
    wrong = [line for line in lines if any(word in line.lower() for word in ("error", "exception", "fatal"))]
    said = (wrong or lines)[-1:] if status else []
    return f"ended with status {status}" + (f" ({said[0][:300]})" if said else "")


async def _drain(output: asyncio.StreamReader, log: RotatingLog) -> None:
    """Move a process's output into its log until all that hold its output have ended."""
    while data := await output.read(_READ_BYTES):
        log.write(data)


def end_leftovers(run_dir: Path, grace_s: float = _ORPHAN_GRACE_S) -> list[str]:
    """End what a supervisor that is gone has left running; the parts' names.

    Only a process whose id and start are the recorded ones, or that belongs to its session, is touched.
    """
    state = read_state(run_dir)
    if state is None or (state.alive and state.supervisor != this_process()):
        return []
    return [
        part.name for part in reversed(state.parts) if part.process and end_session(part.process, grace_s)
    ]
