"""The group coordinator of the simulation: members, generations, and who reads what."""

from collections.abc import Callable, Sequence
from typing import Any

from weir.kafka._codes import Code
from weir.streams.assignor import Warmth, holders, step

Place = tuple[str, int]
Respond = Callable[[Any], None]


class Member:
    """A consumer of the group."""

    __slots__ = ("heard_s", "id", "respond", "said")

    def __init__(self, id: str) -> None:
        self.id = id
        self.heard_s = 0.0
        self.respond: Respond | None = None
        self.said = Warmth()


class SimGroup:
    """A group whose members join with what they hold, and lose it in a round before another gets it.

    Args:
        later: calls a function after so many seconds, in nobody's name.
        now: virtual seconds.
        random: draws who gets what, where that is not Weir's own assignor's to say.
    """

    def __init__(
        self,
        inputs: Sequence[Place],
        *,
        later: Callable[..., Any],
        now: Callable[[], float],
        random: Callable[[], float],
        session_s: float,
        rebalance_s: float,
    ) -> None:
        self._inputs, self._later, self._now, self._random = inputs, later, now, random
        self._session_s, self._rebalance_s = session_s, rebalance_s
        self.generation, self.state = 0, "empty"  # empty, preparing, stable
        self.members: dict[str, Member] = {}
        self._assignment: dict[str, tuple[list[Place], bool]] = {}
        self._member_count = self._rebalance_count = 0
        # Whether partitions move far more than they have to.
        self.wild = False
        self._wild: dict[Place, str] = {}
        self._wild_ids: list[str] = []

    def join(self, respond: Respond, member_id: str, said: Warmth) -> None:
        """Answer (generation, member id) once all members have joined, or their time is over."""
        if member_id and member_id not in self.members:
            respond(Code.UNKNOWN_MEMBER_ID)
            return
        if not member_id:
            self._member_count += 1
            member_id = f"m{self._member_count}"
            member = self.members[member_id] = Member(member_id)
            member.heard_s = self._now()
            self._later(self._session_s, self._check_session, member)
        member = self.members[member_id]
        member.respond, member.said, member.heard_s = respond, said, self._now()
        self._rebalance()
        self._later(0.003, self._join_if_all, self._rebalance_count)

    def _rebalance(self) -> None:
        if self.state != "preparing":
            self.state = "preparing"
            self._rebalance_count += 1
            self._later(self._rebalance_s, self._join_those_here, self._rebalance_count)

    def _join_if_all(self, count: int) -> None:
        if all(member.respond is not None for member in self.members.values()):
            self._join_those_here(count)

    def _join_those_here(self, count: int) -> None:
        if self.state != "preparing" or count != self._rebalance_count:
            return
        self.members = {id: member for id, member in self.members.items() if member.respond is not None}
        self.generation += 1
        self.state = "stable" if self.members else "empty"
        self._assignment = (self._moved_about if self.wild else self._assigned)()
        for member in self.members.values():
            respond, member.respond, member.heard_s = member.respond, None, self._now()
            assert respond is not None
            respond((self.generation, member.id))

    def _assigned(self) -> dict[str, tuple[list[Place], bool]]:
        """As Weir's own assignor, on whichever member leads, has it."""
        parts = step({id: member.said for id, member in self.members.items()}, self._inputs)
        return {id: (sorted(part.active), part.unsettled) for id, part in parts.items()}

    def _moved_about(self) -> dict[str, tuple[list[Place], bool]]:
        """Another member for each partition whenever members come or go, in two rounds."""
        ids = [id for id, member in self.members.items() if not member.said.leaving] or list(self.members)
        if ids != self._wild_ids:
            self._wild_ids = ids
            self._wild = {place: ids[int(self._random() * len(ids))] for place in self._inputs if ids}
        holder = holders({id: member.said for id, member in self.members.items()})
        given: dict[str, list[Place]] = {id: [] for id in self.members}
        unsettled = False
        for place, id in self._wild.items():
            if holder.get(place, id) == id:
                given[id].append(place)
            else:
                unsettled = True
        return {id: (places, unsettled) for id, places in given.items()}

    def sync(self, member_id: str, generation: int) -> Any:
        """(places, whether another round follows) of a member that has joined."""
        if member_id not in self.members:
            return Code.UNKNOWN_MEMBER_ID
        if generation != self.generation:
            return Code.ILLEGAL_GENERATION
        if self.state == "preparing":
            return Code.REBALANCE_IN_PROGRESS
        self.members[member_id].heard_s = self._now()
        return self._assignment[member_id]

    def heartbeat(self, member_id: str, generation: int) -> Code:
        """Whether the member is still one, and nothing has to be done."""
        member = self.members.get(member_id)
        if member is None:
            return Code.UNKNOWN_MEMBER_ID
        if generation != self.generation:
            return Code.ILLEGAL_GENERATION
        member.heard_s = self._now()
        return Code.REBALANCE_IN_PROGRESS if self.state == "preparing" else Code.NONE

    def leave(self, member_id: str) -> Code:
        """The member's places are given to the others."""
        if self.members.pop(member_id, None) is not None:
            self._rebalance()
            self._join_if_all(self._rebalance_count)
        return Code.NONE

    def _check_session(self, member: Member) -> None:
        if self.members.get(member.id) is not member:
            return
        silent_s = self._now() - member.heard_s
        if member.respond is not None:
            silent_s = 0.0
        if silent_s >= self._session_s - 1e-9:
            self.leave(member.id)
        else:
            self._later(self._session_s - silent_s, self._check_session, member)
