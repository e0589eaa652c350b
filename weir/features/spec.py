"""What the features of a payment are: their names, their order, and the settings that change their values."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache

# Raise it whenever a feature's value changes for the same events: a model says which it was trained on.
CODE_VERSION = 4

FEATURES: tuple[str, ...] = (
    "amount",
    "amount_log",
    "hour_of_day",
    "is_weekend",
    "is_night",
    "channel_pos",
    "channel_ecom",
    "channel_atm",
    "channel_transfer",
    "account_count_1h",
    "account_count_1d",
    "account_count_7d",
    "account_count_30d",
    "account_amount_mean_1d",
    "account_amount_mean_7d",
    "account_amount_mean_30d",
    "account_amount_ratio_30d",
    "account_amount_zscore_30d",
    "account_idle_log_s",
    "account_age_days",
    "account_fraud_count_30d",
    "account_highest_ratio_30d",
    "account_high_days_7d",
    "terminal_count_now_1d",
    "terminal_count_1d",
    "terminal_count_7d",
    "terminal_count_30d",
    "terminal_risk_1d",
    "terminal_risk_7d",
    "terminal_risk_30d",
    "terminal_fraud_first_days",
    "terminal_fraud_last_days",
    "terminal_risk_since_fraud",
    "terminal_fraud_early",
    "terminal_risk_early",
)

# The channels in the order of `schemas/transaction.avsc`; a channel code is an index into it.
CHANNELS: tuple[str, ...] = ("POS", "ECOM", "ATM", "TRANSFER", "OTHER")


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The settings that a feature's value depends on; `id` names them all, with the code's version.

    label_delay_days: whole days, 0 to 30, before a label may act; as the Fraud Detection Handbook has it.
    lateness_s: an event older than the newest one by more than this is late.
    utc_offset_minutes: local time of the bank, for hour, weekend and night alone; windows are in UTC.
    night_start_hour, night_end_hour: local hours, start included, end not.
    """

    label_delay_days: int = 7
    lateness_s: int = 3600
    utc_offset_minutes: int = 0
    night_start_hour: int = 0
    night_end_hour: int = 7

    def __post_init__(self) -> None:
        for field, low, high in (
            ("label_delay_days", 0, 30),
            ("lateness_s", 0, 86_400),
            ("utc_offset_minutes", -1_440, 1_440),
            ("night_start_hour", 0, 24),
            ("night_end_hour", 0, 24),
        ):
            value = getattr(self, field)
            if not low <= value <= high:
                raise ValueError(f"{field} must be {low} to {high}, not {value}")

    @property
    def id(self) -> str:
        """12 hex digits that change with any name, order, window or setting: what a model is bound to."""
        return _id_of(self)


@cache
def _id_of(spec: FeatureSpec) -> str:
    # Every mark of a partition's state bears it: as text and hash it would cost more than the mark.
    text = json.dumps({"code": CODE_VERSION, "features": FEATURES, "settings": asdict(spec)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


DEFAULT = FeatureSpec()
FEATURE_SPEC: str = DEFAULT.id
