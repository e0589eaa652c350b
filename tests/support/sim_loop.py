"""An event loop without a clock and without I/O: what it does is a function of its random source alone.

Time is virtual and jumps to the next timer. Handles that are ready at the same moment run in a drawn order.
Every handle belongs to a process, by its context: a process can be killed between any two of its handles
(nothing of it runs any more, no `finally` either), or stopped and let go on, as by SIGSTOP and SIGCONT.
"""

import asyncio
import contextvars
from asyncio import events
from collections.abc import Callable, Coroutine
from heapq import heappop, heappush
from random import Random
from typing import Any

PROCESS: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)
# Of what belongs to no process: brokers, the network, whoever judges.
OUTSIDE = contextvars.Context()


class Process:
    """What is killed and stopped as one; `fuse` handles from now it is killed, wherever it then stands."""

    __slots__ = ("alive", "context", "fuse", "name", "on_death", "parked", "steps", "stopped", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.context = contextvars.Context()
        self.context.run(PROCESS.set, self)
        self.alive, self.stopped = True, False
        self.steps, self.fuse = 0, -1
        self.parked: list[SimHandle] = []
        self.tasks: list[SimTask] = []
        self.on_death: Callable[[], None] | None = None


class SimHandle:
    """A callback to be run, now or at its time."""

    __slots__ = ("_args", "_callback", "_context", "_process", "_when")

    def __init__(
        self, callback: Callable[..., Any], args: tuple[Any, ...], context: contextvars.Context, when: float
    ) -> None:
        self._callback: Callable[..., Any] | None = callback
        self._args, self._context, self._when = args, context, when
        self._process = context.get(PROCESS)

    def cancel(self) -> None:
        """Run it never."""
        self._callback = None
        self._args = ()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._callback is None

    def when(self) -> float:
        """Its time."""
        return self._when


class SimTask(asyncio.Task[Any]):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Coroutine[Any, Any, Any], number: int, **options: Any) -> None:
        self._hash = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._hash


class Stuck(Exception):
    """Nothing is left to run, and what was waited for is not done."""


class SimLoop(asyncio.AbstractEventLoop):
    """See the module.

    Args:
        random: decides the order of what is ready at once.
        shuffled: whether it does; else first come, first served, as in the real loops.
    """

    def __init__(self, random: Random, *, shuffled: bool = True) -> None:
        self._random, self._shuffled = random, shuffled
        self._now = 0.0
        self._ready: list[SimHandle] = []
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._ticket = self._task_count = 0
        self._tasks: list[SimTask] = []
        self._closed = self._running = False
        self.steps = 0
        self.errors: list[dict[str, Any]] = []

    # -- what asyncio asks of a loop -----------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> SimHandle:
        # An empty context is false, so no `or`.
        context = contextvars.copy_context() if context is None else context
        handle = SimHandle(callback, args, context, self._now)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> SimHandle:
        context = contextvars.copy_context() if context is None else context
        handle = SimHandle(callback, args, context, when)
        self._ticket += 1
        heappush(self._timers, (when, self._ticket, handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> SimHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> SimTask:
        # A name of its own: asyncio's are numbered over all loops of the interpreter.
        self._task_count += 1
        task = SimTask(coro, self._task_count, loop=self, name=name or "task", context=context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        (self._tasks if process is None else process.tasks).append(task)
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    # -- running -------------------------------------------------------------------------------------------

    def run(self, until: "asyncio.Future[Any]", deadline_s: float) -> None:
        """Run until the future is done; `Stuck` when it is not by the (virtual) deadline."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        self._running = True
        try:
            while not until.done():
                if self._now > deadline_s or not self._turn():
                    raise Stuck
        finally:
            self._running = False
            events._set_running_loop(before)

    def _turn(self) -> bool:
        """Everything that is ready; False when nothing will ever be."""
        if not self._ready and not self._next_time():
            return False
        ready, self._ready = self._ready, []
        if self._shuffled and (count := len(ready)) > 1:
            if count == 2:
                if self._random.random() < 0.5:
                    ready.reverse()
            else:
                self._random.shuffle(ready)
        for handle in ready:
            callback = handle._callback
            if callback is None:
                continue
            process = handle._process
            if process is not None:
                if process.stopped or not process.alive:
                    # Of the dead: for `close` alone.
                    process.parked.append(handle)
                    continue
                process.steps += 1
                if process.steps == process.fuse:
                    self.kill(process)
                    process.parked.append(handle)
                    continue
            self.steps += 1
            handle._context.run(callback, *handle._args)
        return True

    def _next_time(self) -> bool:
        timers = self._timers
        while timers and (timers[0][2]._callback is None or self._is_dead(timers[0][2])):
            heappop(timers)
        if not timers:
            return False
        self._now = now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= now:
            self._ready.append(heappop(timers)[2])
        return True

    @staticmethod
    def _is_dead(handle: SimHandle) -> bool:
        return handle._process is not None and not handle._process.alive

    # -- processes -----------------------------------------------------------------------------------------

    def spawn(self, process: Process, main: Callable[[], Coroutine[Any, Any, Any]]) -> SimTask:
        """Begin `main` as the process's first task."""
        return process.context.run(lambda: self.create_task(main()))

    def kill(self, process: Process) -> None:
        """Nothing of it runs any more."""
        process.alive = False
        if process.on_death is not None:
            # Whoever watches it learns in a turn of its own.
            self.call_soon(process.on_death, context=OUTSIDE)

    @staticmethod
    def stop(process: Process) -> None:
        """Run nothing of it until `go_on`."""
        process.stopped = True

    def go_on(self, process: Process) -> None:
        """What became ready meanwhile runs now."""
        process.stopped = False
        self._ready.extend(process.parked)
        process.parked.clear()

    def close(self, processes: list[Process]) -> None:  # type: ignore[override]
        """Take every task apart, the dead ones' too: none is left for the collector to complain of."""
        for process in processes:
            process.alive, process.stopped, process.fuse = True, False, -1
            self.go_on(process)
        tasks = [task for tasks in (self._tasks, *(each.tasks for each in processes)) for task in tasks]
        before = events._get_running_loop()
        events._set_running_loop(self)
        self._shuffled = False
        for _ in range(20):
            left = [task for task in tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            while self._ready:
                self._turn()
            self._timers.clear()
        events._set_running_loop(before)
        for task in tasks:
            if task.done():
                # Read, so that no one is told that it was not.
                task.cancelled() or task.exception()
            else:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
        self._closed = True
