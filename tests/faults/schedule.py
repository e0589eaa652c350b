"""Which faults befall a run, and when: a function of the seed, so that a failure can be had again."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Kind(StrEnum):
    """Faults by the names that the field uses; `FAULTS` says what each needs."""

    WORKER_KILLED = "worker_killed"
    WORKER_STOPPED = "worker_stopped"
    WORKER_CUT_OFF = "worker_cut_off"
    WORKER_JOINS = "worker_joins"
    WORKERS_RESTARTED = "workers_restarted"
    LINK_SLOW = "link_slow"
    LINK_HALF_OPEN = "link_half_open"
    CLOCK_JUMP = "clock_jump"
    WORKER_DISK_FULL = "worker_disk_full"
    SNAPSHOT_FLIPPED = "snapshot_flipped"
    CHANGELOG_FLIPPED = "changelog_flipped"
    POISON = "poison"
    TRITON_KILLED = "triton_killed"
    TRITON_STOPPED = "triton_stopped"
    KEYS_KILLED = "keys_killed"
    BROKER_KILLED = "broker_killed"
    BROKER_STOPPED = "broker_stopped"
    BROKER_UNCLEAN = "broker_unclean"
    BROKER_ISOLATED = "broker_isolated"
    BROKER_DISK_FULL = "broker_disk_full"
    BROKER_CLOCK_JUMP = "broker_clock_jump"
    ROLLING_RESTART = "rolling_restart"


class Moment(StrEnum):
    """What is waited for, a second at most, between a fault's time and the fault."""

    AT_ONCE = "at once"
    IN_FLIGHT = "with a batch in flight"
    JUST_DECIDED = "just after a decision was counted"


class Part(StrEnum):
    """What a fault is done to."""

    WORKER = "worker"
    SPARE = "spare"
    BROKER = "broker"
    STREAM = "stream"
    TRITON = "triton"
    KEYS = "keys"


@dataclass(frozen=True, slots=True)
class Need:
    """What a fault is done to, for how long, and what must be there for it.

    seconds: the range of its length. brokers: how many there must be. disk: a file system that can be filled.
    clock: a clock of its own.
    """

    part: Part
    seconds: tuple[float, float]
    brokers: int = 1
    disk: bool = False
    clock: bool = False


