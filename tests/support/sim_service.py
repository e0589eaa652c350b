"""A service for the simulation: keyed state that can be undone, a changelog, a table shared by a journal."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.support.sim_broker import SimBroker
from tests.support.sim_expected import (
    CHANGES,
    DEAD,
    INPUT,
    JOURNAL,
    MASK,
    OUTPUT,
    SIDE,
    Expected,
    Row,
    Violation,
    mark,
    marked_key,
    step,
    weight,
)
from tests.support.sim_net import Network, Unavailable
from weir.errors import WeirError
from weir.streams.batch import BatchGroup
from weir.streams.output import Output
from weir.streams.ports import Place


class KeysAway(WeirError):
    """The key service gives no answer."""

    retriable = True


@dataclass(slots=True)
class Table:
    """A partition's state."""

    position: int
    side: int
    rows: dict[int, Row]
    # Whether it is what the input says; another has moved it on when it was restored by one that was put out.
    ours: bool


@dataclass(slots=True)
class Shared:
    """The table that all partitions share, and how far each has entered it."""

    total: int = 0
    count: int = 0
    seen: dict[Place, int] = field(default_factory=dict)

    def copy(self) -> "Shared":
        return Shared(self.total, self.count, dict(self.seen))


@dataclass(slots=True)
class Read:
    """What a group has come to."""

    outputs: list[Output]
    touched: dict[Place, int]


