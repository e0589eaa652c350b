"""What the members of a group tell one another, and its bytes in JoinGroup and SyncGroup."""

import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from weir.errors import IntegrityError

Place = tuple[str, int]  # topic and partition

VERSION = 1
_FOLLOWS, _LEAVING = 1, 2
_UNSETTLED, _AWAITED = 1, 2
_NOTHING = -1


@dataclass(frozen=True, slots=True)
class Warmth:
    """What a member has at hand when it joins.

    held: partitions that it reads now; it goes on with those that it is given again.
    warm: the source offset up to which it has a partition's state, in memory, as standby or as snapshot.
    generation: of the group, in which `held` was granted: of two that claim a partition the younger has it.
    follows: whether it can keep standbys; then nothing moves to it before its standby is near.
    leaving: it gives everything away.
    """

    held: frozenset[Place] = frozenset()
    warm: Mapping[Place, int] = field(default_factory=dict)
    generation: int = -1
    follows: bool = False
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a member has to do.

    active: it reads these.
    standby: it keeps these warm; never one of `active`.
    before: for an active partition that is new to the member, the other one who has its newest state, if any.
    unsettled: a partition is on its way, so another round follows at once.
    awaited: a partition moves to the member once its standby is near: it asks for a round then.
    """

    active: frozenset[Place] = frozenset()
    standby: frozenset[Place] = frozenset()
    before: Mapping[Place, str] = field(default_factory=dict)
    unsettled: bool = False
    awaited: bool = False


class MalformedMemberData(IntegrityError):
    """A group member's data is not what this version writes."""

    def __init__(self, what: str) -> None:
        super().__init__(f"Group member data: {what}. The member is treated as if it had nothing at hand.")


def _checked(body: bytes) -> bytes:
    return body + struct.pack(">I", zlib.crc32(body))


class _Reader:
    """Reads a checked body front to back; whatever is wrong with it is a `MalformedMemberData`."""

    def __init__(self, data: bytes | None) -> None:
        if not data or data[0] != VERSION:
            raise MalformedMemberData("no version, or another")
        if len(data) < 5 or struct.unpack(">I", data[-4:])[0] != zlib.crc32(data[:-4]):
            raise MalformedMemberData("the checksum does not match")
        self._body, self._at = data[:-4], 1

    def take(self, layout: str) -> tuple[int, ...]:
        try:
            found: tuple[int, ...] = struct.unpack_from(layout, self._body, self._at)
        except struct.error as error:
            raise MalformedMemberData("it ends too early") from error
        self._at += struct.calcsize(layout)
        return found

    def text(self) -> str:
        (size,) = self.take(">H")
        raw, self._at = self._body[self._at : self._at + size], self._at + size
        try:
            if len(raw) == size:
                return raw.decode()
        except UnicodeDecodeError as error:
            raise MalformedMemberData("a name is no text") from error
        raise MalformedMemberData("it ends too early")

    def end(self) -> None:
        if self._at != len(self._body):
            raise MalformedMemberData("something follows its end")


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">H", len(raw)) + raw


def by_topic(places: Iterable[Place]) -> dict[str, list[int]]:
    """The numbers of the partitions, ascending, by topic."""
    topics: dict[str, list[int]] = defaultdict(list)
    for topic, partition in sorted(places):
        topics[topic].append(partition)
    return topics


def pack_warmth(warmth: Warmth) -> bytes:
    """Version (1 byte), flags (1), generation (4), topics: name, count (4), and for each partition its number
    (4), held (1) and warm offset (8, -1: none); CRC-32 of all that. Big endian."""
    flags = _FOLLOWS * warmth.follows | _LEAVING * warmth.leaving
    topics = by_topic(warmth.held | warmth.warm.keys())
    parts = [struct.pack(">BBiH", VERSION, flags, warmth.generation, len(topics))]
    for topic, numbers in topics.items():
        parts += [_text(topic), struct.pack(">I", len(numbers))]
        for number in numbers:
            place = (topic, number)
            parts.append(struct.pack(">IBq", number, place in warmth.held, warmth.warm.get(place, _NOTHING)))
    return _checked(b"".join(parts))


def unpack_warmth(data: bytes | None) -> Warmth:
    """The inverse of `pack_warmth`.

    Raises:
        MalformedMemberData: another version, or not such bytes.
    """
    reader = _Reader(data)
    flags, generation, topic_count = reader.take(">BiH")
    held, warm = set(), {}
    for _ in range(topic_count):
        topic = reader.text()
        (count,) = reader.take(">I")
        for _ in range(count):
            number, is_held, offset = reader.take(">IBq")
            if is_held:
                held.add((topic, number))
            if offset != _NOTHING:
                warm[topic, number] = offset
    reader.end()
    return Warmth(frozenset(held), warm, generation, bool(flags & _FOLLOWS), bool(flags & _LEAVING))


def pack_assignment(assignment: Assignment) -> bytes:
    """All but `active`, which the protocol itself carries: version (1), flags (1), standby topics with counts
    and numbers (4 each), then the places that another has, each with that member's id; CRC-32. Big endian."""
    topics = by_topic(assignment.standby)
    flags = _UNSETTLED * assignment.unsettled | _AWAITED * assignment.awaited
    parts = [struct.pack(">BBH", VERSION, flags, len(topics))]
    for topic, numbers in topics.items():
        parts += [_text(topic), struct.pack(f">I{len(numbers)}I", len(numbers), *numbers)]
    parts.append(struct.pack(">I", len(assignment.before)))
    for (topic, number), member in sorted(assignment.before.items()):
        parts += [_text(topic), struct.pack(">I", number), _text(member)]
    return _checked(b"".join(parts))


def unpack_assignment(active: Iterable[Place], data: bytes | None) -> Assignment:
    """The inverse of `pack_assignment`.

    Raises:
        MalformedMemberData: another version, or not such bytes.
    """
    reader = _Reader(data)
    flags, topic_count = reader.take(">BH")
    standby: set[Place] = set()
    for _ in range(topic_count):
        topic = reader.text()
        (count,) = reader.take(">I")
        standby.update((topic, reader.take(">I")[0]) for _ in range(count))
    (count,) = reader.take(">I")
    before = {}
    for _ in range(count):
        topic = reader.text()
        (number,) = reader.take(">I")
        before[topic, number] = reader.text()
    reader.end()
    return Assignment(
        frozenset(active), frozenset(standby), before, bool(flags & _UNSETTLED), bool(flags & _AWAITED)
    )
