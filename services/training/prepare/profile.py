"""What a folder of events holds: counts, columns, and payments and frauds over days, hours and amounts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.training.prepare.contract import judge
from services.training.prepare.lake import Lake

_GOOD = "WHERE reason IS NULL"
# Payments with their verdict; without a label that says fraud a payment is honest, as a bank sees it.
_PAID = (
    "SELECT p.*, coalesce(l.is_fraud, false) AS is_fraud, l.reported_time "
    "FROM (SELECT * FROM judged_transactions WHERE reason IS NULL) p LEFT JOIN "
    "(SELECT event_id, true AS is_fraud, min(reported_time) AS reported_time FROM judged_labels "
    "WHERE reason IS NULL AND is_fraud GROUP BY event_id) l USING (event_id)"
)


@dataclass(frozen=True, slots=True)
class Profile:
    """Figures of the rows that keep the contract.

    whole: counts of all. columns: of each column its nulls, different values, and range. series: by name a
    list of (label, payments, frauds). delays: days from payment to report, and frauds.
    """

    whole: Mapping[str, Any]
    columns: Mapping[str, list[dict[str, Any]]]
    series: Mapping[str, list[tuple[str, int, int]]]
    delays: list[tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "whole": dict(self.whole),
            "columns": dict(self.columns),
            "series": {name: [list(point) for point in points] for name, points in self.series.items()},
            "delay_days": [list(point) for point in self.delays],
        }


def profile(lake: Lake, now_ms: int) -> Profile:
    """Look at the events; values of a bank's customers do not come into it, only counts and ranges."""
    judge(lake, now_ms)
    lake.define("paid", _PAID)
    (whole,) = lake.rows(
        "SELECT count(*) AS payments, count(*) FILTER (is_fraud) AS frauds, "
        "count(DISTINCT account_id) AS accounts, count(DISTINCT terminal_id) AS terminals, "
        "strftime(min(event_time), '%Y-%m-%d') AS first_day, "
        "strftime(max(event_time), '%Y-%m-%d') AS last_day, "
        "count(DISTINCT epoch_ms(event_time) // 86400000) AS days, "
        "count(DISTINCT currency) AS currencies, "
        "CAST(median(amount) AS DOUBLE) AS amount_median, "
        "CAST(quantile_cont(amount, 0.99) AS DOUBLE) AS amount_p99, "
        "CAST(sum(amount) FILTER (is_fraud) AS DOUBLE) AS amount_fraud, "
        "CAST(sum(amount) AS DOUBLE) AS amount_all FROM paid"
    )
    series = {
        "day": "strftime(event_time, '%Y-%m-%d')",
        "hour": "lpad(CAST(hour(event_time) AS VARCHAR), 2, '0')",
        "channel": "channel",
        "amount": "lpad(CAST(CAST(floor(2 * log2(greatest(amount, 1))) AS INTEGER) AS VARCHAR), 3, '0')",
    }
    return Profile(
        whole,
        {kind: _columns(lake, kind) for kind in ("transactions", "labels")},
        {name: _series(lake, by) for name, by in series.items()},
        [
            (int(row["days"]), int(row["frauds"]))
            for row in lake.rows(
                "SELECT (epoch_ms(reported_time) - epoch_ms(event_time)) // 86400000 AS days, "
                "count(*) AS frauds FROM paid WHERE is_fraud GROUP BY days ORDER BY days"
            )
        ],
    )


def _series(lake: Lake, by: str) -> list[tuple[str, int, int]]:
    rows = lake.rows(
        f"SELECT {by} AS label, count(*) AS payments, count(*) FILTER (is_fraud) AS frauds FROM paid "
        "GROUP BY label ORDER BY label"
    )
    return [(str(row["label"]), int(row["payments"]), int(row["frauds"])) for row in rows]


def _columns(lake: Lake, kind: str) -> list[dict[str, Any]]:
    """Of each column how much is missing and how much differs; a range of numbers or times."""
    made = []
    for name in lake.columns(kind):
        column = f'"{name}"'
        (row,) = lake.rows(
            f"SELECT typeof(any_value({column})) AS type, count(*) - count({column}) AS missing, "
            f"approx_count_distinct({column}) AS different, "
            f"CASE WHEN typeof(any_value({column})) SIMILAR TO '(DECIMAL|TIMESTAMP|BIGINT|INTEGER|DOUBLE).*' "
            f"THEN min({column})::VARCHAR END AS low, "
            f"CASE WHEN typeof(any_value({column})) SIMILAR TO '(DECIMAL|TIMESTAMP|BIGINT|INTEGER|DOUBLE).*' "
            f"THEN max({column})::VARCHAR END AS high FROM judged_{kind} {_GOOD}"
        )
        made.append({"name": name, **row})
    return made