class SimService:
    """The engine's processor; see the module.

    Args:
        expect: what the state has to be, to be checked at every turn.
        stubborn: whether a cancellation of `restore` is swallowed, as clients do that are being closed.
        failing: whether the next group fails, as when a key cannot be had.
        check_rolled_back: told of (place, position) after a roll back.
        restored_whole: whether a place's state has to be as of this offset: nobody has moved it on since.
    """

    def __init__(
        self,
        net: Network,
        broker: SimBroker,
        random: Random,
        expect: Expected,
        partition_count: int,
        *,
        work_s: float,
        stubborn: bool,
        failing: Callable[[], bool],
        check_rolled_back: Callable[[Place, int], None],
        restored_whole: Callable[[Place, int | None], bool],
    ) -> None:
        self._net, self._broker, self._random, self._expect = net, broker, random.random, expect
        self._work_s, self._stubborn, self._failing = work_s, stubborn, failing
        self._check_rolled_back, self._restored_whole = check_rolled_back, restored_whole
        self.tables: dict[Place, Table] = {}
        self.shared = Shared()
        # Undo: of tables (epoch, place, key or None for the positions, what it was).
        self._partitions = partition_count
        self._sides: list[int] = []
        self._undo: deque[tuple[int, Place, int | None, Any]] = deque()
        self._shared_before: deque[tuple[int, Shared, list[Any]]] = deque()
        self._side_places: list[Place] = [(JOURNAL, p) for p in range(partition_count)] + [(SIDE, 0)]
        self._side_positions = dict.fromkeys(self._side_places, 0)
        self._side_waiting: list[tuple[Place, int, Any]] = []
        self._journal_end: dict[Place, int] = {}
        self._side_changed = asyncio.Event()
        self.restore_to: Callable[[Place], int] = broker.end_offset

    # -- side inputs ---------------------------------------------------------------------------------------

    async def read_sides(self) -> None:
        """Follow the journal of all partitions and the side topic, forever."""
        while True:
            wants = list(self._side_positions.items())
            answer = await self._net.call(self._broker.fetch, wants, 1 << 30, 1.0, waits_s=1.1)
            for place, (records, position) in (answer or {}).items():
                self._side_positions[place] = position
                for offset, value in records:
                    if place[0] == SIDE:
                        self._sides.append(value)
                    self._side_waiting.append((place, offset, value))
                    if place[0] == JOURNAL:
                        self._journal_end[INPUT, place[1]] = value[1]
            self._side_changed.set()

    def has_side_inputs(self) -> bool:
        known = len(self._sides)
        return bool(self._side_waiting) or any(table.side < known for table in self.tables.values())

    def _absorb(self, place: Place, offset: int, value: Any) -> None:
        shared = self.shared
        if place[0] == SIDE:
            shared.total = (shared.total + weight(place, offset, value)) & MASK
            shared.count += 1
            return
        source = (INPUT, place[1])
        first, end, entries = value
        seen = shared.seen.get(source, 0)
        if end <= seen:
            return
        if first > seen:
            raise Violation("journal with a hole", f"{source}: {first} to {end} after {seen}")
        self._enter(source, entries, end)

    def _enter(self, source: Place, entries: list[tuple[int, int]], end: int) -> None:
        shared = self.shared
        seen = shared.seen.get(source, 0)
        for offset, number in entries:
            if offset >= seen:
                shared.total = (shared.total + weight(source, offset, number)) & MASK
                shared.count += 1
        # One that was put out reads what others have decided already.
        shared.seen[source] = max(end, seen)

    # -- the way of a group --------------------------------------------------------------------------------

    async def prepare(self, group: BatchGroup) -> None:
        """Wait until the shared table can know all that was decided before the group's batches."""
        for batch in group.batches:
            place = (batch.topic, batch.partition)
            # It may be dropped meanwhile; then its batch is not read.
            while (table := self.tables.get(place)) is not None:
                known = max(self.shared.seen.get(place, 0), self._journal_end.get(place, 0))
                if known >= table.position:
                    break
                self._side_changed.clear()
                await self._side_changed.wait()

    def read(self, epoch: int, group: BatchGroup) -> "Read":
        self._shared_before.append((epoch, self.shared.copy(), self._side_waiting))
        waiting, self._side_waiting = self._side_waiting, []
        for each in waiting:
            self._absorb(*each)
        read = Read([], {})
        changed: dict[Place, set[int]] = {}
        for place, table in self.tables.items():
            if keys := self._mark(epoch, place, table):
                changed[place] = keys
        for batch in group.batches:
            place = (batch.topic, batch.partition)
            if place not in self.tables:
                raise Violation("a batch without its state", f"{place} at {batch.offset_first}")
            table = self.tables[place]
            if self._expect.next_offset(place[1], table.position) != batch.offset_first:
                raise Violation(
                    "a batch that is not next", f"{place}: {batch.offset_first}, state at {table.position}"
                )
            keys = self._read_batch(epoch, place, table, batch.records, read.outputs)
            changed.setdefault(place, set()).update(keys)
        for place, keys in changed.items():
            table = self.tables[place]
            rows = [(key, table.rows[key]) for key in sorted(keys)]
            rows.append((None, (table.position, table.side)))
            read.outputs.append(Output(CHANGES, place[1], (), rows, (), 0))
            read.touched[place] = table.position
        return read

    def _mark(self, epoch: int, place: Place, table: Table) -> set[int]:
        keys = set()
        if table.side < len(self._sides):
            self._undo.append((epoch, place, None, (table.position, table.side)))
            for number in self._sides[table.side :]:
                if (key := marked_key(place[1], self._partitions, number)) is not None:
                    self._undo.append((epoch, place, key, table.rows.get(key)))
                    mark(table.rows, place[1], self._partitions, number)
                    keys.add(key)
            table.side = len(self._sides)
        return keys

    def _read_batch(
        self, epoch: int, place: Place, table: Table, records: Sequence[Any], results: list[Output]
    ) -> set[int]:
        first = table.position
        undo, rows = self._undo, table.rows
        undo.append((epoch, place, None, (first, table.side)))
        outputs, dead, entries = [], [], []
        changed: set[int] = set()
        for record in records:
            key, number, poison = record.value
            if poison:
                dead.append((record.offset, number))
                continue
            undo.append((epoch, place, key, rows.get(key)))
            outputs.append(step(rows, record.offset, key, number))
            changed.add(key)
            entries.append((record.offset, number))
        table.position = end = records[-1].offset + 1
        if first > self.shared.seen.get(place, 0):
            raise Violation("a batch before its journal", f"{place}: {first}")
        self._enter(place, entries, end)
        parts = ((OUTPUT, outputs), (DEAD, dead), (JOURNAL, [(first, end, entries)]))
        results += [Output(topic, place[1], (), values, (), 0) for topic, values in parts if values]
        return changed

    def touched(self, read: "Read") -> Mapping[Place, int]:
        return read.touched

    async def score(self, read: "Read") -> None:
        await asyncio.sleep(self._random() * self._work_s)

    async def write(self, group: BatchGroup, read: "Read", scored: None) -> tuple[Sequence[Output], None]:
        await asyncio.sleep(self._random() * self._work_s)
        if self._failing():
            raise KeysAway("key service: no answer")
        return read.outputs, None

    def counted(self, group: BatchGroup, counts: None, send_s: float) -> None:
        pass

    # -- the state's life ----------------------------------------------------------------------------------

    def roll_back(self, epoch: int) -> None:
        undo = self._undo
        while undo and undo[-1][0] >= epoch:
            _, place, key, was = undo.pop()
            if (table := self.tables.get(place)) is None:
                continue
            if key is None:
                table.position, table.side = was
            elif was is None:
                del table.rows[key]
            else:
                table.rows[key] = was
        while self._shared_before and self._shared_before[-1][0] >= epoch:
            _, self.shared, waiting = self._shared_before.pop()
            self._side_waiting = waiting + self._side_waiting
        for place, table in self.tables.items():
            if table.ours and table.rows != self._expect.rows(place[1], table.position, table.side):
                raise Violation("state after a roll back", f"{place} at {table.position}, {table.side}")
            self._check_rolled_back(place, table.position)

    def release(self, epoch: int) -> None:
        undo = self._undo
        while undo and undo[0][0] <= epoch:
            undo.popleft()
        while self._shared_before and self._shared_before[0][0] <= epoch:
            self._shared_before.popleft()

    def position(self, place: Place) -> int:
        return self.tables[place].position

    async def restore(self, place: Place, committed: int | None) -> int:
        changes = (CHANGES, place[1])
        # Not the last stable offset: a transaction's markers reach the offsets before they reach this topic.
        end = await self._net.call(self.restore_to, changes)
        if end is None:
            raise Unavailable("end of the changes")
        rows: dict[int, Row] = {}
        position, marked = 0, (0, 0)
        while position < end:
            try:
                answer = await self._net.call(self._broker.fetch, [(changes, position)], 20, 0.3, waits_s=0.4)
            except asyncio.CancelledError:
                if not self._stubborn:
                    raise
                continue
            if answer is None:
                raise Unavailable("changes")
            for records, next_position in answer.values():
                position = next_position
                for _, (key, row) in records:
                    if key is None:
                        marked = row
                    else:
                        rows[key] = row
        offset = committed or 0
        ours = self._restored_whole(place, committed)
        if ours and rows != self._expect.rows(place[1], offset, marked[1]):
            raise Violation("restored state", f"{place} at {offset}, {marked}")
        self.tables[place] = Table(offset, marked[1], rows, ours)
        return offset

    def drop(self, place: Place) -> None:
        self.tables.pop(place, None)
        self._undo = deque(each for each in self._undo if each[1] != place)
