"""When a guard steps in: `[guard]` in weir.toml, or WEIR_GUARD_* in the environment."""

from typing import ClassVar

from pydantic import Field

from weir.config import Port, WeirSettings


class GuardSettings(WeirSettings):
    """Limits, each of a share that has to be above it for sure: see `rules.py`."""

    section: ClassVar[str] = "guard"

    workers: list[str] = Field(
        ["http://127.0.0.1:9101/metrics"], min_length=1, description="/metrics of every risk worker"
    )
    interval_s: float = Field(15.0, gt=0, le=3600, description="between two looks")
    timeout_s: float = Field(5.0, gt=0, le=60, description="for one worker's answer")
    rows_min: int = Field(
        500, ge=50, le=10_000_000, description="payments, before which what was said of them is judged"
    )
    calls_min: int = Field(
        50,
        ge=10,
        le=1_000_000,
        description="batches with a canary's payments, before its failures are judged",
    )
    looks: int = Field(
        3, ge=1, le=100, description="in a row that must find a failure, so that one outage is no reason"
    )
    alpha: float = Field(
        0.001, gt=0, le=0.1, description="chance that a limit is ever taken for passed that is not, each"
    )
    fell_back_max: float = Field(
        0.01, ge=0, le=1, description="of a canary's batches, decided by the champion in its place"
    )
    declined_more_max: float = Field(
        0.01, ge=0, le=1, description="of a canary's payments, declined by it and not by the champion, net"
    )
    reviewed_more_max: float = Field(
        0.05, ge=0, le=1, description="of them, not approved by it but by the champion, net"
    )
    slower_max: float = Field(
        5.0, ge=1, le=1000, description="times the champion's mean time for a call; a canary may take that"
    )
    degraded_max: float = Field(
        0.05, ge=0, le=1, description="of all payments, decided by rules alone under a new champion"
    )
    metrics_host: str = Field("127.0.0.1", description="address of /metrics and /healthz")
    metrics_port: Port = Field(9104, description="/metrics and /healthz")
    champion_hours: float = Field(
        72.0, ge=0, le=10_000, description="for so long after a promotion the last champion may be put back"
    )
