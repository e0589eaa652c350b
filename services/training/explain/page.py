"""A decision's explanation as one HTML page for a reviewer: no script, nothing fetched, made to be printed.

The only identifier on it is the event id that the reviewer asked for.
"""

from collections.abc import Sequence
from html import escape

import numpy as np

from services.training.explain.counterfactual import Change
from services.training.explain.decision import LAST_DAYS, USUAL_DAYS, Explanation, rounded_to_sum
from services.training.explain.words import Language, Reasons, Say, reason, speaking

DIGITS = 4
_HALF = 110  # half the width of the bars' picture, in its own units
# The page may draw itself, and do nothing else.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:.5rem 0;width:100%}"
    "td,th{padding:.2rem .6rem .2rem 0;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".score{font-size:2rem;font-weight:600}.sum{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}"
    "small,.soft{color:#555}code{overflow-wrap:anywhere}svg{width:14rem;height:1rem}"
    ".up{fill:#b3261e}.down{fill:#fff;stroke:#2f5d8a;stroke-width:1.5}.axis{stroke:#8a8f94}"
    "tr{break-inside:avoid}h2{margin-top:1.6rem;break-after:avoid}"
    "@media print{body{margin:0;max-width:none;font-size:11px}svg{print-color-adjust:exact;"
    "-webkit-print-color-adjust:exact}}"
)


def page(told: Explanation, reasons: Reasons, language: Language) -> str:
    """The page, whole; all that comes from data or files is escaped."""
    say = speaking(language)
    title = escape(say("title"))
    stopped = told.probability >= told.threshold
    parts = [
        f"<h1>{title}</h1><p>{escape(say('event'))} <code>{escape(told.event_id)}</code></p>",
        f"<h2>{escape(say('score'))}</h2><p class=score>{told.probability:.4f}</p>",
        f"<p>{escape(say('stopped' if stopped else 'passes').format(threshold=f'{told.threshold:.4f}'))} ",
        f"{escape(_place(told, say))}</p>",
        f"<h2>{escape(say('parts'))}</h2><p class=soft>{escape(say('legend'))}</p>",
        _parts(told, reasons, language, say),
        f"<h2>{escape(say('sum'))}</h2>{_sum(told, say)}",
        f"<h2>{escape(say('otherwise'))}</h2>{_otherwise(told, say)}",
        f"<p class=soft>{escape(say('caution'))}</p>",
        f"<h2>{escape(say('model'))}</h2>{_model(told, say)}",
    ]
    tag = "en" if language == "en" else "zh-CN"
    return (
        f'<!doctype html><html lang="{tag}"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def number(value: float, say: Say) -> str:
    """Whole numbers whole, others from 1 up to the cent, smaller to four figures; a word for nan."""
    if np.isnan(value):
        return say("missing")
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.2f}" if 1 <= abs(value) < 1e9 else f"{value:.4g}"


