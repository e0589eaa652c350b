"""Which offset may be committed: batches finish in any order, a commit never passes an unfinished one.

delivered ──ack──▶ done ──all before it done──▶ committable
    └──revoke──▶ forgotten (the next owner reads it again; a late ack changes nothing)
"""

from collections import deque
from collections.abc import Hashable


class PartitionOffsets:
    """The batches of one partition between delivery and commit.

    Faust closes holes between offsets by declaring every offset of the hole acknowledged; for batches
    that would commit past a batch that is still being worked on. Here a batch is one entry.
    """

    def __init__(self) -> None:
        self._delivered: deque[tuple[Hashable, int]] = deque()
        self._done: set[Hashable] = set()
        self._committable: int | None = None

    def deliver(self, token: Hashable, next_offset: int) -> None:
        """A batch goes to its agent; `next_offset` is the one after its last record."""
        self._delivered.append((token, next_offset))

    def ack(self, token: Hashable) -> bool:
        """The batch is finished; False when it is not (or no longer) known here."""
        if token in self._done or all(token != known for known, _ in self._delivered):
            return False
        self._done.add(token)
        while self._delivered and self._delivered[0][0] in self._done:
            token, self._committable = self._delivered.popleft()
            self._done.discard(token)
        return True

    def withdraw(self, token: Hashable) -> None:
        """The batch was taken back before anyone worked on it."""
        self._delivered = deque(entry for entry in self._delivered if entry[0] != token)

    def knows(self, token: Hashable) -> bool:
        """Whether the batch is delivered and was not forgotten, finished in turn or withdrawn since."""
        return any(token == known for known, _ in self._delivered)

    @property
    def committable(self) -> int | None:
        """The offset to commit (the next one to read), or None when nothing is finished yet."""
        return self._committable

    @property
    def in_flight(self) -> int:
        """Batches delivered and not yet followed by a committable offset."""
        return len(self._delivered)
