"""The contract that events must keep: each rule counts what breaks it, and says whether it can be cleaned.

Rules of a row are conditions of SQL over the columns of `schemas/transaction.avsc` and `label.avsc`; rules of
the whole look at what a training needs of a set. Nothing is held in memory but the counts.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from services.training.prepare.lake import Lake, joined
from weir.features.spec import CHANNELS

# Earlier than any account that still pays.
_FIRST_MS = 631_152_000_000  # 1990-01-01
_AMOUNT_MAX = 100_000_000_000


class Severity(StrEnum):
    """What a broken rule means."""

    ROWS = "rows"  # `weir data clean` takes the rows out
    WARNING = "warning"  # worth a look; nothing is taken out
    STOP = "stop"  # no model can be made of it


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition that no row may meet. says: what is wrong, for a person."""

    name: str
    table: str
    breaks: str
    says: str
    severity: Severity = Severity.ROWS


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule. count: rows that break it; where: the first, as file and row from 0, or empty."""

    rule: str
    table: str
    severity: Severity
    says: str
    count: int
    where: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


_CHANNELS = ", ".join(f"'{channel}'" for channel in CHANNELS)
_NO_ID = "event_id IS NULL OR event_id = ''"
_NO_ENTITY = "account_id IS NULL OR account_id = '' OR terminal_id IS NULL OR terminal_id = ''"
_EARLY = f"event_time IS NULL OR epoch_ms(event_time) < {_FIRST_MS}"

PAYMENT_RULES = (
    Rule("no_event_id", "transactions", _NO_ID, "no event_id"),
    Rule("no_entity", "transactions", _NO_ENTITY, "no account_id or terminal_id"),
    Rule(
        "bad_time",
        "transactions",
        f"{_EARLY} OR epoch_ms(event_time) > $now",
        "no time, or one that can't be",
    ),
    Rule(
        "bad_amount",
        "transactions",
        f"amount IS NULL OR amount <= 0 OR amount > {_AMOUNT_MAX}",
        "no amount above 0",
    ),
    Rule(
        "bad_channel",
        "transactions",
        f"channel IS NULL OR channel NOT IN ({_CHANNELS})",
        "an unknown channel",
    ),
    Rule(
        "bad_currency",
        "transactions",
        "currency IS NULL OR NOT regexp_full_match(currency, '[A-Z]{3}')",
        "no currency of three letters (ISO 4217)",
    ),
    Rule("duplicate", "transactions", "copy > 1", "an event_id that came before"),
)
LABEL_RULES = (
    Rule("no_event_id", "labels", _NO_ID, "no event_id"),
    Rule("no_payment", "labels", "paid_time IS NULL", "names no payment that is there"),
    Rule("no_verdict", "labels", "is_fraud IS NULL", "neither fraud nor honest"),
    Rule(
        "other_payment",
        "labels",
        "event_time IS DISTINCT FROM paid_time OR account_id IS DISTINCT FROM paid_account",
        "its time or account is not its payment's",
    ),
    Rule(
        "before_payment",
        "labels",
        "reported_time IS NULL OR reported_time < event_time",
        "reported before the payment",
    ),
    Rule("from_the_future", "labels", "epoch_ms(reported_time) > $now", "reported later than now"),
    Rule("duplicate", "labels", "copy > 1", "the same verdict came before"),
)


def judge(lake: Lake, now_ms: int) -> None:
    """Make the views `judged_transactions` and `judged_labels`: the rows, with `reason` of the first rule.

    Of copies the earliest stays. A label is looked for among the payments that keep the contract.
    """
    lake.define(
        "numbered_transactions",
        "SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY event_time, file, row) AS copy "
        "FROM transactions",
    )
    lake.define(
        "judged_transactions",
        f"SELECT *, {_first(PAYMENT_RULES, now_ms)} AS reason FROM numbered_transactions",
    )
    lake.define(
        "numbered_labels",
        "SELECT l.*, p.event_time AS paid_time, p.account_id AS paid_account, row_number() OVER "
        "(PARTITION BY l.event_id, l.is_fraud ORDER BY l.reported_time, l.file, l.row) AS copy FROM labels l "
        "LEFT JOIN (SELECT event_id, event_time, account_id FROM judged_transactions WHERE reason IS NULL) p "
        "USING (event_id)",
    )
    lake.define("judged_labels", f"SELECT *, {_first(LABEL_RULES, now_ms)} AS reason FROM numbered_labels")


def validate(lake: Lake, *, now_ms: int, days_min: int) -> list[Finding]:
    """Every broken rule, those that stop first.

    Args:
        now_ms: nothing may be later. days_min: that a training takes.
    """
    judge(lake, now_ms)
    found: list[Finding] = []
    for table, rules in (("transactions", PAYMENT_RULES), ("labels", LABEL_RULES)):
        says = {rule.name: rule for rule in rules}
        for row in lake.rows(
            f"SELECT reason, count(*) AS count, min_by(file || ' row ' || row, (file, row)) AS first "
            f"FROM judged_{table} WHERE reason IS NOT NULL GROUP BY reason"
        ):
            rule = says[row["reason"]]
            found.append(Finding(rule.name, table, rule.severity, rule.says, row["count"], row["first"]))
    found += _of_the_whole(lake, days_min)
    order = {Severity.STOP: 0, Severity.ROWS: 1, Severity.WARNING: 2}
    return sorted(found, key=lambda finding: (order[finding.severity], finding.table, finding.rule))


def _of_the_whole(lake: Lake, days_min: int) -> list[Finding]:
    (whole,) = lake.rows(
        "SELECT count(*) AS payments, count(DISTINCT epoch_ms(event_time) // 86400000) AS days, "
        "count(DISTINCT account_id) AS accounts, count(DISTINCT terminal_id) AS terminals, "
        "count(DISTINCT amount) AS amounts, count(DISTINCT channel) AS channels "
        "FROM judged_transactions WHERE reason IS NULL"
    )
    (labels,) = lake.rows(
        "SELECT count(DISTINCT event_id) FILTER (is_fraud) AS frauds, "
        "count(DISTINCT event_id) AS labelled FROM judged_labels WHERE reason IS NULL"
    )
    (both,) = lake.rows(
        "SELECT count(*) AS count FROM (SELECT event_id FROM judged_labels WHERE reason IS NULL "
        "GROUP BY event_id HAVING count(DISTINCT is_fraud) > 1)"
    )
    (order,) = lake.rows(
        "SELECT count(*) AS count FROM (SELECT event_time < lag(event_time) OVER "
        "(PARTITION BY file ORDER BY row) AS back FROM transactions) WHERE back"
    )
    stop, warning = Severity.STOP, Severity.WARNING
    held = [
        ("no_payment", stop, "no payment keeps the contract", whole["payments"] == 0, 0),
        ("no_fraud", stop, "no payment is known to be fraud", labels["frauds"] == 0, 0),
        (
            "one_class",
            stop,
            "every payment is fraud",
            0 < whole["payments"] == labels["frauds"],
            labels["frauds"],
        ),
        (
            "few_days",
            stop,
            f"fewer than {days_min} days of payments",
            whole["days"] < days_min,
            whole["days"],
        ),
        ("verdicts_differ", warning, "payments with labels that say both", both["count"] > 0, both["count"]),
        (
            "out_of_order",
            warning,
            "payments earlier than the one before them",
            order["count"] > 0,
            order["count"],
        ),
    ]
    held += [
        (f"constant_{name}", warning, f"every payment has the same {name}", whole[f"{name}s"] == 1, 1)
        for name in ("account", "terminal", "amount", "channel")
    ]
    return [
        Finding(name, "all", severity, says, count) for name, severity, says, broken, count in held if broken
    ]


def _first(rules: Sequence[Rule], now_ms: int) -> str:
    return joined([(rule.name, rule.breaks.replace("$now", str(now_ms))) for rule in rules])
