"""What the simulated bank is like, and how it is sent to Kafka."""

from typing import ClassVar

from pydantic import Field

from weir.config import WeirSettings


class SimulatorSettings(WeirSettings):
    """[simulator] or WEIR_SIMULATOR_*: the same settings and seed give the same bank, to the byte."""

    section: ClassVar[str] = "simulator"

    seed: int = Field(20_261, ge=0, le=2**63 - 1, description="the same seed gives the same bank")
    accounts: int = Field(50_000, ge=10, le=50_000_000, description="customers")
    terminals: int = Field(5_000, ge=20, le=5_000_000, description="where they pay")
    start_date: str = Field("2026-01-01", pattern=r"^\d{4}-\d{2}-\d{2}$", description="first day, UTC")
    events_per_account_day: float = Field(1.6, gt=0, le=100, description="mean over the accounts")
    fraud_intensity: float = Field(
        1.0, ge=0, le=20, description="1 makes 0.5 to 1 % of the payments fraudulent"
    )
    unreported_share: float = Field(0.04, ge=0, le=1, description="frauds that no label ever reports")
    false_claim_share: float = Field(0.0002, ge=0, le=0.1, description="honest payments that are disputed")
    label_delay_median_days: float = Field(2.5, gt=0, le=30, description="half of the labels come sooner")
    currency: str = Field("EUR", pattern="^[A-Z]{3}$", description="of every payment")
    rate: float = Field(200.0, gt=0, le=1_000_000, description="payments a second, live")
    traceparent_share: float = Field(0.0, ge=0, le=1, description="payments with a traceparent header")
