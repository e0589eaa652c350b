"""Findings told in lines for a terminal; the same tables, as Markdown, stand in reports."""

from collections.abc import Iterator, Sequence

import numpy as np

from services.training.watch.drift import SCORE
from services.training.watch.fairness import RATES, Fairness
from services.training.watch.run import Findings

WEEK_HEAD = (
    "week",
    "payments",
    "frauds so far",
    "fraud rate",
    "drifted",
    "score PSI",
    "AUC",
    "average precision",
    "observed / expected",
)
WORST_SHOWN = 10
_FIGURES = ("auc_roc", "average_precision", "observed_expected")


def week_rows(found: Findings) -> list[list[str]]:
    """The reference and each week, in the columns of WEEK_HEAD; a dash for what is not judged."""
    performance = found.performance
    judged = {week.week: week for week in performance.weeks} if performance else {}
    whole = [performance.reference] if performance else []
    first = found.drift.rates[0].rate_reference if found.drift.rates else float("nan")
    reference = [str(drawn.interval(name)) for drawn in whole for name in _FIGURES] or ["-"] * 3
    rows = [["reference", "", "", _share(first), "", "", *reference]]
    for rate in found.drift.rates:
        moved = [each for each in found.drift.moved if each.week == rate.week]
        score = next((f"{each.psi:.3f}" for each in moved if each.feature == SCORE), "-")
        drifted = str(sum(bool(each.level) for each in moved)) if moved else "-"
        week = judged.get(rate.week)
        figures = [
            f"{week.drawn.interval(name)}{' *' if _fell(week.fallen, name) else ''}" if week else "-"
            for name in _FIGURES
        ]
        told = f"{_share(rate.rate)}{' *' if rate.drifted else ''}"
        rows.append([rate.week, f"{rate.rows:,}", f"{rate.frauds:,}", told, drifted, score, *figures])
    return rows


def _fell(fallen: Sequence[str], name: str) -> bool:
    return name in fallen or (name == "average_precision" and "average_precision_same_rate" in fallen)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the columns after the first to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def moved_rows(found: Findings, most: int = 10) -> list[list[str]]:
    """What moved most in the newest judged week: feature, PSI, by chance, q, KS, its q, missing, level."""
    newest = max((each.week for each in found.drift.moved), default="")
    chosen = sorted((each for each in found.drift.moved if each.week == newest), key=lambda each: -each.psi)
    return [
        [
            each.feature,
            f"{each.psi:.3f}",
            f"{each.psi_chance:.3f}",
            f"{each.q:.2g}",
            f"{each.ks:.3f}",
            f"{each.ks_q:.2g}",
            f"{each.missing_reference:.1%} to {each.missing:.1%}",
            each.level or "-",
        ]
        for each in chosen[:most]
    ]


MOVED_HEAD = ("feature", "PSI", "by chance", "q", "KS", "q of KS", "missing", "drifted")
SLICE_HEAD = ("slice", "payments", "frauds", "AUC", "less than all by", "q", "observed / expected")
GROUP_HEAD = ("group", "accounts", "frauds", *(name.replace("_", " ") for name in RATES))


def slice_rows(found: Findings, *, worst: bool) -> list[list[str]]:
    """The worst slices, or all single ones, in the columns of SLICE_HEAD."""
    return [
        [
            each.name,
            f"{each.rows:,}",
            f"{each.frauds:,}",
            str(each.auc_roc or "too few frauds"),
            "-" if each.against is None else f"{-each.against.value:.3f}",
            "-" if np.isnan(each.q) else f"{each.q:.2g}",
            str(each.observed_expected or "-"),
        ]
        for each in (found.slices.worst if worst else found.slices.single)
    ]


def group_rows(fairness: Fairness) -> list[list[str]]:
    """Each group that is shown, in the columns of GROUP_HEAD."""
    return [
        [
            f"{each.group}{' *' if each.below_four_fifths else ''}",
            f"{each.accounts:,}",
            f"{each.frauds:,}",
            *("-" if np.isnan(each.rates[name].value) else str(each.rates[name]) for name in RATES),
        ]
        for each in fairness.groups
    ]


def lines(found: Findings) -> Iterator[str]:
    """What a person reads."""
    yield f"risk {found.version}, reference {found.reference}, labels of up to {found.ripe_days} days."
    for note in found.notes:
        yield f"Note: {note}."
    yield "\n" + markdown(WEEK_HEAD, week_rows(found))
    for week, reason in found.drift.skipped.items():
        yield f"{week}: {reason}"
    if rows := moved_rows(found, 5):
        yield "\nMoved most in the newest week:\n\n" + markdown(MOVED_HEAD, rows)
    if found.slices.looked_at:
        yield f"\nWorse than all payments, of {found.slices.looked_at} slices looked at:\n"
        rows = slice_rows(found, worst=True)
        yield markdown(SLICE_HEAD, rows[:WORST_SHOWN]) if rows else "none"
        if len(rows) > WORST_SHOWN:
            yield f"and {len(rows) - WORST_SHOWN} more: --out writes them all"
    if found.fairness is not None:
        hidden = found.fairness.not_shown
        yield "\nGroups (* below four fifths), " + f"{hidden} too small to show:\n"
        yield markdown(GROUP_HEAD, group_rows(found.fairness))
    yield f"\n{len(found.alarms)} alarms"
    for alarm in found.alarms:
        yield f"  {alarm.week} {alarm.kind} {alarm.what}: {alarm.says}"


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3%}"
