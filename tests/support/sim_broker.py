"""A broker in memory: logs, transactions and groups, with the protocol's answers, each a plain function call.

Everything durable survives; what a broker decides it decides at once, but a transaction's markers reach its
partitions one by one, later. Answers that are errors are `Code`s of the protocol.

Source: KIP-98, KIP-360, KIP-447, KIP-890 (second version: a leader adds its partition to the transaction
itself, the epoch is raised at each end) and Kafka 4.1's TransactionCoordinator and GroupCoordinator.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tests.support.sim_group import Respond, SimGroup
from weir.kafka._codes import Code

Place = tuple[str, int]

OFFSETS: Place = ("__consumer_offsets", 0)


class Segment:
    """A transaction's records in one partition; `state` is None while open, then whether it committed."""

    __slots__ = ("first", "state", "values")

    def __init__(self, first: int) -> None:
        self.first = first
        self.state: bool | None = None
        self.values: list[Any] = []


class Log:
    """A partition: entries are (value, segment), control records have the value None."""

    __slots__ = ("entries", "open", "producers")

    def __init__(self) -> None:
        self.entries: list[tuple[Any, Segment | None]] = []
        self.open: dict[int, Segment] = {}
        # Of each producer: epoch, next sequence number, the epoch's batches by first sequence number.
        self.producers: dict[int, tuple[int, int, dict[int, int]]] = {}

    @property
    def end(self) -> int:
        """The high watermark."""
        return len(self.entries)

    @property
    def stable_end(self) -> int:
        """The last stable offset: everything before it is decided."""
        return min((segment.first for segment in self.open.values()), default=len(self.entries))

    def read(self, position: int, count_max: int = 1 << 30) -> tuple[list[tuple[int, Any]], int]:
        """What `read_committed` sees from `position` on, and the position after it."""
        records: list[tuple[int, Any]] = []
        end = self.stable_end
        while position < end and len(records) < count_max:
            value, segment = self.entries[position]
            if value is not None and (segment is None or segment.state):
                records.append((position, value))
            position += 1
        return records, position


class Transaction:
    """What the coordinator knows of a transactional id."""

    __slots__ = ("epoch", "id", "pid", "places", "started_s", "state", "timeout_s")

    def __init__(self, id: str, pid: int, timeout_s: float) -> None:
        self.id, self.pid, self.timeout_s = id, pid, timeout_s
        self.epoch = -1
        self.state = "empty"  # empty, ongoing, prepare_commit, prepare_abort, complete_commit, complete_abort
        self.places: dict[Place, Segment | None] = {}
        self.started_s = 0.0

    @property
    def preparing(self) -> bool:
        """Whether markers are on their way."""
        return self.state.startswith("prepare")


