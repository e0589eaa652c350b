"""The network of the simulation, and what a client makes of it: lost, late and doubled requests."""

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any

from tests.support.sim_loop import OUTSIDE, PROCESS, Process, SimLoop
from weir.errors import WeirError
from weir.kafka import errors as kafka
from weir.kafka._codes import Code

RPC_S = 0.3
# How long a client asks again before it says that there is no answer.
ASK_S = 0.9


class Fenced(kafka.Fenced):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class NotMember(kafka.NotMember):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class TransactionAborted(kafka.TransactionAborted):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class Unavailable(kafka.Unavailable):
    def __init__(self, text: str) -> None:
        WeirError.__init__(self, text)


class Network:
    """Carries requests: each may be late, lost on its way, or done with its answer lost (both give None)."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self._loop, self._random = loop, random.random
        self.loss = self.slow = self.twice = 0.0
        self.delay_s = 0.002
        # Requests of these names are often lost on their way, or late.
        self.lost: tuple[str, ...] = ()
        self.late: tuple[str, ...] = ()
        self.cut: list[Process] = []
        self.down = False
        self.closed = False
        # A call of which the trace says nothing as long as it goes well.
        self.quiet: Callable[..., Any] | None = None
        self.trace: deque[tuple[Any, ...]] = deque(maxlen=4000)

    def _delay(self) -> float:
        drawn = self._random()
        if drawn < self.slow:
            return self._random() * 2 * RPC_S
        return 2 * drawn * self.delay_s

    def call(
        self, function: Callable[..., Any], *args: Any, waits_s: float = 0.0, again: bool = False
    ) -> "asyncio.Future[Any]":
        """The answer, or None for none in time.

        Args:
            waits_s: how long the broker may think; then `function` is handed a `respond` first.
            again: whether the request may arrive twice, as a client sends it again on a new connection.
        """
        loop, random = self._loop, self._random
        future = loop.create_future()
        process = PROCESS.get()
        sent_s = loop.time()
        ends_s = sent_s + RPC_S + waits_s
        call = (future, process, function, args, ends_s, waits_s > 0)
        if random() < self.loss or (self.lost and function.__name__ in self.lost and random() < 0.4):
            self._lose(future, process, function, ends_s)
            return future
        delay_s = self._delay()
        if self.late and function.__name__ in self.late and random() < 0.4:
            delay_s += random() * 2 * RPC_S
        loop.call_at(sent_s + delay_s, self._arrive, *call, context=OUTSIDE)
        if again and random() < self.twice:
            loop.call_at(sent_s + self._delay() * 3, self._arrive, *call, context=OUTSIDE)
        return future

    def _lose(
        self,
        future: "asyncio.Future[Any]",
        process: Process | None,
        function: Callable[..., Any],
        ends_s: float,
    ) -> None:
        if process is not None:
            self._loop.call_at(ends_s, self._deliver, future, None, context=process.context)
        self.trace.append((self._loop.time(), _name(process), function.__name__, (), "lost"))

    @staticmethod
    def _deliver(future: "asyncio.Future[Any]", answer: Any) -> None:
        if not future.done():
            future.set_result(answer)

    def _arrive(
        self,
        future: "asyncio.Future[Any]",
        process: Process | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        ends_s: float,
        waits: bool,
    ) -> None:
        if self.closed:
            return
        if self.down or process in self.cut:
            self._lose(future, process, function, ends_s)
            return

        def respond(answer: Any) -> None:
            now_s = self._loop.time()
            if self.closed:
                return
            if self._random() < self.loss or self.down or process in self.cut:
                self._lose(future, process, function, ends_s)
                return
            back_s = now_s + self._delay()
            if back_s > ends_s:
                back_s, answer = ends_s, None
            if process is not None:
                self._loop.call_at(back_s, self._deliver, future, answer, context=process.context)

        if waits:
            function(respond, *args)
            return
        answer = function(*args)
        if not (answer is Code.NONE and function == self.quiet):
            self.trace.append((self._loop.time(), _name(process), function.__name__, args, answer))
        respond(answer)


def _name(process: Process | None) -> str:
    return "-" if process is None else process.name
