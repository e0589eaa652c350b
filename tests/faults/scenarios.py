"""The runs that stand in CI: fixed seeds, every fault at least once, the likely ones two at a time."""

from dataclasses import dataclass

from tests.faults.schedule import Kind, Schedule


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fixed run; its seed is one by which its faults overlap where they can.

    short: whether it stands among the tests of every change; the others run by `make faults`.
    """

    name: str
    seed: int
    faults: tuple[Kind, ...]
    broker_count: int = 1
    seconds: float = 7.0
    short: bool = False

    def schedule(self, seed: int | None, *, has_disks: bool, has_clocks: bool) -> Schedule:
        """Its schedule, by its own seed or by the one given."""
        return Schedule.from_seed(
            self.seed if seed is None else seed,
            faults=self.faults,
            seconds=self.seconds,
            broker_count=self.broker_count,
            has_disks=has_disks,
            has_clocks=has_clocks,
        )


SCENARIOS = (
    Scenario(
        "a_killed_worker_a_killed_triton_poison_and_a_set_clock",
        seed=100,
        faults=(Kind.WORKER_KILLED, Kind.TRITON_KILLED, Kind.POISON, Kind.CLOCK_JUMP),
        short=True,
    ),
    Scenario(
        "a_zombie_worker_and_a_killed_broker",
        seed=57,
        faults=(Kind.WORKER_STOPPED, Kind.BROKER_KILLED),
        broker_count=3,
        short=True,
    ),
    Scenario(
        "a_worker_cut_off_no_key_service_and_a_flipped_snapshot",
        seed=201,
        faults=(Kind.WORKER_CUT_OFF, Kind.KEYS_KILLED, Kind.SNAPSHOT_FLIPPED),
    ),
    Scenario(
        "half_open_and_slow_links_and_a_triton_that_hangs",
        seed=172,
        faults=(Kind.LINK_HALF_OPEN, Kind.LINK_SLOW, Kind.TRITON_STOPPED),
    ),
    Scenario(
        "a_full_disk_a_flipped_changelog_row_and_a_worker_that_comes_and_goes",
        seed=55,
        faults=(
            Kind.WORKER_DISK_FULL,
            Kind.WORKER_JOINS,
            Kind.CHANGELOG_FLIPPED,
        ),
    ),
    Scenario(
        "a_broker_with_torn_files_one_that_hangs_and_a_killed_worker",
        seed=55,
        faults=(Kind.BROKER_UNCLEAN, Kind.BROKER_STOPPED, Kind.WORKER_KILLED),
        broker_count=3,
    ),
    Scenario(
        "brokers_and_workers_restarted_one_by_one",
        seed=39,
        faults=(Kind.ROLLING_RESTART, Kind.WORKERS_RESTARTED),
        broker_count=3,
    ),
    Scenario(
        "a_broker_cut_off_from_its_peers_and_one_with_a_full_disk",
        seed=197,
        faults=(Kind.BROKER_ISOLATED, Kind.BROKER_DISK_FULL),
        broker_count=3,
    ),
    Scenario(
        "a_broker_whose_clock_is_set_and_a_killed_worker",
        seed=1,
        faults=(Kind.BROKER_CLOCK_JUMP, Kind.WORKER_KILLED),
        broker_count=3,
    ),
    Scenario(
        "the_only_broker_with_its_clock_set",
        seed=18,
        faults=(Kind.BROKER_CLOCK_JUMP, Kind.WORKERS_RESTARTED),
    ),
)
