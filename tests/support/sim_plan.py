"""What a seed draws for a run: sizes, times, and which faults come when."""

from dataclasses import dataclass, field
from random import Random

FAULTS_S = 6.0


@dataclass
class Plan:
    """What a seed draws: sizes, times, and which faults come when."""

    random: Random
    partitions: int = 0
    workers: int = 0
    records: int = 0
    shuffled: bool = True
    batch_rows: int = 0
    rows_in_flight: int = 0
    group_rows: int = 0
    transaction_rows: int = 0
    linger_s: float = 0.0
    drain_s: float = 0.0
    session_s: float = 0.0
    rebalance_s: float = 0.0
    transaction_s: float = 0.0
    marker_s: float = 0.0
    work_s: float = 0.0
    delay_s: float = 0.0
    loss: float = 0.0
    slow: float = 0.0
    twice: float = 0.0
    failing: float = 0.0
    generation_wait_s: float = 0.0
    # Requests of these names are often lost on their way, or late.
    lost: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    # Side records for each record of the input.
    sides: float = 0.0
    # Whether partitions move far more than they have to.
    wild: bool = False
    # Whether a restore that is cancelled goes on to its end.
    stubborn: bool = False
    faults: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def of(cls, seed: int) -> "Plan":
        """The plan of a seed."""
        random = Random(seed)
        plan = cls(random)
        pick = random.choice
        plan.partitions, plan.workers = random.randint(2, 4), random.randint(1, 3)
        plan.records = random.randint(40, 80)
        plan.shuffled = random.random() < 0.8
        plan.batch_rows, plan.group_rows = pick((1, 3, 8)), pick((2, 6, 20))
        plan.rows_in_flight, plan.transaction_rows = pick((4, 12, 60)), pick((1, 8, 40))
        plan.linger_s = pick((0.0, 0.005))
        plan.drain_s = pick((0.05, 0.3, 1.0))
        plan.session_s, plan.rebalance_s = pick((0.6, 1.2)), pick((0.8, 2.0))
        plan.transaction_s = pick((0.8, 2.0, 5.0))
        plan.marker_s, plan.work_s = pick((0.002, 0.02, 0.2)), pick((0.002, 0.02, 0.2))
        plan.delay_s = pick((0.001, 0.003, 0.02))
        plan.loss, plan.slow = pick((0.0, 0.01, 0.05)), pick((0.0, 0.01, 0.05))
        plan.twice = pick((0.0, 0.01, 0.2))
        plan.failing = pick((0.0, 0.0, 0.05, 0.2))
        plan.generation_wait_s = pick((0.0, 0.5))
        plan.lost = pick(((), (), (), ("end_txn",), ("txn_offset_commit",), ("join", "sync")))
        plan.late = pick(((), (), (), ("end_txn", "txn_offset_commit"), ("produce",), ("heartbeat",)))
        plan.sides, plan.wild, plan.stubborn = pick((0.1, 0.5)), pick((True, False)), random.random() < 0.2
        kinds = pick(
            (
                ("kill", "stop", "join", "leave", "cut", "down", "loss"),
                ("kill", "fuse", "fuse"),
                ("stop", "stop", "cut", "twin"),
                ("join", "leave", "leave", "stop"),
                ("down", "loss", "cut", "leave"),
            )
        )
        plan.faults = sorted(
            (random.uniform(0.1, FAULTS_S), pick(kinds)) for _ in range(random.randint(1, 7))
        )
        return plan
