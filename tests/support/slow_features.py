"""The features of `docs/reference/features.md` once more, in plain Python over lists: slow, easy to check."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import log1p, sqrt

import numpy as np

from weir.features.spec import CHANNELS, FeatureSpec

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@dataclass
class Entity:
    """Everything that was seen of one account or terminal, and its newest event time."""

    newest_hour: int
    first_hour: int
    newest_ms: int = -1
    events: list[tuple[int, float]] = field(default_factory=list)
    hour_events: list[tuple[int, float]] = field(default_factory=list)
    frauds: list[int] = field(default_factory=list)


class SlowState:
    """`PaymentState` with unbounded memory; an event keeps out of a window that was closed when it came."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self.accounts: dict[int, Entity] = {}
        self.terminals: dict[int, Entity] = {}
        self.max_ms = 0
        self.late_total = 0

    def observe(
        self, account: int, terminal: int, amount: int, event_ms: int, channel: int
    ) -> dict[str, float]:
        """The features of one event; then it has entered."""
        x, hour = amount / 10_000, event_ms // HOUR_MS
        if event_ms < self.max_ms - self.spec.lateness_s * 1000:
            self.late_total += 1
        self.max_ms = max(self.max_ms, event_ms)
        who = self._reached(self.accounts, account, hour)
        where = self._reached(self.terminals, terminal, hour)
        who.newest_hour, where.newest_hour = max(who.newest_hour, hour), max(where.newest_hour, hour)
        features = (
            self._of_event(x, event_ms, channel)
            | self._of_account(who, x, event_ms)
            | self._of_terminal(where)
        )
        for entity, days in ((who, 30), (where, self.spec.label_delay_days + 31)):
            if hour > entity.newest_hour - 24:
                entity.hour_events.append((event_ms, x))
            if hour // 24 > entity.newest_hour // 24 - days:
                entity.events.append((event_ms, x))
        who.newest_ms = max(who.newest_ms, event_ms)
        return features

    def learn(self, account: int, terminal: int, event_ms: int, is_fraud: bool) -> None:
        """One label."""
        if not is_fraud:
            return
        day = event_ms // DAY_MS
        who = self.accounts.get(account)
        if who is not None and who.newest_hour // 24 >= self._oldest_day():
            newest = who.newest_hour // 24
            if newest - self._ring() < day <= newest:
                who.frauds.append(event_ms)
        if day >= self._oldest_day():
            where = self._reached(self.terminals, terminal, event_ms // HOUR_MS)
            where.newest_hour = max(where.newest_hour, event_ms // HOUR_MS)
            where.frauds.append(event_ms)

    def _ring(self) -> int:
        return self.spec.label_delay_days + 31

    def _oldest_day(self) -> int:
        """Nothing is known of days before this one; an entity not seen since then is new again."""
        return self.max_ms // DAY_MS - self._ring()

    def _reached(self, entities: dict[int, Entity], key: int, hour: int) -> Entity:
        entity = entities.get(key)
        if entity is None or entity.newest_hour // 24 < self._oldest_day():
            entity = entities[key] = Entity(hour, hour)
        return entity

    def _of_event(self, x: float, event_ms: int, channel: int) -> dict[str, float]:
        local = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            milliseconds=event_ms, minutes=self.spec.utc_offset_minutes
        )
        start, end = self.spec.night_start_hour, self.spec.night_end_hour
        night = start <= local.hour < end if start <= end else local.hour >= start or local.hour < end
        return {
            "amount": x,
            "amount_log": log1p(max(x, 0)),
            "hour_of_day": local.hour,
            "is_weekend": local.weekday() >= 5,
            "is_night": night,
            **{f"channel_{name.lower()}": channel == code for code, name in enumerate(CHANNELS[:4])},
        }

    def _of_account(self, who: Entity, x: float, event_ms: int) -> dict[str, float]:
        hour, day = who.newest_hour, who.newest_hour // 24
        day_ago = [amount for at, amount in who.hour_events if hour - 24 < at // HOUR_MS]
        week = [amount for at, amount in who.events if day - 7 < at // DAY_MS]
        month = [amount for at, amount in who.events if day - 30 < at // DAY_MS]
        mean = sum(month) / len(month) if month else 0.0
        square = sum(amount * amount for amount in month) / len(month) if month else 0.0
        deviation = max(sqrt(max(square - mean * mean, 0)), 0.1 * mean, 1.0)
        idle_s = (
            min(max((event_ms - who.newest_ms) / 1000, 0), 30 * 86_400) if who.newest_ms >= 0 else 30 * 86_400
        )
        last = day - self.spec.label_delay_days - 1
        highest, high_days = self._high(who, day)
        return {
            "account_highest_ratio_30d": highest,
            "account_high_days_7d": high_days,
            "account_count_1h": sum(at // HOUR_MS == hour for at, _ in who.hour_events),
            "account_count_1d": len(day_ago),
            "account_count_7d": len(week),
            "account_count_30d": len(month),
            "account_amount_mean_1d": sum(day_ago) / len(day_ago) if day_ago else 0,
            "account_amount_mean_7d": sum(week) / len(week) if week else 0,
            "account_amount_mean_30d": mean,
            "account_amount_ratio_30d": min(x / max(mean, 0.01), 1000) if month else 1,
            "account_amount_zscore_30d": min(max((x - mean) / deviation, -100), 100) if month else 0,
            "account_idle_log_s": log1p(idle_s),
            "account_age_days": min((hour - who.first_hour) / 24, 30) if who.newest_ms >= 0 else 0,
            "account_fraud_count_30d": sum(last - 30 < at // DAY_MS <= last for at in who.frauds),
        }

    def _high(self, who: Entity, day: int) -> tuple[float, int]:
        """Highest payment over the usual amount, and high days, from each day's sums as they are held."""
        days: dict[int, tuple[int, float, float]] = {}
        for at, x in who.events:
            if day - 30 < at // DAY_MS:
                count, total, square = days.get(at // DAY_MS, (0, 0.0, 0.0))
                total = float(np.float32(round((total + x) * 10_000) / 10_000))
                days[at // DAY_MS] = count + 1, total, float(np.float32(square + x * x))
        if not days:
            return 1.0, 0
        count = sum(each[0] for each in days.values())
        # In the order of the ring's slots, so that sums are the same to the last bit.
        total = sum(days[each][1] for each in sorted(days, key=lambda each: each % 30))
        usual = max(total / count, 0.01)
        for _ in range(2):
            over = sum(max(days[each][1] - 2.5 * usual * days[each][0], 0) for each in days)
            usual = max((total - over) / count, 0.01)
        highest = {
            each: s / n + sqrt((n - 1) * max(q / n - (s / n) * (s / n) * (1 + n * 2**-23), 0))
            for each, (n, s, q) in days.items()
        }
        high_days = sum(day - 7 < each and most > 2.5 * usual for each, most in highest.items())
        return min(max(highest.values()) / usual, 1000), high_days

    def _of_terminal(self, where: Entity) -> dict[str, float]:
        hour, oldest = where.newest_hour, self._oldest_day() * DAY_MS
        last = hour // 24 - self.spec.label_delay_days - 1
        features: dict[str, float] = {
            "terminal_count_now_1d": sum(
                hour - 24 < at // HOUR_MS and at >= oldest for at, _ in where.hour_events
            )
        }
        for days in (1, 7, 30):
            count = sum(last - days < at // DAY_MS <= last and at >= oldest for at, _ in where.events)
            fraud = sum(last - days < at // DAY_MS <= last and at >= oldest for at in where.frauds)
            features[f"terminal_count_{days}d"] = count
            features[f"terminal_risk_{days}d"] = min(fraud, count) / count if count else 0
        early = sum(last < at // DAY_MS for at in where.frauds)
        count = sum(last < at // DAY_MS for at, _ in where.events)
        features["terminal_fraud_early"] = early
        features["terminal_risk_early"] = min(early, count) / count if count else 0
        known = [at // DAY_MS for at in where.frauds if last - 30 < at // DAY_MS <= last and at >= oldest]
        never = self.spec.label_delay_days + 31
        features["terminal_fraud_first_days"] = hour // 24 - min(known) if known else never
        features["terminal_fraud_last_days"] = hour // 24 - max(known) if known else never
        paid = sum(min(known) <= at // DAY_MS <= last for at, _ in where.events) if known else 0
        features["terminal_risk_since_fraud"] = min(len(known), paid) / paid if paid else 0
        return features
