"""Clusters for the fault runs, their seed, and which of them are run."""

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster, running_cluster

LONG = "long_faults"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fault-seed=N` takes another seed, `--all-faults` also runs what is too long for every change."""
    parser.addoption("--fault-seed", type=int, default=None, help="the seed of each fault run, not its own")
    parser.addoption("--all-faults", action="store_true", help="also the fault runs that `make faults` adds")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", f"{LONG}: a fault run of `make faults`; run with --all-faults")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long runs to `make faults`."""
    if config.getoption("--all-faults", default=False):
        return
    long = [item for item in items if item.get_closest_marker(LONG)]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture
def fault_seed(request: pytest.FixtureRequest) -> int | None:
    """The seed of the command line; None leaves each run its own."""
    seed: int | None = request.config.getoption("--fault-seed", default=None)
    return seed


@pytest.fixture(scope="session")
def one_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one broker."""
    with running_cluster(tmp_path_factory.mktemp("one-broker")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def three_brokers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three brokers: each topic on all, a write on two at least."""
    with running_cluster(tmp_path_factory.mktemp("three-brokers"), 3) as cluster:
        yield cluster
