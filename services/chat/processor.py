"""The chat service as the engine drives it: messages into turns, turns into records, state by promises."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.chat.conversation import Conversation, Conversations, Link
from services.chat.metrics import ChatMetrics
from services.chat.reading import MessageReading, Refused
from services.chat.restore import Restoring
from services.chat.streaming.live import LiveAnswers
from services.chat.streaming.live import Outcome as Shown
from services.chat.turn.respond import Show
from services.chat.turn.values import AgentReply, Message, Outcome, Turned
from services.chat.writing import ReplyWriting, Work
from weir.errors import BadInput
from weir.kafka.records import AnyOutput
from weir.obs.log import get_logger
from weir.obs.stream_metrics import StreamMetrics
from weir.streams.batch import BatchGroup, RecordBatch
from weir.streams.ports import Place

log = get_logger("weir.chat.processor")

SchemasAtHand = Callable[[Sequence[bytes | None]], Awaitable[None]]
Pseudonym = Callable[[bytes], bytes]

_SHOWN = {Outcome.HANDED_OVER: Shown.HANDED_OVER, Outcome.REFUSED: Shown.REFUSED}
NOT_ANSWERED = Refused("not_answered", "an error while it was answered; the worker's log names its kind")


class Answers(Protocol):
    """`services.chat.turn.respond.Responder`."""

    async def __call__(self, message: Message, before: Conversation, show: Show) -> Turned | None:
        """All that becomes of a message."""

    def agent(self, reply: AgentReply, before: Conversation) -> Turned | None:
        """A person's reply goes to the customer."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A record of a group, and its place among the turns of its conversation."""

    work: Work
    link: Link | None


