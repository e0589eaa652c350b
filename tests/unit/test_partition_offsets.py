"""An offset is committed past finished batches only, whatever the order they finish in."""

from hypothesis import given
from hypothesis import strategies as st

from weir.streams._offsets import PartitionOffsets


def test_a_batch_that_finishes_first_waits_for_those_before_it():
    offsets = PartitionOffsets()
    offsets.deliver("a", 10)
    offsets.deliver("b", 25)
    assert offsets.ack("b")
    assert offsets.committable is None
    assert offsets.ack("a")
    assert offsets.committable == 25
    assert offsets.in_flight == 0


def test_what_was_never_delivered_moves_nothing():
    offsets = PartitionOffsets()
    assert not offsets.ack("ghost")
    offsets.deliver("a", 5)
    assert offsets.ack("a")
    assert not offsets.ack("a")
    assert offsets.committable == 5


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_the_committable_offset_is_the_end_of_the_longest_finished_prefix(sizes, random):
    """Finish in a random order; after each, compare with the definition."""
    offsets, ends, end = PartitionOffsets(), [], 0
    for token, size in enumerate(sizes):
        end += size
        ends.append(end)
        offsets.deliver(token, end)
    order = list(range(len(sizes)))
    random.shuffle(order)
    finished: set[int] = set()
    for token in order:
        assert offsets.ack(token)
        finished.add(token)
        prefix = next((index for index in range(len(sizes)) if index not in finished), len(sizes))
        assert offsets.committable == (ends[prefix - 1] if prefix else None)
    assert offsets.in_flight == 0
