"""The papers, from facts and words: the validation report and the data card."""

import math
from collections.abc import Mapping
from typing import Any

from services.training.evaluate import Interval
from services.training.papers.facts import Facts
from services.training.papers.paper import Block, Heading, Language, Paper, Picture, Rows, Text
from services.training.papers.words import Say, speaking
from services.training.plots import calibration_plot
from services.training.thresholds import Costs
from services.training.watch.slices import Slice
from weir.inference.stages import Stages

_FINE = ("calibration_error", "brier", "log_loss")
_MONEY = ("reviewed_day", "declined_day", "honest_declined_day", "cost_day")


def validation_report(facts: Facts, costs: Costs, reviews_day: float, language: Language) -> Paper:
    """What a model-risk reviewer asks of a version."""
    say, about = speaking(language), facts.about
    findings = facts.findings()
    report = facts.report
    blocks: list[Block] = [Heading(say("first"))]
    blocks += [Text("• " + say(each)) for each in findings] or [Text(say("none"))]
    blocks += [
        Heading(say("identity")),
        _identity(facts, say),
        Heading(say("lineage")),
        Text(say("lineage_text")),
    ]
    counted = say("figures_text").format(
        window=facts.window,
        rows=f"{report.row_count:,}",
        frauds=f"{report.fraud_count:,}",
        accounts=f"{report.account_count:,}",
    )
    blocks += [Heading(say("figures")), Text(counted), _figures(facts, say)]
    blocks += [Heading(say("curve")), Text(say("curve_text")), _bins(facts, say)]
    drawn = [(each.expected, each.observed) for each in facts.bins if each.observed > 0]
    svg, png = calibration_plot(drawn, across=_AXES[0], up=_AXES[1])
    blocks.append(Picture(svg, png, say("curve_caption")))
    blocks.append(Heading(say("slices")))
    blocks += (
        [Text(say("slices_text")), _slices(facts.slices, say)] if facts.slices else [Text(say("no_slices"))]
    )
    spent = say("money_text").format(
        reviews=f"{reviews_day:g}", review=f"{costs.review:g}", decline=f"{costs.decline:g}"
    )
    blocks += [Heading(say("money")), Text(spent), _money(facts, say)]
    blocks += [
        Heading(say("reasons")),
        Text(say("reasons_text").format(off=f"{facts.added_up:.1e}")),
        _importance(about["trained"]["importance"], say),
        Heading(say("limits")),
        Text(say("limits_text")),
    ]
    title = say("validation_title").format(name=about["name"], version=about["version"])
    return Paper(title, say("subtitle"), blocks, language)


def data_card(facts: Facts, language: Language) -> Paper:
    """What the version was trained on."""
    say, about = speaking(language), facts.about
    trained = about["trained"]
    data = trained["data"]
    whole = (
        (say("origin"), str(trained["origin"])),
        (say("layout"), str(data["layout"])),
        (say("rows"), f"{data['rows']:,}"),
        (say("frauds"), f"{data['frauds']:,}"),
        (say("share"), f"{data['frauds'] / data['rows']:.3%}"),
        (say("accounts"), f"{data['accounts']:,}"),
        (say("days"), f"{data['first_day']} – {data['last_day']}"),
        (say("delay"), str(trained["label_delay_days"])),
        (say("fingerprint"), str(data["fingerprint"])),
    )
    test = about["metrics"]["test"]
    counts = {
        kind: {**trained[kind], "test": test[kind]} for kind in ("rows", "frauds")
    }  # of the test window, those of the report
    windows = tuple(
        (
            say(name),
            str(trained["split"][name]),
            f"{counts['rows'][name]:,}",
            f"{counts['frauds'][name]:,}",
        )
        for name in ("train", "validation", "test")
    )
    blocks: list[Block] = [
        Heading(say("whole")),
        Rows(("", ""), whole, numbers_from=2),
        Heading(say("use")),
        Text(say("use_text")),
        Rows((say("window"), say("days"), say("rows"), say("frauds")), windows, numbers_from=2),
        Heading(say("quality")),
        Text(say("quality_text")),
    ]
    title = say("data_title").format(name=about["name"], version=about["version"])
    return Paper(title, say("subtitle"), blocks, language)


