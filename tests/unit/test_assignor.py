"""Who gets which partition: each promise of the assignor, over groups that hypothesis makes up."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from hypothesis import given
from hypothesis import strategies as st

from weir.streams._member_data import (
    MalformedMemberData,
    pack_assignment,
    pack_warmth,
    unpack_assignment,
    unpack_warmth,
)
from weir.streams.assignor import Assignment, Place, WarmAssignor, Warmth, assign, holders, step

TOPIC = "payments"
NAMES = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


def places(count: int) -> list[Place]:
    return [(TOPIC, number) for number in range(count)]


@st.composite
def groups(draw: st.DrawFn) -> tuple[dict[str, Warmth], list[Place]]:
    """Members with whatever they may claim: no partition is held twice in one generation."""
    names, all_places = draw(NAMES), places(draw(st.integers(0, 24)))
    holder = {place: draw(st.sampled_from([*names, None])) for place in all_places}
    members = {}
    for name in names:
        held = frozenset(place for place, owner in holder.items() if owner == name)
        warm = {place: draw(st.integers(0, 10**6)) for place in all_places if draw(st.booleans())}
        members[name] = Warmth(
            held,
            warm,
            draw(st.integers(0, 3)),
            follows=draw(st.booleans()),
            leaving=draw(st.integers(0, 9)) == 0,
        )
    return members, all_places


def after(
    members: Mapping[str, Warmth], given_: Mapping[str, Assignment], generation: int
) -> dict[str, Warmth]:
    """The members as they join again: what they were given they hold; standbys and what was left are warm."""
    newest = {
        place: max([each.warm.get(place, 0) for each in members.values()], default=0)
        for each in given_.values()
        for place in each.active | each.standby
    }
    return {
        name: replace(
            members[name],
            held=each.active,
            generation=generation,
            warm=dict(members[name].warm) | {place: newest[place] for place in each.active | each.standby},
        )
        for name, each in given_.items()
    }


def settle(
    members: Mapping[str, Warmth], all_places: list[Place], replicas: int = 0
) -> tuple[dict[str, Warmth], int]:
    """Rounds until nothing is on its way and nobody warms up, and how many those were."""
    found = step(members, all_places, replicas)
    for round_ in range(1, 7):
        members = after(members, found, 10 + round_)
        again = step(members, all_places, replicas)
        if again == found and not any(each.unsettled for each in found.values()):
            return members, round_
        found = again
    raise AssertionError("the group does not settle")


@given(groups(), st.integers(0, 3))
def test_each_partition_has_one_reader_and_shares_differ_by_one_at_most(group, replicas):
    members, all_places = group
    found = assign(members, all_places, replicas)
    read = [place for each in found.values() for place in each.active]
    assert sorted(read) == sorted(all_places)
    able = [name for name, each in members.items() if not each.leaving] or list(members)
    shares = [len(found[name].active) for name in able]
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == len(all_places)


@given(groups())
def test_no_more_partitions_move_than_balance_demands(group):
    """A member with more than its share keeps a full one; all others keep everything."""
    members, all_places = group
    found = assign(members, all_places)
    able = {name for name, each in members.items() if not each.leaving} or set(members)
    held = Counter(name for name in holders(members).values() if name in able)
    low, extras = divmod(len(all_places), len(able))
    needed = sum(max(held[name] - low, 0) for name in able)
    needed -= min(extras, sum(held[name] > low for name in able))
    moved = sum(
        1 for place, name in holders(members).items() if name in able and place not in found[name].active
    )
    assert moved == needed


@given(groups(), st.integers(0, 3))
def test_the_same_group_gets_the_same_answer_in_whatever_order_it_is_told(group, replicas):
    members, all_places = group
    backwards = dict(reversed(members.items()))
    assert assign(members, all_places, replicas) == assign(backwards, all_places[::-1], replicas)
    assert step(members, all_places, replicas) == step(backwards, all_places[::-1], replicas)


@given(groups(), st.integers(0, 3))
def test_a_standby_is_never_on_the_reader_and_there_are_as_many_as_asked_for(group, replicas):
    members, all_places = group
    found = assign(members, all_places, replicas)
    followers = Counter(place for each in found.values() for place in each.standby)
    able = {name for name, each in members.items() if not each.leaving} or set(members)
    for name, each in found.items():
        assert not each.active & each.standby
        for place in each.active:
            others = [other for other in able if other != name and members[other].follows]
            assert followers[place] == min(replicas, len(others))
    for each in step(members, all_places, replicas).values():
        assert not each.active & each.standby


@given(groups(), st.integers(0, 2), st.integers(0, 1000))
def test_nothing_is_given_to_a_member_while_another_holds_it(group, replicas, lag_max):
    members, all_places = group
    held_by = holders(members)
    found = step(members, all_places, replicas, lag_max)
    for name, each in found.items():
        for place in each.active:
            assert held_by.get(place, name) == name
    given_ = {place for each in found.values() for place in each.active}
    unsettled = {each.unsettled for each in found.values()}
    assert unsettled == {given_ != set(all_places)}


@given(groups(), st.integers(0, 2))
def test_a_group_settles_in_the_goal_and_then_nothing_moves_any_more(group, replicas):
    """A round to say what goes and what warms up, one to release, one to take; the last finds no change."""
    members, all_places = group
    members = {name: replace(each, leaving=False) for name, each in members.items()}
    settled, rounds = settle(members, all_places, replicas)
    assert rounds <= 5
    found = step(settled, all_places, replicas)
    assert found == assign(settled, all_places, replicas)
    shares = [len(each.active) for each in found.values()]
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 5), st.integers(0, 24), st.integers(0, 2))
def test_when_one_leaves_the_others_keep_all_they_have(count, partition_count, replicas):
    cold = {f"m{number}": Warmth(follows=True) for number in range(count + 1)}
    settled, _ = settle(cold, places(partition_count), replicas)
    gone = settled.pop("m0")
    found = step(settled, places(partition_count), replicas)
    for name, each in found.items():
        assert settled[name].held <= each.active
        assert not each.unsettled
    taken = {place: name for name, each in found.items() for place in each.active if place in gone.held}
    assert set(taken) == gone.held


@given(st.integers(1, 5), st.integers(1, 24))
def test_when_one_joins_it_gets_a_share_and_nobody_else_gets_anything(count, partition_count):
    cold = {f"m{number}": Warmth() for number in range(count)}
    settled, _ = settle(cold, places(partition_count))
    found, _ = settle(settled | {"new": Warmth()}, places(partition_count))
    assert len(found["new"].held) in (partition_count // (count + 1), partition_count // (count + 1) + 1)
    for name, each in settled.items():
        assert found[name].held <= each.held


def test_an_orphan_goes_to_the_warmest_as_far_as_shares_allow():
    members = {
        "a": Warmth(warm={(TOPIC, 0): 10, (TOPIC, 1): 500}),
        "b": Warmth(warm={(TOPIC, 0): 900, (TOPIC, 1): 499}),
        "c": Warmth(),
    }
    found = assign(members, places(3))
    assert found["a"].active == {(TOPIC, 1)}
    assert found["b"].active == {(TOPIC, 0)}
    assert found["c"].active == {(TOPIC, 2)}
    assert found["a"].before == {(TOPIC, 1): "b"}


def test_a_follower_gets_a_partition_once_it_is_near_and_not_before():
    held = dict.fromkeys(places(2), 100000)
    old = Warmth(frozenset(held), held, 1, follows=True)
    first = step({"new": Warmth(follows=True), "old": old}, places(2), lag_max=1000)
    assert first["old"].active == old.held
    assert len(first["new"].standby) == 1
    assert not first["new"].unsettled
    assert first["new"].awaited
    assert not first["old"].awaited
    (moving,) = first["new"].standby
    behind = step({"new": Warmth(warm={moving: 98_999}, follows=True), "old": old}, places(2), lag_max=1000)
    assert behind["old"].active == old.held
    near = step({"new": Warmth(warm={moving: 99_000}, follows=True), "old": old}, places(2), lag_max=1000)
    assert near["old"].active == old.held - {moving}
    assert near["old"].unsettled
    released = replace(old, held=near["old"].active, generation=2)
    last = step(
        {"new": Warmth(warm={moving: 99_900}, follows=True), "old": released}, places(2), lag_max=1000
    )
    assert last["new"].active == {moving}
    assert not last["new"].awaited
    assert last["new"].before == {moving: "old"}


def test_whoever_leaves_gives_all_away_unless_it_is_alone():
    held = frozenset(places(4))
    leaving = Warmth(held, {}, 3, leaving=True)
    assert assign({"a": leaving}, places(4))["a"].active == held
    found = step({"a": leaving, "b": Warmth()}, places(4))
    assert not found["a"].active
    assert not found["b"].active
    assert found["b"].unsettled


def test_of_two_claims_the_younger_counts_and_of_two_as_young_none():
    old, young = Warmth(frozenset(places(1)), {}, 4), Warmth(frozenset(places(1)), {}, 5)
    assert holders({"a": old, "b": young}) == {(TOPIC, 0): "b"}
    assert holders({"a": young, "b": young}) == {}


PLACES = st.tuples(st.text(max_size=20), st.integers(0, 2**31 - 1))


@given(
    st.builds(
        Warmth,
        st.frozensets(PLACES, max_size=8),
        st.dictionaries(PLACES, st.integers(0, 2**63 - 1), max_size=8),
        st.integers(-1, 2**31 - 1),
        st.booleans(),
        st.booleans(),
    )
)
def test_what_a_member_tells_is_what_the_leader_reads(warmth):
    assert unpack_warmth(pack_warmth(warmth)) == warmth


@given(
    st.builds(
        Assignment,
        st.frozensets(PLACES, max_size=8),
        st.frozensets(PLACES, max_size=8),
        st.dictionaries(PLACES, st.text(max_size=40), max_size=8),
        st.booleans(),
        st.booleans(),
    )
)
def test_what_the_leader_says_is_what_a_member_reads(assignment):
    assert unpack_assignment(assignment.active, pack_assignment(assignment)) == assignment


@given(st.binary(max_size=80) | st.none())
def test_what_no_member_of_ours_wrote_is_refused(data):
    with pytest.raises(MalformedMemberData):
        unpack_warmth(data)
    with pytest.raises(MalformedMemberData):
        unpack_assignment([], data)


@given(groups(), st.data())
def test_any_flipped_bit_and_any_cut_is_refused(group, data):
    members, _ = group
    packed = bytearray(pack_warmth(next(iter(members.values()))))
    flipped = bytearray(packed)
    flipped[data.draw(st.integers(0, len(packed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(MalformedMemberData):
        unpack_warmth(bytes(flipped))
    with pytest.raises(MalformedMemberData):
        unpack_warmth(bytes(packed[: data.draw(st.integers(0, len(packed) - 1))]))


def test_member_data_of_64_partitions_is_below_a_kilobyte():
    warmth = Warmth(frozenset(places(64)), dict.fromkeys(places(64), 10**9), 7, follows=True)
    assert len(pack_warmth(warmth)) < 1024


class Cluster:
    """The one method of aiokafka's metadata that an assignor asks."""

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {"one": {0, 1, 2}, "two": {0, 1}}.get(topic)


