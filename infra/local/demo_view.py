"""What the demo counts and how it shows it. `Tally` is pure; times are passed in."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.local.progress import seconds
from infra.local.state import StackState
from weir.client.records import Decision, Outcome

_RATE_WINDOW_S = 5.0
# Of each outcome the latest so many are shown; the rare ones are the interesting ones.
_SHOWN = {Outcome.DECLINE: 3, Outcome.REVIEW: 3, Outcome.APPROVE: 2}
_COLOUR = {Outcome.DECLINE: "red", Outcome.REVIEW: "yellow", Outcome.APPROVE: "green"}
_WORD = {
    "en": {Outcome.DECLINE: "declined", Outcome.REVIEW: "review", Outcome.APPROVE: "approved"},
    "zh": {Outcome.DECLINE: "拒绝", Outcome.REVIEW: "复核", Outcome.APPROVE: "通过"},
}


def language(environment: Mapping[str, str]) -> str:
    """The language of reasons: "zh" when the locale is Chinese, else "en"."""
    locale = next(
        (environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), ""
    )
    return "zh" if locale.lower().startswith("zh") else "en"


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of `ordered` is not above; nan when it is empty."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass(slots=True)
class Tally:
    """Counts over the demo's decisions, their latencies in ms, and the handful to show."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    latency_ms: list[float] = field(default_factory=list)
    degraded: int = 0
    handful: dict[Outcome, deque[Decision]] = field(
        default_factory=lambda: {outcome: deque(maxlen=count) for outcome, count in _SHOWN.items()}
    )
    first_s: float | None = None
    last_s: float = 0.0
    _recent: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def count(self) -> int:
        """Decisions so far."""
        return self.outcomes.total()

    def add(self, decisions: Sequence[Decision], now_s: float) -> None:
        """Take a batch that was read at `now_s` of the Unix clock."""
        if self.first_s is None:
            self.first_s = now_s
        self.last_s = now_s
        self._recent.append((now_s, len(decisions)))
        for decision in decisions:
            self.outcomes[decision.outcome] += 1
            self.degraded += decision.degraded
            self.latency_ms.append(now_s * 1000.0 - decision.event_time.timestamp() * 1000.0)
            self.handful[decision.outcome].append(decision)

    def rate(self, now_s: float) -> float:
        """Decisions a second over the last few seconds."""
        while self._recent and self._recent[0][0] < now_s - _RATE_WINDOW_S:
            self._recent.popleft()
        since = max(self.first_s or now_s, now_s - _RATE_WINDOW_S)
        return sum(count for _, count in self._recent) / max(now_s - since, 0.5)

    def mean_rate(self) -> float:
        """Decisions a second from the first to the last."""
        return self.count / max(self.last_s - (self.first_s or self.last_s), 0.001)

    def share(self, outcome: Outcome) -> float:
        """Of all decisions, in percent."""
        return 100.0 * self.outcomes[outcome] / self.count if self.count else 0.0

    def latencies(self) -> tuple[float, float]:
        """p50 and p99 in ms, over all decisions."""
        ordered = sorted(self.latency_ms)
        return quantile(ordered, 0.5), quantile(ordered, 0.99)


def one_line(tally: Tally, rate: float, lang: str = "en") -> str:
    """The numbers in a line."""
    p50, p99 = tally.latencies()
    shares = ", ".join(
        f"{_WORD[lang][outcome]} {tally.share(outcome):.1f} %"
        for outcome in (Outcome.APPROVE, Outcome.REVIEW, Outcome.DECLINE)
    )
    degraded = f", degraded {tally.degraded:,}" if tally.degraded else ""
    return (
        f"{rate:,.0f} decisions/s, {tally.count:,} in all, "
        f"event to decision p50 {p50:.0f} ms p99 {p99:.0f} ms, {shares}{degraded}"
    )


def decision_line(decision: Decision, lang: str) -> str:
    """One decision for a person, the account left out."""
    reasons = "; ".join(f"{reason.text(lang)} ({reason.contribution:+.2f})" for reason in decision.reasons)
    rules = f" [{', '.join(decision.rules)}]" if decision.rules else ""
    likely = "degraded" if decision.probability is None else f"{decision.probability:.1%}"
    return (
        f"{_WORD[lang][decision.outcome]:<8} {decision.amount:>10,.2f} {decision.currency} "
        f"{likely:>6}{rules} {reasons}"
    )


def screen(tally: Tally, now_s: float, left_s: float, lang: str) -> RenderableType:
    """The live view."""
    p50, p99 = tally.latencies()
    numbers = Table.grid(padding=(0, 3))
    numbers.add_row(
        Text(f"{tally.rate(now_s):,.0f} decisions/s", style="bold"),
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms from event to reader"
        if tally.count
        else "waiting for the first",
        *(
            Text(f"{_WORD[lang][outcome]} {tally.share(outcome):.1f} %", style=_COLOUR[outcome])
            for outcome in (Outcome.APPROVE, Outcome.REVIEW, Outcome.DECLINE)
        ),
    )
    shown = Table(box=None, pad_edge=False, expand=True)
    for title, justify in (("outcome", "left"), ("amount", "right"), ("fraud", "right")):
        shown.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    shown.add_column("reasons, in logit units", ratio=1)
    chosen = [decision for each in tally.handful.values() for decision in each]
    for decision in sorted(chosen, key=lambda each: each.decided_time, reverse=True):
        rules = f" [{', '.join(decision.rules)}]" if decision.rules else ""
        shown.add_row(
            Text(_WORD[lang][decision.outcome] + rules, style=_COLOUR[decision.outcome]),
            f"{decision.amount:,.2f} {decision.currency}",
            "degraded" if decision.probability is None else f"{decision.probability:.1%}",
            "; ".join(f"{reason.text(lang)} {reason.contribution:+.2f}" for reason in decision.reasons),
        )
    foot = Text(
        f"{tally.count:,} decisions read and decrypted, {left_s:.0f} s left, Ctrl-C ends it", style="dim"
    )
    return Group(numbers, Text(), shown, Text(), foot)


def summary(console: Console, tally: Tally, lang: str, began_s: float, ended_s: float) -> None:
    """What happened, for the end."""
    console.print()
    if not tally.count:
        console.print("no decision was read", highlight=False)
        return
    console.print(one_line(tally, tally.mean_rate(), lang), highlight=False, soft_wrap=True)
    for decision in (decision for each in tally.handful.values() for decision in each):
        console.print("  " + decision_line(decision, lang), highlight=False, soft_wrap=True, markup=False)
    first = seconds((tally.first_s or ended_s) - began_s)
    console.print(
        f"first decision {first} after the start, {seconds(ended_s - began_s)} in all", highlight=False
    )


def addresses(console: Console, state: StackState) -> None:
    """Where each part's metrics are."""
    for part in state.parts:
        if "metrics" in part.ports:
            console.print(
                f"  {part.name:<8} http://127.0.0.1:{part.ports['metrics']}/metrics", highlight=False
            )
