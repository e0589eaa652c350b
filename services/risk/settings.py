"""What the risk service can be told; `[risk]` in weir.toml, or WEIR_RISK_* in the environment."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from weir.config import Port, WeirSettings

HERE = Path(__file__).parent

# To the home currency; a bank gives its own table. The codes are also the currencies that are accepted.
DEFAULT_RATES = {
    "EUR": 1.0,
    "USD": 0.92,
    "GBP": 1.17,
    "CHF": 1.05,
    "CNY": 0.128,
    "JPY": 0.0061,
    "HKD": 0.118,
    "SGD": 0.69,
}


class RiskSettings(WeirSettings):
    """Read once, at start."""

    section: ClassVar[str] = "risk"

    tenant: str = Field("default", min_length=1, max_length=64, description="stands in every decision id")
    group: str = Field("weir-risk", min_length=1, description="the consumer group")
    model: str = Field("risk", description="the model's name on Triton")
    model_version: str | None = Field(
        None, description="pinned version; None takes the champion, or the newest"
    )
    model_repository: Path = Field(
        Path("triton_models"), description="where model.json stands: feature order, base logit, checksum"
    )
    policy: Path = Field(HERE / "policy.toml", description="thresholds and rules; watched while running")
    reasons: Path = Field(HERE / "reasons.toml", description="the reviewed text of each feature's reason")
    rates: dict[str, float] = Field(DEFAULT_RATES, description="ISO 4217 code to home currency")
    score_deadline_ms: int = Field(250, ge=1, le=60_000, description="then rules decide, degraded")
    processing_guarantee: str = Field(
        "exactly_once",
        pattern="^(exactly_once|at_least_once)$",
        description="exactly_once, or at_least_once: a little sooner, and after a failure some come twice",
    )
    transaction_rows_max: int = Field(
        4000, ge=1, le=100_000, description="records decided in one transaction, about"
    )
    transaction_timeout_s: float = Field(
        10.0, ge=1, le=900, description="then the broker aborts what a silent worker left open"
    )
    batch_rows_max: int = Field(2000, ge=1, le=100_000, description="records of one fetch")
    gather_ms: float = Field(
        1.0, ge=0, le=100, description="how long an idle worker waits for a fetch's other partitions"
    )
    rows_in_flight_max: int = Field(8000, ge=1, le=1_000_000, description="between features and delivery")
    model_rows_max: int = Field(1024, ge=1, le=4096, description="rows of one call; more is split")
    accounts_max: int = Field(2_000_000, ge=1000, description="accounts of all partitions, in memory")
    terminals_max: int = Field(500_000, ge=1000, description="terminals, in every worker's memory")
    restore_days: int = Field(
        31, ge=0, le=400, description="of the input, read when there is neither snapshot nor changelog"
    )
    standby_replicas: int = Field(
        0, ge=0, le=8, description="other workers that keep a partition's accounts warm; the same in all"
    )
    standby_lag_max: int = Field(
        10_000, ge=0, description="records behind which no partition moves to a standby yet"
    )
    snapshot_interval_s: float = Field(60.0, ge=1, le=86_400, description="between snapshots of the state")
    drain_deadline_s: float = Field(10.0, gt=0, le=300, description="for a rebalance or a stop")
    session_timeout_s: float = Field(
        15.0, ge=6, le=300, description="until a silent worker's partitions are given to another"
    )
    commit_interval_s: float = Field(1.0, gt=0, le=60, description="between commits of finished offsets")
    metrics_host: str = Field("127.0.0.1", description="address of /metrics and /healthz")
    metrics_port: Port = Field(9101, description="/metrics and /healthz")
    web_port: Port | None = Field(None, description="Faust's own web views; None leaves them off")
    data_dir: Path = Field(Path(".weir/data/risk"), description="snapshots; one worker's own")
