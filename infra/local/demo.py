"""`weir demo`: the stack, a synthetic bank, and its decisions as a downstream reader sees them.

It stops what it started, however it ends: by itself, by Ctrl-C, by SIGTERM, and by the kernel after kill -9.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live

from infra.local import control, demo_chat
from infra.local.demo_view import Tally, addresses, language, one_line, screen, summary
from infra.local.interruption import interruption
from infra.local.logfile import RotatingLog
from infra.local.process import Child, signal_session, spawn
from infra.local.progress import display
from infra.local.progress import seconds as said
from infra.local.stack import service_env
from infra.local.stack_settings import StackPaths, StackSettings
from infra.local.state import Phase, StackState
from weir.cli.topics import describe
from weir.client.chat import Replies
from weir.client.decisions import Decisions
from weir.client.publisher import Publisher
from weir.config import KafkaSettings, KeyServiceSettings, RegistrySettings, TopicSettings, read_config
from weir.errors import NeighbourUnavailable, WeirError

# The model judges windows of up to 30 days: with a shorter past every account looks new, and is reviewed. The
# bank is large for its pace, for the live part outruns life: who pays often within the hour is suspect.
_ACCOUNTS, _TERMINALS, _HISTORY_DAYS = 8_000, 800, 31
_LIVE_DAYS = 300
# Enough that each partition gets some.
_WAKING_COUNT = 100
_HISTORY_DEADLINE_S = 120.0
_DRAIN_DEADLINE_S = 10.0
_PLAIN_EVERY_S = 5.0
_SCREEN_EVERY_S = 0.25
# The reader is a downstream consumer: it gets decisions to deliver them, and nothing else.
_ROLE, _PURPOSE = "reader", "delivery"


@dataclass(frozen=True, slots=True)
class _Reach:
    """How the demo's own clients reach the stack, whatever settings the person has."""

    kafka: KafkaSettings
    topics: TopicSettings
    registry: RegistrySettings
    keys: KeyServiceSettings

    @classmethod
    def of(cls, paths: StackPaths) -> "_Reach":
        tables = read_config(paths.config)
        return cls(
            KafkaSettings.load(paths.config, **tables["kafka"]),
            TopicSettings.load(paths.config),
            RegistrySettings.load(paths.config),
            KeyServiceSettings.load(paths.config, **{**tables["keys"], **tables["roles"][_ROLE]}),
        )


def run(*, seconds: float, rate: float, seed: int, keep: bool) -> None:
    """The whole demo.

    Raises:
        MissingPart: not set up. WeirError: the stack does not come up, or decides nothing.
        KeyboardInterrupt: it was ended from outside; everything is stopped.
    """
    settings, console = StackSettings.load(), Console()
    began_s = time.time()
    with interruption() as asked:
        state = control.running(settings.paths)
        ours = state is None
        if state is None:
            console.print("starting the embedded stack", highlight=False)
            control.require_setup(settings)
            with display(console) as show:

                def shown(state: StackState) -> None:
                    asked.check()
                    show(state)

                state = control.start(settings, (), shown, die_with_us=not keep)
        elif state.phase is not Phase.RUNNING:
            raise WeirError(
                f"the stack is {state.phase} by process {state.supervisor.pid}. Try again when it is up."
            )
        stop_after = ours and not keep
        try:
            demo = _Demo(
                settings.paths,
                console,
                seconds=seconds,
                rate=rate,
                seed=seed,
                began_s=began_s,
                chat=any(part.name == "chat" for part in state.parts),
            )
            asked.run(demo.play())
            _where_next(console, settings.paths, state, stopped=stop_after)
        finally:
            if stop_after:
                # A second Ctrl-C must not leave half of it behind.
                asked.no_more()
                console.print("stopping the stack", highlight=False)
                control.stop(settings.paths, lambda _: None)
                console.print("stopped; no process is left", highlight=False)