class SimBroker:
    """All of a cluster's answers; see the module.

    Args:
        later: calls a function after so many seconds, in nobody's name.
        now: virtual seconds.
        random: draws delays, assignments.
        decided: told of each transaction as it is decided: (transaction, committed).
    """

    def __init__(
        self,
        places: Sequence[Place],
        inputs: Sequence[Place],
        *,
        later: Callable[..., Any],
        now: Callable[[], float],
        random: Callable[[], float],
        session_s: float,
        rebalance_s: float,
        marker_s: float,
        decided: Callable[[Transaction, bool], None],
    ) -> None:
        self.logs = {place: Log() for place in places}
        self._later, self._now, self._random = later, now, random
        self._marker_s = marker_s
        self._decided = decided
        self.transactions: dict[str, Transaction] = {}
        self._by_pid: dict[int, Transaction] = {}
        # The group's offsets: (offset, owner, index in the offsets' log); pending ones by producer.
        self.offsets: dict[Place, tuple[int, str, int]] = {}
        self.pending: dict[int, dict[Place, tuple[int, str, int]]] = {}
        self._offset_index = 0
        self.group = SimGroup(
            inputs,
            later=later,
            now=now,
            random=random,
            session_s=session_s,
            rebalance_s=rebalance_s,
        )
        self._waiters: list[tuple[Respond, list[tuple[Place, int]], int]] = []
        # Switched off by the tests of the checker.
        self.checks_generation = True

    # -- logs ----------------------------------------------------------------------------------------------

    def append(self, place: Place, value: Any) -> int:
        """A plain record of nobody's transaction; returns its offset."""
        log = self.logs[place]
        log.entries.append((value, None))
        self._changed()
        return log.end - 1

    def end_offset(self, place: Place) -> int:
        """The high watermark: what is beyond the last stable offset counts too."""
        return self.logs[place].end

    def stable_end_offset(self, place: Place) -> int:
        """The last stable offset."""
        return self.logs[place].stable_end

    def fetch(self, respond: Respond, wants: list[tuple[Place, int]], count_max: int, wait_s: float) -> None:
        """Answer {place: (records, next position)} for those that moved; waits for one that does."""
        if (answer := self._fetched(wants, count_max)) or not wait_s:
            respond(answer)
            return
        waiter = (respond, wants, count_max)
        self._waiters.append(waiter)
        self._later(wait_s, self._fetch_late, waiter)

    def _fetched(self, wants: list[tuple[Place, int]], count_max: int) -> dict[Place, Any]:
        answer = {}
        for place, position in wants:
            log = self.logs[place]
            if position < len(log.entries):
                read = log.read(position, count_max)
                if read[1] > position:
                    answer[place] = read
        return answer

    def _fetch_late(self, waiter: Any) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            waiter[0]({})

    def _changed(self) -> None:
        left = []
        for waiter in self._waiters:
            if answer := self._fetched(waiter[1], waiter[2]):
                waiter[0](answer)
            else:
                left.append(waiter)
        self._waiters = left

    # -- a partition's leader ------------------------------------------------------------------------------

    def produce(self, place: Place, pid: int, epoch: int, first: int, values: Sequence[Any]) -> Code:
        """Append a batch of a transaction; a batch that is there already is acknowledged again."""
        log = self.logs[place]
        known_epoch, expected, batches = log.producers.get(pid, (-1, 0, {}))
        if epoch < known_epoch:
            return Code.INVALID_PRODUCER_EPOCH
        if epoch > known_epoch:
            expected, batches = 0, {}
        if batches.get(first) == len(values):
            return Code.NONE
        if first != expected:
            return Code.OUT_OF_ORDER_SEQUENCE_NUMBER
        # One of an earlier epoch waits for its marker, and so does the coordinator.
        segment = log.open.get(pid) if epoch == known_epoch else None
        if segment is None:
            if (refused := self._add(pid, epoch, place)) is not Code.NONE:
                return refused
            segment = log.open[pid] = Segment(log.end)
            self._by_pid[pid].places[place] = segment
        log.producers[pid] = epoch, first + len(values), {**batches, first: len(values)}
        segment.values.extend(values)
        log.entries.extend((value, segment) for value in values)
        return Code.NONE

    def _mark(self, transaction: Transaction, place: Place, segment: Segment | None, commit: bool) -> None:
        if place == OFFSETS:
            for each, committed in self.pending.pop(transaction.pid, {}).items():
                # Markers of two producers may come in another order than their offsets.
                if commit and (each not in self.offsets or self.offsets[each][2] < committed[2]):
                    self.offsets[each] = committed
        else:
            log = self.logs[place]
            log.producers[transaction.pid] = transaction.epoch, 0, {}
            if segment is not None:
                segment.state = commit
                del log.open[transaction.pid]
            log.entries.append((None, None))
        del transaction.places[place]
        if not transaction.places:
            transaction.state = "complete_commit" if commit else "complete_abort"
        self._changed()

    # -- transaction coordinator ---------------------------------------------------------------------------

    def init_producer(self, id: str, timeout_s: float) -> Any:
        """Fence whoever has the id, end what it had begun; (producer id, epoch) once that is done."""
        transaction = self.transactions.get(id)
        if transaction is None:
            pid = len(self.transactions) + 1
            transaction = self.transactions[id] = self._by_pid[pid] = Transaction(id, pid, timeout_s)
        if transaction.state == "ongoing":
            self._fence(transaction)
        if transaction.preparing:
            return Code.CONCURRENT_TRANSACTIONS
        transaction.epoch += 1
        transaction.state = "empty"
        return transaction.pid, transaction.epoch

    def _add(self, pid: int, epoch: int, place: Place) -> Code:
        transaction = self._by_pid[pid]
        if epoch != transaction.epoch:
            return Code.PRODUCER_FENCED
        if transaction.preparing:
            return Code.CONCURRENT_TRANSACTIONS
        if transaction.state != "ongoing":
            transaction.state = "ongoing"
            transaction.started_s = self._now()
            self._later(transaction.timeout_s, self._expire, transaction, epoch)
        transaction.places.setdefault(place, None)
        return Code.NONE

    def end_txn(self, id: str, pid: int, epoch: int, commit: bool) -> Any:
        """Decide; answers the producer's next epoch before the markers are written."""
        transaction = self.transactions[id]
        verdict = "commit" if commit else "abort"
        state, again = transaction.state, epoch == transaction.epoch - 1
        if state.startswith("prepare"):
            if not again:
                return Code.PRODUCER_FENCED
            return Code.CONCURRENT_TRANSACTIONS if state == f"prepare_{verdict}" else Code.INVALID_TXN_STATE
        if state.startswith("complete") and again:
            # The answer to this very request was lost.
            return transaction.epoch if state == f"complete_{verdict}" else Code.INVALID_TXN_STATE
        if epoch != transaction.epoch:
            return Code.PRODUCER_FENCED
        if state == "ongoing":
            self._end(transaction, commit)
        elif commit:
            return Code.INVALID_TXN_STATE
        else:
            transaction.epoch += 1
            transaction.state = "complete_abort"
        return transaction.epoch

    def _expire(self, transaction: Transaction, epoch: int) -> None:
        if transaction.state == "ongoing" and transaction.epoch == epoch:
            self._fence(transaction)

    def _fence(self, transaction: Transaction) -> None:
        # One epoch to shut the producer out, and one for the end.
        transaction.epoch += 1
        self._end(transaction, False)

    def _end(self, transaction: Transaction, commit: bool) -> None:
        self._decided(transaction, commit)
        transaction.epoch += 1
        transaction.state = "prepare_commit" if commit else "prepare_abort"
        for place, segment in transaction.places.items():
            delay_s = self._random() * self._marker_s * (20 if self._random() < 0.05 else 1)
            self._later(delay_s, self._mark, transaction, place, segment, commit)

    # -- the group's offsets -------------------------------------------------------------------------------

    def txn_offset_commit(
        self, pid: int, epoch: int, generation: int, member: str, offsets: dict[Place, tuple[int, str]]
    ) -> Code:
        """Add offsets to the transaction, if the member is of the group's generation."""
        # As Kafka does: with neither a generation nor a member nothing is checked.
        if self.checks_generation and (generation >= 0 or member):
            if member not in self.group.members:
                return Code.UNKNOWN_MEMBER_ID
            if generation != self.group.generation:
                return Code.ILLEGAL_GENERATION
        if (refused := self._add(pid, epoch, OFFSETS)) is not Code.NONE:
            return refused
        pending = self.pending.setdefault(pid, {})
        for place, (offset, owner) in offsets.items():
            self._offset_index += 1
            pending[place] = offset, owner, self._offset_index
        return Code.NONE

    def offset_commit(self, generation: int, member: str, offsets: dict[Place, tuple[int, str]]) -> Code:
        """Offsets of no transaction."""
        if member not in self.group.members or generation != self.group.generation:
            return Code.ILLEGAL_GENERATION
        for place, (offset, owner) in offsets.items():
            self._offset_index += 1
            self.offsets[place] = offset, owner, self._offset_index
        return Code.NONE

    def offset_fetch(self, places: Sequence[Place]) -> Any:
        """{place: (offset or None, owner)}, unless a transaction may still change one of them."""
        if any(place in pending for pending in self.pending.values() for place in places):
            return Code.UNSTABLE_OFFSET_COMMIT
        return {place: self.offsets.get(place, (None, "", 0))[:2] for place in places}

    def last_owners(self, places: Sequence[Place]) -> list[str]:
        """Who last committed each of these, be it that a transaction is about to change it."""
        return sorted({self.offsets[place][1] for place in places if place in self.offsets})
