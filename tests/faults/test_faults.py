"""What is promised of decisions holds whatever is killed, stopped, cut off or full; all of it: `make faults`.

Each run is printed with its seed; a failure says how to have it again.
"""

from collections.abc import Callable

import pytest

from tests.faults.checker import Anomaly
from tests.faults.conftest import LONG
from tests.faults.play import Outcome, play
from tests.faults.scenarios import SCENARIOS, Scenario
from tests.faults.schedule import Kind, Schedule
from tests.support.cluster import Cluster
from weir.streams.engine_app import AT_LEAST_ONCE

RUNS = [
    pytest.param(each, id=each.name, marks=() if each.short else getattr(pytest.mark, LONG))
    for each in SCENARIOS
]
ClusterOf = Callable[[int], Cluster]


@pytest.fixture
def cluster_of(request: pytest.FixtureRequest) -> ClusterOf:
    """The session's cluster with this many brokers."""
    return lambda broker_count: request.getfixturevalue("three_brokers" if broker_count > 1 else "one_broker")


def again(outcome: Outcome, name: str) -> str:
    """What a failure shows: the run, and the command that repeats its schedule."""
    command = f"pytest tests/faults --all-faults -k {name} --fault-seed={outcome.schedule.seed}"
    return f"{outcome}\n  again: {command}"


@pytest.mark.parametrize("scenario", RUNS)
async def test_each_payment_is_decided_once_in_order_and_on_its_true_history_through(
    scenario: Scenario, cluster_of: ClusterOf, fault_seed: int | None
) -> None:
    """Run the scenario's schedule on real servers, then hold every topic against what went in."""
    cluster = cluster_of(scenario.broker_count)
    schedule = scenario.schedule(fault_seed, has_disks=cluster.has_disks, has_clocks=cluster.has_clocks)
    outcome = await play(cluster, schedule)
    print(outcome)
    assert not outcome.findings, again(outcome, scenario.name)
    assert len(outcome.history.decisions) > 500, again(outcome, scenario.name)


@getattr(pytest.mark, LONG)
async def test_at_least_once_decides_each_payment_though_some_again_under_the_same_id(
    cluster_of: ClusterOf, fault_seed: int | None
) -> None:
    """Kill -9 in the setting for the lowest latency: nothing is lost, what comes twice says so by its id.

    What is decided again also enters its windows again, which this setting accepts.
    """
    schedule = Schedule.from_seed(
        1 if fault_seed is None else fault_seed,
        faults=(Kind.WORKER_KILLED,),
        seconds=7.0,
    )
    outcome = await play(cluster_of(1), schedule, guarantee=AT_LEAST_ONCE)
    print(outcome)
    message = again(outcome, "at_least_once")
    assert outcome.anomalies <= {Anomaly.DUPLICATE, Anomaly.STATE_DIFFERS}, message
    ids: dict[str, set[bytes]] = {}
    for each in outcome.history.decisions:
        ids.setdefault(each.event_id, set()).add(each.record_id)
    assert all(len(found) == 1 for found in ids.values()), message


# No fencing is not among them: who takes over reads the changelog to its end, so it waits all the same
# until the broker has ended what the zombie left open. The simulation breaks that too.
BROKEN = [("commit_before_send", Anomaly.LOST_WRITE), ("offsets_outside", Anomaly.DUPLICATE)]


@getattr(pytest.mark, LONG)
@pytest.mark.parametrize(("way", "expected"), BROKEN)
async def test_a_delivery_that_is_broken_on_purpose_is_found_out(
    way: str, expected: Anomaly, cluster_of: ClusterOf
) -> None:
    """The same worker with one step of its delivery in the wrong place, and kill -9, which tells."""
    schedule = Schedule.from_seed(1, faults=(Kind.WORKER_KILLED,), seconds=6.0)
    outcome = await play(
        cluster_of(1),
        schedule,
        module=("tests.faults.broken", way),
        # The broker's own last resort would hide what the worker lacks.
        transaction_timeout_s=60,
    )
    print(outcome)
    assert expected in outcome.anomalies, str(outcome)


def test_every_fault_befalls_a_run_of_make_faults() -> None:
    """The fixed runs together leave no fault out."""
    assert {kind for scenario in SCENARIOS for kind in scenario.faults} == set(Kind)
