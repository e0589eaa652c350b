"""Answers as they are written: who watches one sees what was shown so far, then each sentence as it passes.

    expected ──begin──▶ writing ──sentence──▶ writing ──finish──▶ finished, kept for a while
                           │ begin again: the worker had to start over
                           ▼
             what was shown and comes out the same is not shown twice; what comes out otherwise is taken back

Pure but for the event loop: time is passed in. Sentences are shown to the customer who asked, to nobody else.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from services.chat.domain import Sentence
from weir.errors import AccessDenied, NeighbourUnavailable, WeirError


class Outcome(StrEnum):
    """How an answer ended."""

    ANSWERED = "answered"
    HANDED_OVER = "handed_over"
    REFUSED = "refused"
    FAILED = "failed"  # no reply was made of this attempt; another may follow


@dataclass(frozen=True, slots=True)
class Shown:
    """One more sentence; index counts from 0."""

    index: int
    sentence: Sentence


@dataclass(frozen=True, slots=True)
class TakenBack:
    """Sentences from `index` on do not stand any more: the answer was begun again and came out otherwise."""

    index: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole; `sentence_count` of its sentences stand."""

    outcome: Outcome
    sentence_count: int


Event = Shown | TakenBack | Finished


class NotWatchable(NeighbourUnavailable):
    """There is no such answer here, and none began while the watcher waited."""

    def __init__(self, waited_s: float) -> None:
        self.waited_s = waited_s
        super().__init__(
            f"No answer to this event is being written here; waited {waited_s:.0f} s. "
            "Ask another worker, or read the reply from its topic."
        )


class TooManyWatchers(WeirError):
    """The bound on watchers is reached."""

    retriable = True

    def __init__(self, watchers_max: int) -> None:
        self.watchers_max = watchers_max
        super().__init__(f"{watchers_max} watchers are served already. Ask again, or read the topic.")


@dataclass(slots=True)
class _Answer:
    customer: str = field(repr=False)
    sentences: list[Sentence] = field(default_factory=list)
    # What this attempt has come to, where an earlier one had shown more.
    reached: int = 0
    outcome: Outcome | None = None
    ended_at_s: float = 0.0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    # From where on something was taken back, each time.
    taken_back: list[int] = field(default_factory=list)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Writing:
    """One attempt at an answer; what its writer holds."""

    def __init__(self, answers: "LiveAnswers", event_id: str, answer: _Answer) -> None:
        self._answers, self._event_id, self._answer = answers, event_id, answer

    def show(self, sentence: Sentence) -> None:
        """The next sentence; nothing happens to a watcher who has seen the very same before."""
        answer = self._answer
        at = answer.reached
        if at < len(answer.sentences) and answer.sentences[at] != sentence:
            self._take_back(at)
        if at == len(answer.sentences):
            answer.sentences.append(sentence)
        answer.reached = at + 1
        answer.wake()

    def finish(self, outcome: Outcome) -> None:
        """No sentence follows."""
        answer = self._answer
        if answer.reached < len(answer.sentences):
            self._take_back(answer.reached)
        answer.outcome = outcome
        self._answers.ended(self._event_id, answer)
        answer.wake()

    def _take_back(self, index: int) -> None:
        del self._answer.sentences[index:]
        self._answer.taken_back.append(index)


class LiveAnswers:
    """The answers of one worker that are being written, and those that have just been.

    Args:
        now_s: a clock that never goes back.
        kept_s: how long a finished answer can still be watched.
        kept_max: finished answers at most; the oldest go first.
        watchers_max: at once.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        *,
        kept_s: float = 60.0,
        kept_max: int = 10_000,
        watchers_max: int = 1_000,
    ) -> None:
        self._now_s, self._kept_s, self._kept_max, self._watchers_max = now_s, kept_s, kept_max, watchers_max
        self._answers: dict[str, _Answer] = {}
        self._finished: OrderedDict[str, _Answer] = OrderedDict()
        self._begun = asyncio.Event()
        self.watcher_count = 0

    def begin(self, event_id: str, customer: str) -> Writing:
        """An answer to the event is written now; perhaps again, after a roll back.

        Args:
            customer: whose message it was, by pseudonym.
        """
        self._forget_old()
        answer = self._answers.get(event_id)
        if answer is None or answer.customer != customer:
            answer = self._answers[event_id] = _Answer(customer)
        self._finished.pop(event_id, None)
        answer.reached, answer.outcome = 0, None
        self._begun.set()
        self._begun = asyncio.Event()
        return Writing(self, event_id, answer)

    def ended(self, event_id: str, answer: _Answer) -> None:
        """Keep it for those who come late."""
        answer.ended_at_s = self._now_s()
        if self._answers.get(event_id) is answer:
            self._finished[event_id] = answer
        self._forget_old()

    async def watch(
        self, event_id: str, customer: str, *, wait_s: float = 10.0
    ) -> AsyncGenerator[Event, None]:
        """What was shown of an answer, then what follows, until it is finished.

        Args:
            wait_s: how long the answer may take to begin: an app watches as soon as it has published.
        Raises:
            NotWatchable: it did not begin. TooManyWatchers: ask again.
            AccessDenied: another customer's.
        """
        if self.watcher_count >= self._watchers_max:
            raise TooManyWatchers(self._watchers_max)
        self.watcher_count += 1
        try:
            answer = await self._found(event_id, wait_s)
            if answer.customer != customer:
                raise AccessDenied("This answer is another customer's.")
            async for event in _follow(answer):
                yield event
        finally:
            self.watcher_count -= 1

    async def _found(self, event_id: str, wait_s: float) -> _Answer:
        try:
            async with asyncio.timeout(wait_s):
                while (answer := self._answers.get(event_id)) is None:
                    await self._begun.wait()
        except TimeoutError:
            raise NotWatchable(wait_s) from None
        return answer

    def _forget_old(self) -> None:
        before_s = self._now_s() - self._kept_s
        while self._finished:
            event_id, answer = next(iter(self._finished.items()))
            if answer.ended_at_s > before_s and len(self._finished) <= self._kept_max:
                return
            del self._finished[event_id]
            if self._answers.get(event_id) is answer:
                del self._answers[event_id]


async def _follow(answer: _Answer) -> AsyncIterator[Event]:
    seen, heard = 0, len(answer.taken_back)
    while True:
        changed = answer.changed
        if news := answer.taken_back[heard:]:
            heard += len(news)
            if min(news) < seen:
                seen = min(news)
                yield TakenBack(seen)
        elif seen < len(answer.sentences):
            seen += 1
            yield Shown(seen - 1, answer.sentences[seen - 1])
        elif answer.outcome is not None:
            yield Finished(answer.outcome, seen)
            return
        elif changed is answer.changed:
            await changed.wait()