def signed(value: float, digits: int = DIGITS) -> str:
    """With its sign always, and a true minus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def change_text(change: Change, say: Say) -> tuple[str, str, str]:
    """A change as its name, what is, and what would have to be."""
    lever = change.lever
    if lever.moves != "any":
        # As fine as its steps are: rounded further, a value could lie on the other side of the edge.
        fits = (each for each in (0, 2) if float(lever.step * 10**each).is_integer())
        digits = next(fits, 4)
        return lever.name, f"{change.before[0]:,.{digits}f}", f"{change.after[0]:,.{digits}f}"
    names = [
        next((name for name, on in zip(lever.features, side, strict=True) if on), "other")
        for side in (change.before, change.after)
    ]
    before, after = (name.removeprefix("channel_").upper() for name in names)
    return say("channel"), before, after


def terms(told: Explanation) -> tuple[list[str], str]:
    """Base and contributions as printed, strongest first, and the logit that those add up to."""
    scale = 10**DIGITS
    # The base is the same on every page, so what rounding leaves over is never put there.
    base = round(told.base_logit * scale)
    added = round(told.logit * scale) - base
    whole = [base, *rounded_to_sum([float(told.contributions[at]) for at in told.order], added, DIGITS)]
    return [signed(each / scale) for each in whole], signed(sum(whole) / scale)


def _place(told: Explanation, say: Say) -> str:
    if not told.place_rows:
        return say("no_place")
    return say("place").format(share=f"{told.place:.2%}", rows=f"{told.place_rows:,}", days=LAST_DAYS)


def _parts(told: Explanation, reasons: Reasons, language: Language, say: Say) -> str:
    most = float(np.abs(told.contributions).max()) or 1.0
    printed = terms(told)[0][1:]
    rows = [
        [
            f"<code>{escape(told.features[at])}</code>",
            _bar(float(told.contributions[at]) / most),
            printed[place],
            escape(number(float(told.values[at]), say)),
            escape("—" if np.isnan(told.usual[at]) else number(float(told.usual[at]), say)),
            "—" if np.isnan(told.quantile[at]) else f"{told.quantile[at]:.1%}",
            escape(reason(reasons, told.features[at], float(told.contributions[at]), language)),
        ]
        for place, at in enumerate(told.order)
    ]
    head = ["feature", "", "effect", "value", "account", "quantile", "reason"]
    rest = [name for at, name in enumerate(told.features) if at not in set(told.order)]
    told_rest = f"<p class=soft>{escape(say('none').format(names=', '.join(rest)))}</p>" if rest else ""
    notes = (
        say("account_rows").format(days=USUAL_DAYS, rows=f"{told.usual_rows:,}"),
        say("training").format(rows=f"{told.training_rows:,}", days=told.training_days),
    )
    said = [escape(say(name)) if name else "" for name in head]
    return _table(said, rows, {2, 3, 4, 5}) + told_rest + f"<p class=soft>{escape(' '.join(notes))}</p>"


def _bar(share: float) -> str:
    """A bar to the right, filled, or to the left, hollow, its sign beside it: -1 to 1 of the half width."""
    width = abs(share) * (_HALF - 12)
    left = _HALF - width if share < 0 else _HALF
    mark = _HALF + (9 if share < 0 else -9)
    kind, sign = ("up", "+") if share > 0 else ("down", "−")
    axis = f'<line class="axis" x1="{_HALF}" x2="{_HALF}" y1="0" y2="14"/>'
    bar = f'<rect class="{kind}" x="{left:.1f}" y="3" width="{max(width, 0.5):.1f}" height="8"/>'
    text = f'<text x="{mark}" y="11" font-size="11" text-anchor="middle">{sign}</text>'
    return f'<svg viewBox="0 0 {2 * _HALF} 14" aria-hidden="true">{axis}{bar}{text}</svg>'


def _sum(told: Explanation, say: Say) -> str:
    shown, total = terms(told)
    names = [say("base"), *(told.features[at] for at in told.order)]
    added = " ".join(
        f"{value} <small>({escape(name)})</small>" for value, name in zip(shown, names, strict=True)
    )
    a, b = (f"{each:.4f}" for each in (told.calibration.a, told.calibration.b))
    curve = f"σ({a} · ln s − {b} · ln(1 − s) {signed(told.calibration.c)}) = {told.probability:.4f}"
    return (
        f"<p class=sum>{added} = <strong>{total}</strong></p>"
        f"<p class=sum>{escape(say('curve'))}: {escape(curve)}, s = σ({total})</p>"
    )


def _otherwise(told: Explanation, say: Say) -> str:
    found = told.counterfactual
    if found is None:
        return f"<p>{escape(say('no_way'))}</p>"
    if not found.changes:
        return f"<p>{escape(say('already'))}</p>"
    rows = []
    for change in found.changes:
        name, before, after = change_text(change, say)
        cells = (name, before, after, say(change.lever.by), f"{change.shift:.1%}")
        rows.append([escape(cell) for cell in cells])
    head = [escape(say(name)) for name in ("feature", "from", "to", "by", "shift")]
    moved = {name for change in found.changes for name in change.lever.features}
    follows = [
        f"{name} {number(float(told.values[at]), say)} → {number(float(found.row[at]), say)}"
        for at, name in enumerate(told.features)
        if name not in moved and found.row[at] != told.values[at] and not np.isnan(told.values[at])
    ]
    would = say("would").format(probability=f"{found.probability:.4f}")
    said = [f"<p>{escape(would)}</p>", _table(head, rows, {1, 2, 4})]
    if follows:
        said.append(f"<p>{escape(say('follows').format(names='; '.join(follows)))}</p>")
    return "".join([*said, f"<p>{escape(say('exact' if found.exact else 'search'))}</p>"])


def _model(told: Explanation, say: Say) -> str:
    rows = [
        [escape(say("model")), escape(told.model["name"])],
        [escape(say("version")), escape(told.model["version"])],
        ["SHA-256", f"<code>{escape(told.model['sha256'])}</code>"],
        ["feature_spec", f"<code>{escape(told.model['feature_spec'])}</code>"],
    ]
    return _table([], rows, set())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int]) -> str:
    """Cells are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=n' if at in numbers else ''}>{cell}</{tag}>" for at, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    return f"<table>{line(head, 'th') if head else ''}{''.join(line(row, 'td') for row in rows)}</table>"
