"""The simulation is worth its word: each core that is wrong on purpose is found out."""

import pytest

from tests.support.sim_broken import BROKEN, BROKEN_TO_SEE, ONCE_OURS, PLANS, first_found
from tests.support.sim_worker import Core


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_wrong_core_is_found(wrong):
    core, seeds = BROKEN[wrong]
    found = first_found(core, range(seeds))
    assert found is not None, f"a core that {wrong} passed {seeds} schedules"
    print(found)


def test_what_the_core_once_did_wrong_is_among_them():
    assert set(ONCE_OURS) <= set(BROKEN)


@pytest.mark.parametrize("wrong", BROKEN_TO_SEE)
def test_what_a_wrong_core_did_is_seen_in_the_topics_alone(wrong):
    """As a checker of a real cluster has it: nobody looks while it runs."""
    core, _ = BROKEN[wrong]
    assert first_found(core, range(100), along=False) is not None


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__.strip("_"))
def test_the_right_core_holds_under_the_plans_that_find_the_wrong_ones(plan):
    assert first_found(Core(change_plan=plan), range(40)) is None
