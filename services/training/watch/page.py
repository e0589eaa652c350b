"""Findings as one HTML page, in English or Chinese: no script, nothing from elsewhere, opens anywhere."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

from services.training.watch.drift import SCORE
from services.training.watch.run import Findings
from services.training.watch.table import (
    GROUP_HEAD,
    MOVED_HEAD,
    SLICE_HEAD,
    WEEK_HEAD,
    group_rows,
    moved_rows,
    slice_rows,
    week_rows,
)

Language = Literal["en", "zh"]

_ZH: Mapping[str, str] = {
    "A served model watched": "在用模型监测",
    "version": "版本",
    "reference": "参考窗口",
    "as of": "截至",
    "a label counts within": "标签计入期限",
    "days": "天",
    "of the reference's frauds were reported in time": "的参考期欺诈在期限内上报",
    "Alarms": "告警",
    "No alarm.": "无告警。",
    "no payments": "无交易",
    "not over yet": "尚未结束",
    "labels still come in: its fraud rate and figures are not judged": "标签仍在到来：不评判欺诈率和效果",
    "Notes": "说明",
    "Week by week": "按周",
    "* an alarm. A dash: not judged.": "* 表示告警；短横表示未评判。",
    "Not judged": "未评判",
    "AUC by week, with its interval": "每周 AUC 及其区间",
    "PSI of the score by week": "每周分数 PSI",
    "Moved most in the newest week": "最新一周变化最大的特征",
    "Slices": "切片",
    "Worst slices": "最差切片",
    "none": "无",
    "slices looked at": "个切片接受检验",
    "Groups": "群体",
    "groups too small to show": "个群体过小，不展示",
    "kind": "类别",
    "what": "对象",
    "finding": "结果",
    "week": "周",
    "payments": "交易",
    "frauds": "欺诈",
    "frauds so far": "已知欺诈",
    "fraud rate": "欺诈率",
    "drifted": "漂移",
    "score PSI": "分数 PSI",
    "average precision": "平均精度",
    "observed / expected": "实际 / 预期",
    "feature": "特征",
    "score": "分数",
    "fraud_rate": "欺诈率",
    "performance": "效果",
    "by chance": "随机水平",
    "q of KS": "KS 的 q",
    "missing": "缺失",
    "moderate": "中等",
    "large": "严重",
    "slice": "切片",
    "less than all by": "低于总体",
    "too few frauds": "欺诈过少",
    "group": "群体",
    "accounts": "账户",
    "declined": "拒绝率",
    "reviewed": "人工审核率",
    "false positive rate": "误报率",
    "true positive rate": "召回率",
    "precision": "精确率",
    "selection ratio": "通过率之比",
    "stopped ratio": "拦截率之比",
}
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "table{border-collapse:collapse;margin:.5rem 0;display:block;overflow-x:auto}"
    "td,th{padding:.2rem .8rem .2rem 0;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap;"
    "font-variant-numeric:tabular-nums}td:first-child,th:first-child{text-align:left}"
    "svg{width:100%;height:auto}line{stroke:#9db4c9;stroke-width:2}.dot{fill:#b3261e}"
    "figcaption{color:#555;font-size:.9em}h2{margin-top:2rem}"
    "@media(prefers-color-scheme:dark){body{background:#16181a;color:#e6e6e6}td,th{border-color:#3a3d40}"
    "line{stroke:#4d6479}figcaption{color:#aaa}}"
)
_WIDTH, _HEIGHT = 900, 160


def page(found: Findings, language: Language = "en") -> str:
    """The page; names of features, slices and groups stay as the data has them."""

    def say(words: str) -> str:
        return _ZH.get(words, words) if language == "zh" else words

    def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        cells = [[say(cell) for cell in row] for row in rows]
        body = _table([say(each) for each in head], cells) if rows else f"<p>{say('none')}</p>"
        return f"<h2>{say(title)}</h2>{body}"

    about = [
        f"{say('version')} {found.version}",
        f"{say('reference')} {found.reference}",
        f"{say('as of')} {found.as_dict()['as_of'][:10]}",
        f"{say('a label counts within')} {found.ripe_days} {say('days')}",
    ]
    if found.in_time == found.in_time:  # not nan
        in_time = say("of the reference's frauds were reported in time")
        about.append(f"{found.in_time:.1%} {in_time}")
    parts = [f"<h1>{say('A served model watched')}</h1><p>{escape('; '.join(about))}</p>"]
    parts.append(f"<p><code>{escape(found.sha256)}</code><br><code>{escape(found.fingerprint)}</code></p>")
    told = [[each.week, each.kind, each.what, each.says] for each in found.alarms]
    parts.append(
        section("Alarms", ("week", "kind", "what", "finding"), told)
        if told
        else f"<h2>{say('Alarms')}</h2><p>{say('No alarm.')}</p>"
    )
    if found.notes:
        parts.append(f"<h2>{say('Notes')}</h2>" + "".join(f"<p>{escape(note)}</p>" for note in found.notes))
    parts.append(section("Week by week", WEEK_HEAD, week_rows(found)))
    parts.append(f"<p>{say('* an alarm. A dash: not judged.')}</p>")
    if found.drift.skipped:
        parts.append(
            section("Not judged", ("week", ""), [list(each) for each in found.drift.skipped.items()])
        )
    if found.performance:
        auc = [(week.week, week.drawn.interval("auc_roc")) for week in found.performance.weeks]
        points = [(name, each.value, each.low, each.high) for name, each in auc]
        parts.append(_chart(points, say("AUC by week, with its interval")))
    scores = [each for each in found.drift.moved if each.feature == SCORE]
    drawn = [(each.week, each.psi, each.psi_chance, each.psi) for each in scores]
    parts.append(_chart(drawn, say("PSI of the score by week")))
    parts.append(section("Moved most in the newest week", MOVED_HEAD, moved_rows(found)))
    parts.append(section("Worst slices", SLICE_HEAD, slice_rows(found, worst=True)))
    parts.append(f"<p>{found.slices.looked_at} {say('slices looked at')}</p>")
    parts.append(section("Slices", SLICE_HEAD, slice_rows(found, worst=False)))
    if found.fairness is not None:
        parts.append(section("Groups", GROUP_HEAD, group_rows(found.fairness)))
        parts.append(f"<p>{found.fairness.not_shown} {say('groups too small to show')}</p>")
    tag = "en" if language == "en" else "zh-CN"
    return (
        f'<!doctype html><html lang="{tag}"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{say("A served model watched")}</title>'
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(row: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _chart(points: Sequence[tuple[str, float, float, float]], says: str) -> str:
    """A dot a week, and a line from its low to its high end."""
    if not points:
        return ""
    low, high = (pick(value for point in points for value in point[1:]) for pick in (min, max))
    span, width = (high - low) or 1.0, _WIDTH / len(points)
    drawn = []
    for at, (week, value, below, above) in enumerate(points):
        across = (at + 0.5) * width
        y, y_low, y_high = (_HEIGHT * (1 - (each - low) / span) for each in (value, below, above))
        drawn.append(f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{y_low:.1f}" y2="{y_high:.1f}"/>')
        told = f"<title>{escape(week)}: {value:.4f} ({below:.4f}, {above:.4f})</title>"
        drawn.append(f'<circle class="dot" cx="{across:.1f}" cy="{y:.1f}" r="4">{told}</circle>')
    caption = f"{says}: {points[0][0]} … {points[-1][0]}; {low:.4f} … {high:.4f}"
    view = f'viewBox="0 -6 {_WIDTH} {_HEIGHT + 12}" role="img" aria-label="{escape(caption)}"'
    return f"<figure><svg {view}>{''.join(drawn)}</svg><figcaption>{escape(caption)}</figcaption></figure>"
