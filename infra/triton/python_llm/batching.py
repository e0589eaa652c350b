"""Requests to pieces of text: who waits, who is prefilled, who takes part in the next step.

    submitted ─▶ waiting ─▶ prefilled, a part between two steps ─▶ stepped with the others ─▶ finished

One thread calls `advance`; `submit` and `cancel` may come from any.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from text import Chooser, Sampling, TextStream, loops

# Tokens of a prompt between two steps: the others wait as long as that takes.
_PART_TOKENS = 64
# A beginning that two prompts in a row have in common is kept when it is as long as this.
_PREFIX_TOKENS_MIN = 16

STOP, LENGTH, LOOP, CANCELLED = "stop", "length", "loop", "cancelled"


class Refused(Exception):
    """The request cannot be answered; its text is for the caller."""


class Busy(Exception):
    """The request could be answered later; its text is for the caller."""


@dataclass
class Request:
    """One answer that is wanted.

    show: called with each piece of text, and at the end with the reason; from the thread that advances.
    is_cancelled: asked before each step.
    """

    tokens: Sequence[int]
    tokens_max: int
    sampling: Sampling
    stops: Sequence[str]
    show: Callable[[str, str | None], None]
    is_cancelled: Callable[[], bool] = lambda: False
    submitted_s: float = field(default_factory=time.monotonic)


class _Row:
    def __init__(self, request: Request, tokenizer) -> None:
        self.request, self.fed, self.last = request, 0, 0
        self.choose, self.text = Chooser(request.sampling), TextStream(tokenizer, request.stops)

    @property
    def is_fed(self) -> bool:
        return self.fed == len(self.request.tokens)


class Batcher:
    """Serves many requests with one engine.

    Args:
        waiting_max: requests that wait for a row; more are refused.
        measured: told of the queue's time of each request, in seconds.
    """

    def __init__(self, engine, tokenizer, *, waiting_max: int, measured=lambda queue_s: None) -> None:
        self._engine, self._tokenizer, self._waiting_max = engine, tokenizer, waiting_max
        self._measured = measured
        self._waiting: deque[Request] = deque()
        self._lock = threading.Lock()
        self.arrived = threading.Event()
        # In the order of the engine's rows; the last may still be fed its prompt.
        self._rows: list[_Row] = []
        self._before: Sequence[int] = ()

    def submit(self, request: Request) -> None:
        """Take a request.

        Raises:
            Refused: empty, or too long. Busy: too many wait.
        """
        room = self._engine.context - len(request.tokens)
        if not request.tokens:
            raise Refused("the prompt is empty")
        if room < request.tokens_max:
            raise Refused(
                f"{len(request.tokens)} tokens of prompt and {request.tokens_max} of answer are more than "
                f"the {self._engine.context} of a conversation"
            )
        with self._lock:
            if len(self._waiting) >= self._waiting_max:
                raise Busy(f"{self._waiting_max} requests wait already")
            self._waiting.append(request)
        self.arrived.set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self._rows and not self._waiting

    def advance(self) -> None:
        """Feed a part of one prompt, then step all rows that have theirs."""
        self._drop_cancelled()
        self._feed()
        # A row that is still being fed is the last one: the engine steps those before it.
        ready = [row for row in self._rows if row.is_fed]
        if not ready:
            return
        logits = self._engine.step([row.last for row in ready])
        ended = [row for row, line in zip(ready, logits, strict=True) if self._take(row, line)]
        for row in ended:
            self._leave(row)

    def fail(self, why: str) -> None:
        """End every request with an error."""
        with self._lock:
            waiting = list(self._waiting)
            self._waiting.clear()
        for request in [*(row.request for row in self._rows), *waiting]:
            request.show("", f"error: {why}")
        while self._rows:
            self._leave(self._rows[-1])

    def _feed(self) -> None:
        being_fed = bool(self._rows) and not self._rows[-1].is_fed
        if not being_fed and not self._begin():
            return
        row, number = self._rows[-1], len(self._rows) - 1
        tokens = row.request.tokens
        part = tokens[row.fed : row.fed + _PART_TOKENS]
        logits = self._engine.feed(number, part)
        row.fed += len(part)
        if row.fed < len(tokens):
            return
        common = _common(self._before, tokens)
        if common >= _PREFIX_TOKENS_MIN:
            self._engine.remember(number, tokens[:common])
        self._before = tokens
        if self._take(row, logits):
            self._leave(row)

    def _begin(self) -> bool:
        if self._engine.row_count == self._engine.rows_max:
            return False
        with self._lock:
            if not self._waiting:
                self.arrived.clear()
                return False
            request = self._waiting.popleft()
        self._measured(time.monotonic() - request.submitted_s)
        row = _Row(request, self._tokenizer)
        row.fed = self._engine.recall(self._engine.join(), request.tokens)
        self._rows.append(row)
        return True

    def _take(self, row: _Row, logits) -> bool:
        """Choose the row's next token and show what it brings; whether that was the last."""
        token, text, request = row.choose(logits), row.text, row.request
        if token in self._engine.ends:
            request.show(text.finish(), STOP)
            return True
        row.last = token
        piece = text.push(token)
        if text.stopped:
            request.show(piece, STOP)
        elif len(text.tokens) >= request.tokens_max:
            request.show(piece + text.finish(), LENGTH)
        elif loops(text.tokens):
            request.show(piece + text.finish(), LOOP)
        else:
            if piece:
                request.show(piece, None)
            return False
        return True

    def _drop_cancelled(self) -> None:
        for row in [row for row in self._rows if row.request.is_cancelled()]:
            row.request.show("", CANCELLED)
            self._leave(row)
        with self._lock:
            gone = [request for request in self._waiting if request.is_cancelled()]
            for request in gone:
                self._waiting.remove(request)
        for request in gone:
            request.show("", CANCELLED)

    def _leave(self, row: _Row) -> None:
        number, last = self._rows.index(row), len(self._rows) - 1
        if number < last - 1 and not self._rows[last].is_fed:
            # It stays the last one: the row before it fills the gap.
            self._engine.move(last - 1, number)
            self._rows[number] = self._rows[last - 1]
            number = last - 1
        self._engine.leave(number)
        moved = self._rows.pop()
        if number != last:
            self._rows[number] = moved


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning of both; one is left over of each."""
    most = min(len(one), len(other)) - 1
    return next((at for at in range(max(most, 0)) if one[at] != other[at]), max(most, 0))
