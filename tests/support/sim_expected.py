"""What has to come out of the simulated service, computed from the input alone as it is written.

A record is (key, number, poison). For each key of a partition there is a count and a chain: a hash of all
that came before, so that an output tells whether the state was right when it was made. What a side topic
says of a key is added to its marks, whenever it comes. A table that all partitions share takes every record
of the input and of the side topic in, in any order, once.
"""

from typing import Any

from weir.streams.ports import Place

INPUT, OUTPUT, CHANGES, JOURNAL, DEAD, SIDE = "input", "output", "changes", "journal", "dead", "side"
MASK = (1 << 61) - 1

KEYS = 5

Row = tuple[int, int, int]  # count, chain and marks


class Violation(Exception):
    """Something that must hold does not; the first words say what."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}")


def chained(chain: int, offset: int, number: int) -> int:
    """The chain after one more record."""
    return ((chain ^ offset) * 1_000_003 + number) & MASK


def weight(place: Place, offset: int, number: int) -> int:
    """What a record adds to the shared table."""
    return chained(place[1] * 7919 + (0 if place[0] == INPUT else 104729), offset, number)


class Expected:
    """What has to come out, computed from the input alone as it is written."""

    def __init__(self, partition_count: int) -> None:
        self.offsets: list[list[int]] = [[] for _ in range(partition_count)]
        self.outputs: list[list[Any]] = [[] for _ in range(partition_count)]
        self.dead: list[list[Any]] = [[] for _ in range(partition_count)]
        self.changes: list[list[tuple[int, int, Row]]] = [[] for _ in range(partition_count)]
        self.sides: list[int] = []
        self._rows: list[dict[int, Row]] = [{} for _ in range(partition_count)]
        self.shared, self.shared_count = 0, 0

    def add(self, partition: int, offset: int, record: tuple[int, int, bool]) -> None:
        """A record that was written to the input."""
        key, number, poison = record
        self.offsets[partition].append(offset)
        if poison:
            self.dead[partition].append((offset, number))
            return
        self.outputs[partition].append(step(self._rows[partition], offset, key, number))
        self.changes[partition].append((offset, key, self._rows[partition][key]))
        self.add_shared((INPUT, partition), offset, number)

    def add_shared(self, place: Place, offset: int, number: int) -> None:
        """A record of any kind that the shared table takes in."""
        self.shared = (self.shared + weight(place, offset, number)) & MASK
        self.shared_count += 1

    def add_side(self, number: int) -> None:
        """A record that was written to the side topic."""
        self.add_shared((SIDE, 0), len(self.sides), number)
        self.sides.append(number)

    def rows(self, partition: int, position: int, side: int = 1 << 60) -> dict[int, Row]:
        """The state after everything before `position` of the input and `side` of the side topic."""
        rows = {}
        for offset, key, row in self.changes[partition]:
            if offset >= position:
                break
            rows[key] = row
        for number in self.sides[:side]:
            mark(rows, partition, len(self.changes), number)
        return rows

    def next_offset(self, partition: int, position: int) -> int | None:
        """The first record at or after `position`."""
        return next((offset for offset in self.offsets[partition] if offset >= position), None)


def step(rows: dict[int, Row], offset: int, key: int, number: int) -> Any:
    """Take one record in; the output tells its offset, key, count, and the chain before it."""
    count, chain, marks = rows.get(key, (0, 0, 0))
    rows[key] = (count + 1, chained(chain, offset, number), marks)
    return offset, key, count + 1, chain


def marked_key(partition: int, partition_count: int, number: int) -> int | None:
    """The key that a side record is about, if it is about one of this partition."""
    return number // partition_count % KEYS if number % partition_count == partition else None


def mark(rows: dict[int, Row], partition: int, partition_count: int, number: int) -> None:
    """Take one side record in; in which order does not matter."""
    if (key := marked_key(partition, partition_count, number)) is not None:
        count, chain, marks = rows.get(key, (0, 0, 0))
        rows[key] = (count, chain, (marks + number) & MASK)