# A worker that is silent for longer than its session, 6 s in these runs, loses its partitions to another;
# that takes two seconds more.
FAULTS: dict[Kind, Need] = {
    Kind.WORKER_KILLED: Need(Part.WORKER, (0.2, 3.0)),
    Kind.WORKER_STOPPED: Need(Part.WORKER, (9.5, 11.5)),
    Kind.WORKER_CUT_OFF: Need(Part.WORKER, (9.5, 11.5)),
    Kind.WORKER_JOINS: Need(Part.SPARE, (3.0, 5.0)),
    Kind.WORKERS_RESTARTED: Need(Part.WORKER, (1.0, 2.0)),
    Kind.LINK_SLOW: Need(Part.WORKER, (3.0, 6.0)),
    Kind.LINK_HALF_OPEN: Need(Part.WORKER, (3.0, 11.0)),
    Kind.CLOCK_JUMP: Need(Part.WORKER, (1.0, 4.0)),
    Kind.WORKER_DISK_FULL: Need(Part.WORKER, (3.0, 5.0), disk=True),
    Kind.SNAPSHOT_FLIPPED: Need(Part.WORKER, (0.1, 0.5)),
    Kind.CHANGELOG_FLIPPED: Need(Part.STREAM, (0.1, 0.5)),
    Kind.POISON: Need(Part.STREAM, (0.1, 2.0)),
    Kind.TRITON_KILLED: Need(Part.TRITON, (1.0, 3.0)),
    Kind.TRITON_STOPPED: Need(Part.TRITON, (2.0, 4.0)),
    Kind.KEYS_KILLED: Need(Part.KEYS, (2.0, 5.0)),
    Kind.BROKER_KILLED: Need(Part.BROKER, (0.2, 4.0)),
    Kind.BROKER_STOPPED: Need(Part.BROKER, (4.0, 7.0)),
    Kind.BROKER_UNCLEAN: Need(Part.BROKER, (0.2, 2.0)),
    Kind.BROKER_ISOLATED: Need(Part.BROKER, (5.0, 8.0), brokers=3),
    Kind.BROKER_DISK_FULL: Need(Part.BROKER, (3.0, 5.0), brokers=3, disk=True),
    Kind.BROKER_CLOCK_JUMP: Need(Part.BROKER, (3.0, 6.0), clock=True),
    Kind.ROLLING_RESTART: Need(Part.BROKER, (0.2, 1.0), brokers=3),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when it begins (s after the run's start), what is done to whom, for how long.

    strength: 0 to 1, what else the kind leaves open (how slow a link is, which way a clock jumps).
    """

    at_s: float
    kind: Kind
    target: str
    seconds: float
    moment: Moment
    strength: float

    def __str__(self) -> str:
        return (
            f"{self.at_s:5.1f} s  {self.kind:18} {self.target:9} for {self.seconds:.1f} s, "
            f"{self.moment}, strength {self.strength:.2f}"
        )


@dataclass(frozen=True, slots=True)
class Schedule:
    """The faults of one run, in order of time; `str` shows it whole."""

    seed: int
    seconds: float
    worker_count: int
    broker_count: int
    faults: tuple[Fault, ...]
    # What was asked for and cannot be done here.
    left_out: tuple[Kind, ...] = ()

    @classmethod
    def from_seed(
        cls,
        seed: int,
        *,
        faults: Sequence[Kind] | None = None,
        seconds: float = 14.0,
        worker_count: int = 2,
        broker_count: int = 1,
        has_disks: bool = True,
        has_clocks: bool = True,
    ) -> Self:
        """The schedule of this seed; the same arguments give the same schedule.

        Args:
            faults: each once; None lets the seed choose two to four of those that the cluster allows.
            seconds: for how long payments come in at least; they do until the last fault is over.
            has_disks: without disks that can be filled, the faults that need them are left out.
            has_clocks: so are those that need a broker's clock that can be set.
        """
        random_source = random.Random(seed)
        possible = [
            kind
            for kind, need in FAULTS.items()
            if need.brokers <= broker_count
            and (has_disks or not need.disk)
            and (has_clocks or not need.clock)
        ]
        chosen = faults
        if chosen is None:
            chosen = random_source.sample(possible, random_source.randint(2, 4))
        planned: list[Fault] = []
        for kind in chosen:
            need = FAULTS[kind]
            fault = Fault(
                at_s=round(random_source.uniform(1.0, seconds * 0.6), 2),
                kind=kind,
                target=_target(need.part, random_source, worker_count, broker_count),
                seconds=round(random_source.uniform(*need.seconds), 2),
                moment=random_source.choice(list(Moment)),
                strength=round(random_source.random(), 3),
            )
            if kind in possible:
                planned.append(fault)
        left_out = tuple(kind for kind in chosen if kind not in possible)
        return cls(seed, seconds, worker_count, broker_count, _apart(planned), left_out)

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.worker_count} workers, {self.broker_count} brokers, "
            f"payments for {self.seconds:.0f} s"
        )
        missing = [
            f"  left out: {kind}, for it takes {FAULTS[kind].brokers} brokers"
            + (" and a file system of its own, which only root mounts" if FAULTS[kind].disk else "")
            + (" and a C compiler" if FAULTS[kind].clock else "")
            for kind in self.left_out
        ]
        return "\n".join([head, *(f"  {fault}" for fault in self.faults), *missing])


def _target(part: Part, random_source: random.Random, worker_count: int, broker_count: int) -> str:
    number = random_source.random()
    if part is Part.WORKER:
        return f"worker-{int(number * worker_count)}"
    if part is Part.BROKER:
        return f"broker-{int(number * broker_count) + 1}"
    return part.value


def _apart(planned: Sequence[Fault]) -> tuple[Fault, ...]:
    """In order of time, with brokers hurt one after another: of three, two must be whole for a write.

    Any other two may overlap; two that are done to one process may not, for each would undo the other.
    """
    settled: list[Fault] = []
    free_at: dict[str, float] = {}
    for fault in sorted(planned, key=lambda each: each.at_s):
        place = "brokers" if FAULTS[fault.kind].part is Part.BROKER else fault.target
        at_s = max(fault.at_s, free_at.get(place, 0.0))
        # A killed or isolated broker is whole again only once it has caught up.
        rest_s = 3.0 if place == "brokers" else 1.0
        free_at[place] = at_s + fault.seconds + rest_s
        settled.append(
            Fault(round(at_s, 2), fault.kind, fault.target, fault.seconds, fault.moment, fault.strength)
        )
    return tuple(sorted(settled, key=lambda each: each.at_s))