# Matplotlib has no Chinese letters of its own, so the axes keep these; the caption says them in words.
_AXES = ("mean probability", "share of fraud")


def _identity(facts: Facts, say: Say) -> Rows:
    about = facts.about
    trained = about["trained"]
    return Rows(
        ("", ""),
        (
            (say("name"), str(about["name"])),
            (say("version"), str(about["version"])),
            (say("stage"), _stage(facts.stages, str(about["version"])) or say("no_log")),
            (say("sha256"), str(about["sha256"])),
            (say("kind"), say("kind_text")),
            (say("spec"), str(about["feature_spec"])),
            (say("code"), str(trained["code_version"])),
            (say("created"), str(trained.get("created", ""))),
            (say("seed"), str(trained["seed"])),
            (say("command"), str(trained["command"])),
            (say("fingerprint"), str(trained["data"]["fingerprint"])),
        ),
        numbers_from=2,
    )


def _stage(stages: Stages | None, version: str) -> str:
    return str(stages.stages.get(version, "")) if stages is not None and stages.lines else ""


def _figures(facts: Facts, say: Say) -> Rows:
    recorded = facts.about["metrics"]
    columns: dict[str, Mapping[str, Any]] = {
        say("measured"): {
            name: {"value": each.value, "low": each.low, "high": each.high}
            for name, each in facts.report.metrics.items()
        },
        say("recorded"): recorded["test"]["metrics"],
    }
    for name in ("rule", "logistic"):
        if name in recorded.get("baselines", {}):
            columns[say(name)] = recorded["baselines"][name]["metrics"]
    rows = []
    for figure in facts.report.metrics:
        digits = 5 if figure in _FINE else 3
        cells = [
            f"{found[figure]['value']:.{digits}f} ({found[figure]['low']:.{digits}f} – "
            f"{found[figure]['high']:.{digits}f})"
            if figure in found
            else "–"
            for found in columns.values()
        ]
        rows.append((say(figure), *cells))
    return Rows(("", *columns), tuple(rows))


def _bins(facts: Facts, say: Say) -> Rows:
    head = tuple(say(each) for each in ("quantiles", "payments", "frauds", "expected", "observed"))
    rows = tuple(
        (
            f"{each.low:.1%} – {each.high:.1%}",
            f"{each.rows:,}",
            f"{each.frauds:,}",
            f"{each.expected:.4%}",
            f"{each.observed:.4%}",
        )
        for each in facts.bins
    )
    return Rows(head, rows)


def _slices(slices: tuple[Slice, ...], say: Say) -> Rows:
    head = tuple(say(each) for each in ("slice", "payments", "frauds", "auc_roc", "observed_expected"))
    rows = []
    for each in slices:
        small = each.auc_roc is None or each.observed_expected is None
        figures = [say("too_small"), "–"] if small else [_told(each.auc_roc), _told(each.observed_expected)]
        q = "–" if math.isnan(each.q) else f"{each.q:.3f}"
        rows.append((each.name, f"{each.rows:,}", f"{each.frauds:,}", *figures, q))
    return Rows((*head, "q"), tuple(rows))


def _told(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.value:.3f} ({interval.low:.3f} – {interval.high:.3f})"


def _money(facts: Facts, say: Say) -> Rows:
    head = ("review_at", "decline_at", *_MONEY[:3], "frauds_stopped", _MONEY[3])
    rows = []
    for name, each in facts.thresholds.items():
        at = (each.thresholds.review_at, each.thresholds.decline_at)
        rows.append(
            (
                say(name),
                *(f"{value:.4f}" if value <= 1 else say("never") for value in at),
                *(f"{getattr(each, money):,.1f}" for money in _MONEY[:3]),
                f"{each.frauds_stopped:.1%}",
                f"{each.cost_day:,.0f}",
            )
        )
    return Rows(("", *(say(each) for each in head)), tuple(rows))


def _importance(importance: Mapping[str, float], say: Say) -> Rows:
    ranked = sorted(importance.items(), key=lambda item: -item[1])
    rows = tuple((name, f"{weight:.3f}") for name, weight in ranked if weight > 0)
    return Rows((say("feature"), say("contribution")), rows)
