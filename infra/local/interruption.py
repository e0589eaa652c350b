"""Ctrl-C and SIGTERM end a command as one thing, and are never lost.

An exception out of a signal handler is: raised while a destructor runs, Python prints it and goes on. So
none is raised there; the signal is remembered, and whoever waits asks.
"""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Whether the command was asked to end, from its main thread."""

    def __init__(self) -> None:
        self.asked = False
        self._ended = False
        self._cancel: tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]] | None = None

    def check(self) -> None:
        """To be called between steps and while waiting.

        Raises:
            KeyboardInterrupt: a signal came, now or before.
        """
        if self.asked and not self._ended:
            raise KeyboardInterrupt

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        """Run it to its end; a signal cancels it.

        Raises:
            KeyboardInterrupt: it was ended by a signal.
        """

        async def cancellable() -> None:
            task = asyncio.create_task(main)
            self._cancel = asyncio.get_running_loop(), task
            if self.asked:
                task.cancel()
            try:
                await task
            finally:
                self._cancel = None

        try:
            asyncio.run(cancellable())
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        self.check()

    def no_more(self) -> None:
        """What follows is done whole, whoever asks."""
        self._ended = True

    def _signalled(self, _number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._cancel is not None:
            loop, task = self._cancel
            loop.call_soon_threadsafe(task.cancel)
            return
        if not _destroying(frame):
            self.check()


def _destroying(frame: FrameType | None) -> bool:
    """Whether the frame runs for a destructor, in which Python prints an exception and drops it."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@contextmanager
def interruption() -> Iterator[Interruption]:
    """SIGINT and SIGTERM go to it until the end of the block."""
    asked = Interruption()
    before = {number: signal.signal(number, asked._signalled) for number in _SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