class _Demo:
    def __init__(
        self,
        paths: StackPaths,
        console: Console,
        *,
        seconds: float,
        rate: float,
        seed: int,
        began_s: float,
        chat: bool,
    ) -> None:
        self.paths, self.console = paths, console
        self.seconds, self.rate, self.seed, self.began_s = seconds, rate, seed, began_s
        self.reach = _Reach.of(paths)
        self.lang = language(os.environ)
        self.chat = chat
        self.tally = Tally()

    async def play(self) -> None:
        await self._past()
        live_from_s = time.time()
        bank: Child | None = None
        exchanges: list[demo_chat.Exchange] = []
        try:
            async with Decisions.connect(
                purpose=_PURPOSE,
                kafka=self.reach.kafka,
                topics=self.reach.topics,
                registry=self.reach.registry,
                keys=self.reach.keys,
            ) as decisions:
                # Another of the bank's days each time: who pays twice within the hour looks like fraud.
                day = int(self.began_s) // 10 % _LIVE_DAYS
                pace = ("--rate", str(self.rate), "--seconds", str(self.seconds))
                bank = await self._simulate(*pace, "--live-day", str(day))
                reader = asyncio.create_task(self._read(decisions, live_from_s))
                customer = asyncio.create_task(self._converse())
                try:
                    await self._watch(bank, reader)
                    exchanges = await customer
                finally:
                    for task in (reader, customer):
                        task.cancel()
                    await asyncio.wait((reader, customer))
        finally:
            if bank is not None:
                await _end(bank)
            summary(self.console, self.tally, self.lang, self.began_s, time.time())
            demo_chat.show(self.console, exchanges)
        if not self.tally.count:
            raise NeighbourUnavailable("no decision came. See `weir status` and `weir logs risk-1`.")

    async def _converse(self) -> list[demo_chat.Exchange]:
        """A customer's conversation, where the stack has a worker that answers."""
        if not self.chat:
            return []
        reach = self.reach
        publisher = Publisher.connect(kafka=reach.kafka, topics=reach.topics, registry=reach.registry)
        replies = Replies.connect(
            purpose=_PURPOSE,
            kafka=reach.kafka,
            topics=reach.topics,
            registry=reach.registry,
            keys=reach.keys,
        )
        async with publisher as bank, replies as inbox:
            return await demo_chat.converse(bank, inbox, self.lang)

    async def _past(self) -> None:
        """Before the live part: on a fresh stack some days of the bank's past, else a few payments.

        A new worker reads the past back with its first batch, which is no latency of a decision.
        """
        before = await self._written()
        self.console.print(
            f"letting the worker read the bank's past again ({before:,} payments)"
            if before
            else f"sending {_HISTORY_DAYS} days of a bank of {_ACCOUNTS:,} accounts",
            highlight=False,
        )
        began_s = time.monotonic()
        past = (
            ("--count", str(_WAKING_COUNT))
            if before
            else ("--history-days", str(_HISTORY_DAYS), "--count", "1")
        )
        bank = await self._simulate("--rate", "0", *past)
        try:
            await asyncio.wait([asyncio.create_task(bank.process.wait())], timeout=_HISTORY_DEADLINE_S)
            status = bank.process.returncode
            if status is None:
                raise NeighbourUnavailable(f"the simulator was not done in {_HISTORY_DEADLINE_S:.0f} s.")
            if status:
                raise WeirError(f"the simulator ended with status {status}. See `weir logs simulator`.")
            sent = await self._written() - before
            while (behind := await self._behind()) is None or behind > 0:
                if time.monotonic() - began_s > _HISTORY_DEADLINE_S:
                    self.console.print(f"{behind or sent:,} of them are still to be decided", highlight=False)
                    return
                await asyncio.sleep(0.2)
        finally:
            await _end(bank)
        if not before:
            took_s = time.monotonic() - began_s
            self.console.print(
                f"{sent:,} payments made, sent and decided in {said(took_s)} ({sent / took_s:,.0f}/s, "
                f"with broker, Triton, ledger and simulator on the same {os.cpu_count()} cores)",
                highlight=False,
                soft_wrap=True,
            )

    async def _written(self) -> int:
        (topic,) = await describe(self.reach.kafka, [self.reach.topics.transactions])
        return topic.record_count

    async def _behind(self) -> int | None:
        """Payments that the risk workers have not committed; None before their first commit."""
        (topic,) = await describe(self.reach.kafka, [self.reach.topics.transactions])
        lag = topic.lag()
        own = [behind for group, behind in lag.items() if "risk" in group]
        return min(own) if own else None

    async def _simulate(self, *arguments: str) -> Child:
        fixed = ("--seed", str(self.seed), "--accounts", str(_ACCOUNTS), "--terminals", str(_TERMINALS))
        command = [sys.executable, "-m", "services.simulator", *fixed, *arguments]
        child = await spawn(command, service_env(self.paths, {}))
        log = RotatingLog(self.paths.logs / "simulator.log")

        async def drain() -> None:
            while data := await child.output.read(65_536):
                log.write(data)
            log.close()

        _background.add(task := asyncio.create_task(drain()))
        task.add_done_callback(_background.discard)
        return child

    async def _read(self, decisions: Decisions, live_from_s: float) -> None:
        async for batch in decisions.batches():
            now_s = time.time()
            # What is still decided of the bank's past would look like an age of latency.
            live = [decision for decision in batch if decision.event_time.timestamp() >= live_from_s]
            if live:
                self.tally.add(live, now_s)

    async def _watch(self, bank: Child, reader: "asyncio.Task[None]") -> None:
        ended = asyncio.create_task(bank.process.wait())
        until_s = time.time() + self.seconds
        with self._shown() as show:
            while not ended.done():
                await asyncio.wait(
                    [ended, reader], timeout=_SCREEN_EVERY_S, return_when=asyncio.FIRST_COMPLETED
                )
                if reader.done():
                    reader.result()
                    return
                show(max(0.0, until_s - time.time()))
            if ended.result():
                raise WeirError(
                    f"the simulator ended with status {ended.result()}. See `weir logs simulator`."
                )
            await self._until_quiet(lambda: show(0.0))

    async def _until_quiet(self, show: Callable[[], None]) -> None:
        """The last payments' decisions are read too."""
        deadline, seen = time.monotonic() + _DRAIN_DEADLINE_S, -1
        while seen != self.tally.count and time.monotonic() < deadline:
            seen = self.tally.count
            await asyncio.sleep(0.5)
            show()

    @contextmanager
    def _shown(self) -> Iterator[Callable[[float], None]]:
        if self.console.is_terminal:
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                yield lambda left_s: live.update(
                    screen(self.tally, time.time(), left_s, self.lang), refresh=True
                )
            return
        next_s = time.time() + _PLAIN_EVERY_S

        def plain(_: float) -> None:
            nonlocal next_s
            now_s = time.time()
            if now_s >= next_s and self.tally.count:
                next_s = now_s + _PLAIN_EVERY_S
                self.console.print(
                    one_line(self.tally, self.tally.rate(now_s), self.lang), highlight=False, soft_wrap=True
                )

        yield plain


_background: set[asyncio.Task[None]] = set()


async def _end(child: Child) -> None:
    """End a simulator and whatever it started."""
    with suppress(ProcessLookupError):
        child.process.send_signal(signal.SIGINT)
    waited: Awaitable[int] = child.process.wait()
    try:
        await asyncio.wait_for(waited, 5.0)
    except TimeoutError:
        pass
    finally:
        signal_session(child.ref, signal.SIGKILL)
        await child.process.wait()


def _where_next(console: Console, paths: StackPaths, state: StackState, *, stopped: bool) -> None:
    if stopped:
        console.print(
            "\nto look around keep it up: `WEIR_DEMO_KEEP=1 make demo`, or `weir up`; then", highlight=False
        )
    else:
        console.print("\nthe stack is up; metrics:", highlight=False)
        addresses(console, state)
    console.print(
        "  weir decisions tail    read decisions as they are made\n"
        "  weir simulate          send more payments\n"
        "  weir chat              ask the bank something; `weir desk tail` shows who waits\n"
        "  weir status            what runs, and on which ports (metrics are there too)\n"
        f"  weir logs -f           follow the logs in {paths.logs}\n"
        "  weir down              stop everything",
        highlight=False,
    )
