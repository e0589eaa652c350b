"""All conversations of one worker's partitions, as turns that follow one another.

A turn is begun when its message is read and ends when its answer is whole, seconds later; the next message of
the same conversation waits for that, those of others do not. So a conversation is held as the promise of its
newest value: beginning a turn takes the promise that was there and leaves the turn's own.

    read         before = promise of conversation 7;  conversation 7 := after, a new promise, of the epoch
    answered     after is kept, with the conversation that the turn has made of `before`
    rolled back  to before an epoch: each promise that its turns had replaced is put back
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from services.chat.conversation.value import Conversation

Promise = asyncio.Future[Conversation]


@dataclass(frozen=True, slots=True)
class Link:
    """One turn's place: `before` is awaited, `after` is given its result."""

    before: Promise
    after: Promise


@dataclass(frozen=True, slots=True)
class _Undo:
    epoch: int
    partition: int
    key: bytes
    # What stood there; None when nothing did.
    promise: Promise | None


class Conversations:
    """Used within one event loop.

    Args:
        rows_max: of all partitions; the conversation that was quiet for longest is let go beyond it.
    """

    def __init__(self, rows_max: int) -> None:
        self._rows_max = rows_max
        # By partition, in the order of their last turn.
        self._rows: dict[int, dict[bytes, Promise]] = {}
        self._undo: deque[_Undo] = deque()

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    def attach(self, partition: int, rows: Mapping[bytes, Conversation]) -> None:
        """The partition is ours, with these conversations as of the group's last commit."""
        quiet_first = sorted(rows.items(), key=lambda row: row[1].touched_ms)
        self._rows[partition] = {key: _kept(conversation) for key, conversation in quiet_first}

    def drop(self, partition: int) -> None:
        """The partition is another's; turns under way may still end."""
        self._rows.pop(partition, None)

    def begin(self, epoch: int, partition: int, key: bytes) -> Link:
        """A turn of a conversation, which is new when it is not known."""
        rows = self._rows[partition]
        before = rows.pop(key, None)
        self._undo.append(_Undo(epoch, partition, key, before))
        after: Promise = asyncio.get_running_loop().create_future()
        rows[key] = after
        return Link(before if before is not None else _kept(Conversation()), after)

    def let_go(self, epoch: int, partition: int) -> list[bytes]:
        """Let go of the partition's quietest conversations where there are too many; their keys.

        One whose answer is under way stays.
        """
        gone: list[bytes] = []
        rows = self._rows[partition]
        excess = len(self) - self._rows_max
        for key in list(rows)[: max(excess, 0)]:
            if not rows[key].done():
                break
            self._undo.append(_Undo(epoch, partition, key, rows.pop(key)))
            gone.append(key)
        return gone

    def release(self, epoch: int) -> None:
        """Epochs up to this one cannot be rolled back any more."""
        while self._undo and self._undo[0].epoch <= epoch:
            self._undo.popleft()

    def roll_back(self, epoch: int) -> None:
        """Put every conversation back to before `epoch`."""
        while self._undo and self._undo[-1].epoch >= epoch:
            undo = self._undo.pop()
            if (rows := self._rows.get(undo.partition)) is None:
                continue
            rows.pop(undo.key, None)
            if undo.promise is not None:
                rows[undo.key] = undo.promise


def _kept(conversation: Conversation) -> Promise:
    promise: Promise = asyncio.get_running_loop().create_future()
    promise.set_result(conversation)
    return promise
