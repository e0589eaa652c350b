"""Who reads which partition: balanced, with whoever has its state at hand, moving as little as can be.

A partition that goes from one living member to another takes two rounds, so that it never has two owners:

    held by A ──round 1: A learns that it goes──▶ nobody's; A commits, joins again ──round 2──▶ B's

and it stays with A, whatever the balance, while B's standby is still far behind. All others keep what
they hold and read on meanwhile. `assign` says where all should be, `step` what of it may be done at once.

Source: KIP-429 (incremental cooperative rebalance), KIP-441 (warm before the move), KIP-792 (generations).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping

from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from weir.obs.log import get_logger
from weir.streams._member_data import (
    VERSION,
    Assignment,
    MalformedMemberData,
    Place,
    Warmth,
    by_topic,
    pack_assignment,
    pack_warmth,
    unpack_assignment,
    unpack_warmth,
)

log = get_logger("weir.streams.assignor")

__all__ = ["Assignment", "Place", "WarmAssignor", "Warmth", "assign", "holders", "step"]

_NOTHING = -1
_COLD = 2**63 - 1


def holders(members: Mapping[str, Warmth]) -> dict[Place, str]:
    """Who holds each partition; of two claims the younger counts, of two as young none."""
    claims: dict[Place, list[tuple[int, str]]] = defaultdict(list)
    for member, warmth in members.items():
        for place in warmth.held:
            claims[place].append((warmth.generation, member))
    found = {}
    for place, claimed in claims.items():
        claimed.sort(reverse=True)
        if len(claimed) == 1 or claimed[0][0] > claimed[1][0]:
            found[place] = claimed[0][1]
    return found


def assign(
    members: Mapping[str, Warmth], partitions: Collection[Place], standby_replicas: int = 0
) -> dict[str, Assignment]:
    """Where every partition should be: balanced to within one, each topic by itself and all together as far
    as that allows; sticky to the holders, else to the warmest; a function of its arguments alone.

    Args:
        members: by member id, those that may read all of `partitions`.
        standby_replicas: standbys a partition, on other members than its reader, as far as there are some.
    """
    able = {name: each for name, each in members.items() if not each.leaving} or dict(members)
    holder = holders(members)
    load: Counter[str] = Counter()
    active: dict[str, set[Place]] = {member: set() for member in members}
    by_topic: dict[str, list[Place]] = defaultdict(list)
    for place in sorted(partitions):
        by_topic[place[0]].append(place)
    for _, places in sorted(by_topic.items()):
        if not able:
            break
        for place, member in _share(able, places, holder, load).items():
            active[member].add(place)
            load[member] += 1
    reader = {place: member for member, places in active.items() for place in places}
    standby = {member: set[Place]() for member in members} | _standbys(able, reader, standby_replicas)
    return _whole(members, active, standby)


def step(
    members: Mapping[str, Warmth],
    partitions: Collection[Place],
    standby_replicas: int = 0,
    lag_max: int = 0,
) -> dict[str, Assignment]:
    """What of `assign` may be done at once: nothing is given to a member while another still holds it.

    Args:
        lag_max: source records that a follower may be behind the holder when a partition moves to it.
    """
    goal = assign(members, partitions, standby_replicas)
    reader = {place: member for member, each in goal.items() for place in each.active}
    active: dict[str, set[Place]] = {member: set() for member in members}
    standby = {member: set(each.standby) for member, each in goal.items()}
    holder, unsettled, awaited = holders(members), False, set[str]()
    for place, member in reader.items():
        now = holder.get(place, member)
        if now == member:
            active[member].add(place)
        elif _must_warm(members[now], members[member], place, lag_max):
            active[now].add(place)
            standby[member].add(place)
            standby[now].discard(place)
            awaited.add(member)
        else:
            unsettled = True
    return _whole(members, active, standby, unsettled, awaited)


def _whole(
    members: Mapping[str, Warmth],
    active: Mapping[str, Collection[Place]],
    standby: Mapping[str, Collection[Place]],
    unsettled: bool = False,
    awaited: Collection[str] = (),
) -> dict[str, Assignment]:
    return {
        member: Assignment(
            frozenset(active[member]),
            frozenset(standby[member]),
            _before(members, active[member], member),
            unsettled,
            member in awaited,
        )
        for member in members
    }


def _must_warm(giver: Warmth, taker: Warmth, place: Place, lag_max: int) -> bool:
    if giver.leaving or not taker.follows:
        return False
    return giver.warm.get(place, 0) - taker.warm.get(place, _NOTHING) > lag_max


def _share(
    able: Mapping[str, Warmth], places: list[Place], holder: Mapping[Place, str], load: Counter[str]
) -> dict[Place, str]:
    """One topic's partitions: each member gets `low`, and as many as divide unevenly one more."""
    low, extras = divmod(len(places), len(able))
    held: dict[str, list[Place]] = {member: [] for member in able}
    for place in places:
        if (member := holder.get(place, "")) in held:
            held[member].append(place)
    newest = {place: max(each.warm.get(place, _NOTHING) for each in able.values()) for place in places}

    def lag(member: str, place: Place) -> int:
        at = able[member].warm.get(place)
        return _COLD if at is None else newest[place] - at

    # Whoever has more than its share keeps one of the extras: fewer moves.
    most = sorted(able, key=lambda member: (-len(held[member]), load[member], member))
    shares = dict.fromkeys(able, low)
    for member in most:
        if extras and len(held[member]) > low:
            shares[member] += 1
            extras -= 1
    given: dict[Place, str] = {}
    for member, mine in held.items():
        others = [other for other in able if other != member and len(held[other]) < low + 1]
        # What another is warm for goes first, so that a move once begun stays the move.
        mine.sort(key=lambda place: (-min((lag(o, place) for o in others), default=_COLD), place))
        given.update(dict.fromkeys(mine[: shares[member]], member))
    count = Counter(given.values())

    def room(member: str) -> bool:
        return count[member] < shares[member] or (count[member] == shares[member] == low and extras > 0)

    def give(place: Place, member: str) -> None:
        nonlocal extras
        if count[member] == shares[member]:
            shares[member] += 1
            extras -= 1
        given[place] = member
        count[member] += 1

    free = [place for place in places if place not in given]
    for _, place, member in sorted(
        (lag(member, place), place, member) for place in free for member in able if place in able[member].warm
    ):
        if place not in given and room(member):
            give(place, member)
    for place in free:
        if place not in given:
            give(place, min(filter(room, able), key=lambda m: (count[m], load[m] + count[m], m)))
    return given


