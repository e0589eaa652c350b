"""A profile as one HTML page, in English or Chinese: no script, nothing from elsewhere, opens anywhere."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Literal

from services.training.prepare.contract import Finding
from services.training.prepare.profile import Profile

Language = Literal["en", "zh"]
Say = Callable[[str], str]

_WORDS: Mapping[str, tuple[str, str]] = {
    "title": ("Profile of payments", "交易数据概况"),
    "contract": ("Contract", "数据契约"),
    "kept": ("Every row keeps the contract.", "所有数据均符合契约。"),
    "rule": ("rule", "规则"),
    "what": ("what is wrong", "问题"),
    "rows": ("rows", "行数"),
    "first": ("the first", "第一处"),
    "whole": ("As a whole", "总体"),
    "payments": ("payments", "交易"),
    "frauds": ("known frauds", "已知欺诈"),
    "fraud_share": ("share of fraud", "欺诈比例"),
    "accounts": ("accounts", "账户"),
    "terminals": ("terminals", "终端"),
    "days": ("days", "天数"),
    "first_day": ("first day", "第一天"),
    "last_day": ("last day", "最后一天"),
    "currencies": ("currencies", "币种"),
    "amount_median": ("median amount", "金额中位数"),
    "amount_p99": ("amount, 99 of 100 are below", "金额 99% 分位数"),
    "amount_share": ("share of fraud by amount", "按金额的欺诈比例"),
    "day": ("By day", "按天"),
    "hour": ("By hour (UTC)", "按小时（UTC）"),
    "channel": ("By channel", "按渠道"),
    "amount": ("By amount (each bar 1.4 times the one before)", "按金额（每格为前一格的 1.4 倍）"),
    "delay": ("Days until a fraud is reported", "欺诈上报延迟（天）"),
    "columns": ("Columns", "字段"),
    "name": ("name", "名称"),
    "type": ("type", "类型"),
    "missing": ("missing", "缺失"),
    "different": ("different, about", "不同值（约）"),
    "low": ("lowest", "最小"),
    "high": ("highest", "最大"),
    "bars": (
        "bars: payments; dots: share of fraud, at most {share}",
        "柱：交易数；点：欺诈比例，最高 {share}",
    ),
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.2rem .8rem .2rem 0;text-align:left;"
    "border-bottom:1px solid #ddd;vertical-align:top}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}"
    "svg{width:100%;height:auto}.bar{fill:#9db4c9}.dot{fill:#b3261e}figcaption{color:#555;font-size:.9em}"
    "h2{margin-top:2rem}@media(prefers-color-scheme:dark){body{background:#16181a;color:#e6e6e6}"
    "td,th{border-color:#3a3d40}.bar{fill:#4d6479}figcaption{color:#aaa}}"
)
_WIDTH, _HEIGHT = 900, 180


def page(made: Profile, findings: Sequence[Finding], *, language: Language, fingerprint: str) -> str:
    """The page; `fingerprint` is of the files that it was made of."""

    def say(name: str) -> str:
        return _WORDS[name][0 if language == "en" else 1]

    whole = made.whole
    share = whole["frauds"] / whole["payments"] if whole["payments"] else 0.0
    by_amount = (whole["amount_fraud"] or 0) / whole["amount_all"] if whole["amount_all"] else 0.0
    counted = [
        *(
            (name, f"{whole[name]:,}")
            for name in ("payments", "frauds", "accounts", "terminals", "days", "currencies")
        ),
        ("fraud_share", f"{share:.3%}"),
        ("amount_share", f"{by_amount:.3%}"),
        *((name, f"{whole[name] or 0:,.2f}") for name in ("amount_median", "amount_p99")),
        *((name, str(whole[name])) for name in ("first_day", "last_day")),
    ]
    rules = _findings(findings, say) if findings else f"<p>{say('kept')}</p>"
    parts = [
        f"<h1>{say('title')}</h1><p><code>{escape(fingerprint)}</code></p>",
        f"<h2>{say('contract')}</h2>{rules}",
        f"<h2>{say('whole')}</h2>",
        _table([[say(name), value] for name, value in counted], numbers={1}),
    ]
    for name, points in made.series.items():
        parts += [f"<h2>{say(name)}</h2>", _chart(points, say("bars"))]
    parts += [f"<h2>{say('delay')}</h2>", _chart([(str(days), count, 0) for days, count in made.delays], "")]
    head = [say(name) for name in ("name", "type", "missing", "different", "low", "high")]
    for kind, rows in made.columns.items():
        told = [
            [
                row["name"],
                row["type"],
                f"{row['missing']:,}",
                f"{row['different']:,}",
                row["low"],
                row["high"],
            ]
            for row in rows
        ]
        parts += [f"<h2>{say('columns')}: {kind}</h2>", _table(told, head, numbers={2, 3})]
    tag = "en" if language == "en" else "zh-CN"
    return (
        f'<!doctype html><html lang="{tag}"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{say("title")}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _findings(findings: Sequence[Finding], say: Say) -> str:
    rows = [[each.table, each.rule, each.says, f"{each.count:,}", each.where] for each in findings]
    return _table(rows, ["", say("rule"), say("what"), say("rows"), say("first")], numbers={3})


def _table(
    rows: Sequence[Sequence[object]],
    head: Sequence[str] = (),
    numbers: frozenset[int] | set[int] = frozenset(),
) -> str:
    def cells(row: Sequence[object], tag: str) -> str:
        made = (
            f"<{tag}{' class=n' if at in numbers else ''}>{escape('' if each is None else str(each))}</{tag}>"
            for at, each in enumerate(row)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(cells(row, "td") for row in rows)
    return f"<table>{cells(head, 'th') if head else ''}{body}</table>"


def _chart(points: Sequence[tuple[str, int, int]], says: str) -> str:
    """Bars of payments, and a dot for the share of fraud."""
    if not points:
        return ""
    most = max(count for _, count, _ in points) or 1
    shares = [frauds / count if count else 0.0 for _, count, frauds in points]
    top, width = max(shares), _WIDTH / len(points)
    drawn = []
    for at, ((label, count, frauds), share) in enumerate(zip(points, shares, strict=True)):
        height = _HEIGHT * count / most
        place = f'x="{at * width:.1f}" y="{_HEIGHT - height:.1f}" width="{max(width - 1, 0.5):.1f}"'
        told = f"<title>{escape(label)}: {count:,}, {frauds:,}</title>"
        drawn.append(f'<rect class="bar" {place} height="{height:.1f}">{told}</rect>')
        if top:
            place = f'cx="{(at + 0.5) * width:.1f}" cy="{_HEIGHT * (1 - share / top):.1f}"'
            drawn.append(f'<circle class="dot" {place} r="3"/>')
    ends = f"{escape(points[0][0])} … {escape(points[-1][0])}"
    caption = f"{ends}. {says.format(share=format(top, '.2%'))}" if says else ends
    view = f'viewBox="0 -4 {_WIDTH} {_HEIGHT + 8}" role="img" aria-label="{caption}"'
    return f"<figure><svg {view}>{''.join(drawn)}</svg><figcaption>{caption}</figcaption></figure>"