def test_through_aiokafka_members_get_only_topics_that_they_read_and_learn_their_standbys():
    told: list[Assignment] = []
    warm = WarmAssignor(lambda: Warmth(follows=True), told.append, standby_replicas=1)
    members = {"a": warm.metadata(["one", "two"]), "b": warm.metadata(["one"])}
    answers = warm.assign(Cluster(), members)
    whole = {}
    for member, answer in answers.items():
        warm.on_assignment(ConsumerProtocolMemberAssignment.decode(answer.encode()))
        whole[member] = told[-1]
    assert {place for each in whole.values() for place in each.active} == {
        *(("one", number) for number in range(3)),
        *(("two", number) for number in range(2)),
    }
    assert {topic for topic, _ in whole["b"].active | whole["b"].standby} == {"one"}
    assert {place for each in whole.values() for place in each.standby if place[0] == "one"} == {
        ("one", number) for number in range(3)
    }


def test_a_member_of_another_version_counts_as_cold():
    warm = WarmAssignor(lambda: Warmth(frozenset({("one", 0)}), {("one", 0): 5}, 1), lambda _: None)
    answers = warm.assign(
        Cluster(), {"a": warm.metadata(["one"]), "b": RoundRobinPartitionAssignor.metadata(["one"])}
    )
    read = {member: set(answer.partitions()) for member, answer in answers.items()}
    assert ("one", 0) in read["a"]
    assert len(read["a"] | read["b"]) == 3
