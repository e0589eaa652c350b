"""How a stack's state is shown: a table that lives on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from infra.local.state import PartPhase, PartState, Phase, StackState

_COLOUR = {
    PartPhase.HEALTHY: "green",
    PartPhase.DONE: "green",
    PartPhase.STARTING: "cyan",
    PartPhase.UNHEALTHY: "yellow",
    PartPhase.RESTARTING: "yellow",
    PartPhase.FAILED: "red",
}
READY = (PartPhase.HEALTHY, PartPhase.DONE)


def seconds(value: float) -> str:
    """A duration as a person reads it: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def table(state: StackState, now: float) -> Table:
    """Each part with its process, age, health, ports and restarts."""
    shown = Table(box=None, pad_edge=False, expand=False)
    for name in ("part", "health", "pid", "for", "ports", "restarts", ""):
        shown.add_column(name, justify="right" if name in ("pid", "for", "restarts") else "left")
    for part in state.parts:
        shown.add_row(
            part.name,
            Text(part.phase, style=_COLOUR.get(part.phase, "dim")),
            str(part.process.pid) if part.process else "-",
            seconds(max(0.0, now - part.since)) if part.since else "-",
            ", ".join(f"{name} {port}" for name, port in part.ports.items()) or "-",
            str(part.restarts),
            Text(part.detail or "", style="dim", overflow="ellipsis"),
        )
    return shown


def line(part: PartState, began: float) -> str:
    """One change of one part."""
    after = f" after {seconds(max(0.0, part.since - began))}" if part.phase in READY else ""
    detail = f" ({part.detail})" if part.detail else ""
    return f"{part.name}: {part.phase}{after}{detail}"


@contextmanager
def display(console: Console) -> Iterator[Callable[[StackState], None]]:
    """What takes each new state and shows it."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=10, transient=False) as live:
            yield lambda state: live.update(table(state, time.time()))
        return
    seen: dict[str, tuple[PartPhase, str | None]] = {}

    def changed(state: StackState) -> None:
        for part in state.parts:
            now = (part.phase, part.detail)
            # That a part is ready is news only while the stack starts.
            old = part.phase is PartPhase.WAITING or (
                part.phase in READY and state.phase is not Phase.STARTING
            )
            if not old and seen.get(part.name) != now:
                console.print(line(part, state.started), highlight=False, soft_wrap=True)
            seen[part.name] = now

    yield changed