@dataclass(frozen=True, slots=True)
class ReadGroup:
    """A group's records, in their order; gone: conversations that were let go, by partition."""

    begun: Sequence[Begun]
    gone: Sequence[tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Counts:
    """What is counted once a group is durable."""

    works: Sequence[Work]


class ChatProcessor:
    """See `weir.streams.ports.Processor`.

    Args:
        pseudonym: of a conversation's and a customer's id.
        turns_max: answered at once; more wait.
    """

    def __init__(
        self,
        conversations: Conversations,
        reading: MessageReading,
        answers: Answers,
        writing: ReplyWriting,
        restoring: Restoring,
        live: LiveAnswers,
        *,
        pseudonym: Pseudonym,
        schemas: SchemasAtHand,
        turns_max: int,
        metrics: ChatMetrics,
        stream_metrics: StreamMetrics,
        now_ms: Callable[[], int],
    ) -> None:
        self.conversations = conversations
        self._reading, self._answers, self._write, self._restoring = reading, answers, writing, restoring
        self._live, self._pseudonym, self._schemas = live, pseudonym, schemas
        self._slots = asyncio.Semaphore(turns_max)
        self._metrics, self._stream_metrics, self._now_ms = metrics, stream_metrics, now_ms
        # The next offset of each place, and what it was before each epoch.
        self._positions: dict[Place, int] = {}
        self._moves: deque[tuple[int, Place, int]] = deque()

    # -- a group's way -------------------------------------------------------------------------------------

    async def prepare(self, group: BatchGroup) -> None:
        """Return when the schemas that the records name are known."""
        await self._schemas(group.values)

    def read(self, epoch: int, group: BatchGroup) -> ReadGroup:
        """Decode, and give each message its place in its conversation."""
        begun, gone = [], []
        for batch in group.batches:
            for row in range(len(batch)):
                begun.append(self._begin(epoch, batch, row))
            gone += [(batch.partition, key) for key in self.conversations.let_go(epoch, batch.partition)]
            place = batch.topic, batch.partition
            self._moves.append((epoch, place, self._positions[place]))
            self._positions[place] = batch.offset_last + 1
        return ReadGroup(begun, gone)

    def _begin(self, epoch: int, batch: RecordBatch, row: int) -> Begun:
        record = self._reading(batch.values[row])
        if isinstance(record, Refused):
            return Begun(Work(batch, row, record, None, None), None)
        key = self._pseudonym(b"conversation:" + record.conversation_id.encode())
        link = self.conversations.begin(epoch, batch.partition, key)
        return Begun(Work(batch, row, record, key, None), link)

    def touched(self, read: ReadGroup) -> Mapping[Place, int]:
        """A group changes the conversations of its own partitions only."""
        return {}

    async def score(self, read: ReadGroup) -> Sequence[Work]:
        """Answer: conversations side by side, the messages of one after one another."""
        async with asyncio.TaskGroup() as tasks:
            turns = [tasks.create_task(self._turn(begun)) for begun in read.begun]
        return [turn.result() for turn in turns]

    async def _turn(self, begun: Begun) -> Work:
        work, link = begun.work, begun.link
        if link is None or isinstance(work.record, Refused):
            return work
        before = await link.before
        try:
            async with self._slots:
                turned = await self._turned(work.record, before)
            done = replace(work, turned=turned)
        except BadInput as error:
            done = replace(work, record=Refused(error.reason, error.detail))
        except Exception as error:  # noqa: BLE001 - one message must not stop its partition
            # Its kind alone: the text may hold what the customer wrote.
            log.error("turn_failed", error=type(error).__name__)
            done = replace(work, record=NOT_ANSWERED)
        link.after.set_result(done.turned.conversation if done.turned is not None else before)
        return done

    async def _turned(self, record: Message | AgentReply, before: Conversation) -> Turned | None:
        if isinstance(record, AgentReply):
            return self._answers.agent(record, before)
        if before.has_seen(record.event_id):
            return None
        writing = self._live.begin(record.event_id, self._pseudonym(record.customer_id.encode()).decode())
        outcome = Shown.FAILED
        try:
            turned = await self._answers(record, before, writing.show)
            if turned is not None:
                outcome = _SHOWN.get(turned.outcome, Shown.ANSWERED)
            return turned
        finally:
            # Whoever watches is told, whatever ended it.
            writing.finish(outcome)

    async def write(
        self, group: BatchGroup, read: ReadGroup, scored: Sequence[Work]
    ) -> tuple[Sequence[AnyOutput], Counts]:
        """Replies, hand-overs, effects, audit, state and dead letters."""
        return await self._write(scored, read.gone), Counts(scored)

    def counted(self, group: BatchGroup, counts: Counts, send_s: float) -> None:
        """The group's results are durable."""
        shared = self._metrics.shared
        shared.stage("send", send_s)
        refused = Counter(each.record.reason for each in counts.works if isinstance(each.record, Refused))
        for reason, count in refused.items():
            shared.dead_lettered(reason, count)
        for work in counts.works:
            if work.turned is not None:
                self._metrics.turned(work.turned)
            elif not isinstance(work.record, Refused):
                self._metrics.duplicate()
        if len(group):
            stamps, now_ms = group.timestamps_ms, self._now_ms()
            shared.latency([(now_ms - stamps[0]) / 1000, (now_ms - stamps[-1]) / 1000])

    def has_side_inputs(self) -> bool:
        """Nothing comes beside the messages."""
        return False

    # -- epochs and partitions -----------------------------------------------------------------------------

    def roll_back(self, epoch: int) -> None:
        """Put the conversations back to before `epoch`."""
        self._stream_metrics.aborted()
        self.conversations.roll_back(epoch)
        while self._moves and self._moves[-1][0] >= epoch:
            _, place, offset = self._moves.pop()
            if place in self._positions:
                self._positions[place] = offset

    def release(self, epoch: int) -> None:
        """Epochs up to this one are committed."""
        self.conversations.release(epoch)
        while self._moves and self._moves[0][0] <= epoch:
            self._moves.popleft()

    def position(self, place: Place) -> int:
        """The next message that the state expects."""
        return self._positions[place]

    async def restore(self, place: Place, committed: int | None) -> int:
        """Bring the partition's conversations here."""
        rows = await self._restoring(place[1])
        self.conversations.attach(place[1], rows)
        self._positions[place] = committed or 0
        return committed or 0

    def drop(self, place: Place) -> None:
        """Another worker owns the partition."""
        self._positions.pop(place, None)
        self.conversations.drop(place[1])