def _standbys(
    able: Mapping[str, Warmth], reader: Mapping[Place, str], replicas: int
) -> dict[str, set[Place]]:
    """Followers of each partition: those who follow it already, then those with the fewest."""
    chosen: dict[str, set[Place]] = {member: set() for member in able}
    for place, member in sorted(reader.items()):
        others = [other for other, each in able.items() if each.follows and other != member]
        others.sort(key=lambda m: (place not in able[m].warm, len(chosen[m]), -able[m].warm.get(place, 0), m))
        for other in others[:replicas]:
            chosen[other].add(place)
    return chosen


def _before(members: Mapping[str, Warmth], mine: Collection[Place], member: str) -> dict[Place, str]:
    before = {}
    for place in sorted(set(mine) - members[member].held):
        warm = [(each.warm[place], other) for other, each in members.items() if place in each.warm]
        others = [(offset, other) for offset, other in warm if other != member]
        if others:
            before[place] = max(others)[1]
    return before


class WarmAssignor(AbstractPartitionAssignor):  # type: ignore[misc]  # aiokafka has no types
    """The group protocol `weir-warm-1`; aiokafka takes an instance where it documents a class.

    Args:
        warmth: asked at each join, on the consumer's thread.
        standby_replicas, lag_max: see `step`; the group's leader applies its own.
        on_assigned: told of each assignment, on the consumer's thread, before anything moves.
    """

    name = f"weir-warm-{VERSION}"

    def __init__(
        self,
        warmth: Callable[[], Warmth],
        on_assigned: Callable[[Assignment], None],
        *,
        standby_replicas: int = 0,
        lag_max: int = 10_000,
    ) -> None:
        self._warmth, self._on_assigned = warmth, on_assigned
        self._standby_replicas, self._lag_max = standby_replicas, lag_max

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        """What this member tells the leader."""
        return ConsumerProtocolMemberMetadata(0, sorted(topics), pack_warmth(self._warmth()))

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        """The leader's part: `step`, for each set of topics that the same members read."""
        told = {member: self._told(data.user_data) for member, data in members.items()}
        readers: dict[frozenset[str], list[Place]] = defaultdict(list)
        for topic in sorted({topic for data in members.values() for topic in data.subscription}):
            able = frozenset(member for member, data in members.items() if topic in data.subscription)
            readers[able] += [(topic, number) for number in cluster.partitions_for_topic(topic) or ()]
        parts: dict[str, list[Assignment]] = {member: [] for member in members}
        for able, places in readers.items():
            shared = {member: told[member] for member in sorted(able)}
            for member, part in step(shared, places, self._standby_replicas, self._lag_max).items():
                parts[member].append(part)
        unsettled = any(part.unsettled for each in parts.values() for part in each)
        answer = {}
        for member, each in parts.items():
            whole = Assignment(
                frozenset().union(*(part.active for part in each)),
                frozenset().union(*(part.standby for part in each)),
                {place: other for part in each for place, other in part.before.items()},
                unsettled,
                any(part.awaited for part in each),
            )
            topics = list(by_topic(whole.active).items())
            answer[member] = ConsumerProtocolMemberAssignment(0, topics, pack_assignment(whole))
        return answer

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """What the leader told this member."""
        active = [(tp.topic, tp.partition) for tp in assignment.partitions()]
        self._on_assigned(unpack_assignment(active, assignment.user_data))

    @staticmethod
    def _told(data: bytes | None) -> Warmth:
        try:
            return unpack_warmth(data)
        except MalformedMemberData as error:
            log.warning("member_data_refused", error=str(error))
            return Warmth()
