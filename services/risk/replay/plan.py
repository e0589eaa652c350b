"""What is to be decided again, and with what."""

from dataclasses import dataclass
from pathlib import Path

PUBLISH_TOPIC = "weir.replay.decisions"


@dataclass(frozen=True, slots=True)
class Plan:
    """One replay.

    from_ms, to_ms: the range, by when a batch was read then, ms since the epoch; to_ms is not in it.
    partitions: of the payments; none is all of them (with `snapshots`, those that have one).
    policy: a policy file in place of those of then.
    policies: where the policies of then are kept; none is the settings' data_dir.
    model, model_version: another model than that of then, by its name and version in the repository.
    snapshots: a folder of a worker's snapshots to begin with; none begins where the topics begin.
    publish_topic: where the new decisions go, sealed; none publishes nothing.
    examples_max: decisions that are shown.
    """

    from_ms: int
    to_ms: int
    partitions: tuple[int, ...] = ()
    policy: Path | None = None
    policies: Path | None = None
    model: str | None = None
    model_version: str | None = None
    snapshots: Path | None = None
    publish_topic: str | None = None
    examples_max: int = 10

    @property
    def asks_what_if(self) -> bool:
        """Whether differences are what is asked for, rather than a fault."""
        return self.policy is not None or self.model is not None
