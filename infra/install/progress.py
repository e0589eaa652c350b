"""What a person sees while something long goes on: a live line on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_MEGABYTE = 1_000_000
_LIVE_EVERY_S = 0.1
_PLAIN_EVERY_S = 5.0
_WIDTH = 78


class Reporter:
    """Writes progress to one stream; knows whether a person watches it live."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self.live = self._stream.isatty()

    def line(self, text: str) -> None:
        """One whole line, over whatever live line stands there."""
        self._stream.write(f"{self._clear}{text}\n")
        self._stream.flush()

    def update(self, text: str) -> None:
        """A live line, replaced by the next; a plain line where nobody watches live."""
        self._stream.write(f"{self._clear}{text[:_WIDTH]}" if self.live else f"{text}\n")
        self._stream.flush()

    @property
    def _clear(self) -> str:
        return "\r\x1b[2K" if self.live else ""


class Meter:
    """Bytes that came, counted by many threads, of a total that is known or grows as it becomes known."""

    def __init__(self, total_bytes: int = 0) -> None:
        self._lock = threading.Lock()
        self.byte_count = 0
        self.total_bytes = total_bytes

    def add(self, byte_count: int) -> None:
        """Count more bytes; fewer, when a download starts over."""
        with self._lock:
            self.byte_count += byte_count

    def expect(self, byte_count: int) -> None:
        """More bytes are known to come."""
        with self._lock:
            self.total_bytes += byte_count


@contextmanager
def progress(reporter: Reporter, what: str, total_bytes: int = 0) -> Iterator[Meter]:
    """Tell how long `what` goes on, and how many bytes came, until the block ends."""
    meter = Meter(total_bytes)
    began = time.monotonic()
    finished = threading.Event()

    def said() -> str:
        elapsed = f"{time.monotonic() - began:.0f} s"
        if not meter.total_bytes:
            return f"{what}: {elapsed}"
        came, of = meter.byte_count / _MEGABYTE, meter.total_bytes / _MEGABYTE
        return f"{what}: {came:.1f} of {of:.1f} MB, {elapsed}"

    def tell() -> None:
        while not finished.wait(_LIVE_EVERY_S if reporter.live else _PLAIN_EVERY_S):
            reporter.update(said())

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield meter
    finally:
        finished.set()
        teller.join()
        if reporter.live:
            reporter.update("")


def seconds(value: float) -> str:
    """A duration as a person reads it: 12 ms, 3.4 s, 2 min 5 s."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    return f"{value // 60:.0f} min {value % 60:.0f} s"
