"""`weir chat`: a customer at the keyboard. `weir desk`: the person who takes over."""

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from services.chat.settings import ChatSettings
from services.chat.streaming.sse import CUSTOMER_HEADER
from weir.client.chat import AgentReply, ChatMessage, HandOver, HandOvers, Replies, Reply
from weir.client.publisher import Publisher
from weir.client.reader import Last, SealedReader
from weir.errors import NeighbourUnavailable

chat = typer.Typer(help="Write to the bank as a customer, and watch the answer.")
desk = typer.Typer(help="Conversations for a person: see them, answer them.", no_args_is_help=True)

_REPLY_DEADLINE_S = 60.0
_PURPOSE = "investigation"

Purpose = Annotated[
    str, typer.Option(help="Why you read: the key service decides by it and keeps it in its audit record.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a reply.")]


@chat.command()
def write(
    text: Annotated[str | None, typer.Argument(help="What you ask; none asks line by line.")] = None,
    customer: Annotated[str, typer.Option(help="Who you are.")] = "demo-customer",
    conversation: Annotated[
        str | None, typer.Option(help="Go on with this conversation; default a new one.")
    ] = None,
    as_json: AsJson = False,
    purpose: Purpose = _PURPOSE,
) -> None:
    """Write to the bank as a customer, and watch the answer.

    Under each answer stand its sources, what was masked, and whether a person takes over.
    """
    talk = conversation or f"talk-{uuid.uuid4().hex[:12]}"
    show: Show = _json_line if as_json else Screen(Console())
    with suppress(KeyboardInterrupt):  # Ctrl-C is how a conversation ends
        asyncio.run(_talk(_Customer(customer, talk), text, show, purpose))


@desk.command("tail")
def tail(
    count: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the latest.")] = 10,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Wait for more.")] = True,
    purpose: Purpose = _PURPOSE,
) -> None:
    """Show the conversations that wait for a person, with their reason and what may be answered."""

    async def run() -> None:
        console = Console()
        async with HandOvers.connect(purpose=purpose, start=Last(count), follow=follow) as queue:
            async for handed in queue:
                _print_handed(console, handed)

    with suppress(KeyboardInterrupt):  # it ends a `tail`
        asyncio.run(run())


@desk.command("reply")
def reply(
    conversation: Annotated[str, typer.Argument(help="Which conversation.")],
    text: Annotated[str, typer.Argument(help="What the customer reads.")] = "",
    agent: Annotated[str, typer.Option(help="Who you are.")] = "desk",
    close: Annotated[bool, typer.Option("--close", help="Give the conversation back to Weir.")] = False,
) -> None:
    """Answer a customer in a conversation that was handed over."""
    if not text.strip() and not close:
        raise typer.BadParameter("say something, or give the conversation back with --close.")

    async def run() -> None:
        async with Publisher.connect() as bank:
            answer = AgentReply(uuid.uuid4().hex, conversation, agent, text, datetime.now(UTC), close)
            typer.echo(f"sent: {await bank.publish_agent_reply(answer)}")

    asyncio.run(run())


Show = Callable[[str, Any], None]


@dataclass(frozen=True, slots=True)
class _Customer:
    name: str
    conversation: str

    def message(self, text: str) -> ChatMessage:
        return ChatMessage(uuid.uuid4().hex, self.conversation, self.name, text, datetime.now(UTC), "OTHER")


async def _talk(customer: _Customer, text: str | None, show: Show, purpose: str) -> None:
    settings = ChatSettings.load()
    async with AsyncExitStack() as stack:
        replies = await stack.enter_async_context(Replies.connect(purpose=purpose))
        bank = await stack.enter_async_context(Publisher.connect())
        inbox = _Inbox(replies, customer.conversation, show)
        task = asyncio.create_task(inbox.run())
        stack.callback(task.cancel)
        async for line in _lines(text, show):
            message = customer.message(line)
            await bank.publish_message(message)
            await _watched(settings, message, show)
            await inbox.until(message.event_id)


class _Inbox:
    """Replies of one conversation; a person's are shown whenever they come."""

    def __init__(self, replies: SealedReader[Reply], conversation: str, show: Show) -> None:
        self._replies, self._conversation, self._show = replies, conversation, show
        self._seen: set[str] = set()
        self._some = asyncio.Condition()

    async def run(self) -> None:
        async for found in self._replies:
            if found.conversation_id == self._conversation:
                self._show("agent" if found.outcome == "AGENT" else "reply", found)
                async with self._some:
                    self._seen.add(found.event_id)
                    self._some.notify_all()

    async def until(self, event_id: str) -> None:
        """Return once the message's reply was shown.

        Raises:
            NeighbourUnavailable: none came.
        """
        try:
            async with asyncio.timeout(_REPLY_DEADLINE_S), self._some:
                await self._some.wait_for(lambda: event_id in self._seen)
        except TimeoutError:
            raise NeighbourUnavailable(
                f"no reply within {_REPLY_DEADLINE_S:.0f} s. See `weir status` and `weir logs chat`."
            ) from None


async def _lines(text: str | None, show: Show) -> AsyncIterator[str]:
    if text is not None:
        yield text
        return
    while True:
        show("ask", None)
        line = await asyncio.to_thread(sys.stdin.readline)
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")


async def _watched(settings: ChatSettings, message: ChatMessage, show: Show) -> None:
    """The answer's sentences as they are written; one that cannot be watched is a reply all the same."""
    import httpx

    host, port = settings.stream_host, settings.stream_port
    address = f"http://{host}:{port}/v1/answers/{message.event_id}"
    headers = {CUSTOMER_HEADER: message.customer_id}
    try:
        async with (
            httpx.AsyncClient(timeout=_REPLY_DEADLINE_S) as client,
            client.stream("GET", address, headers=headers) as answer,
        ):
            kind = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    show(kind, json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError:
        show("not_watched", None)


class Screen:
    """Shows a conversation to a person."""

    def __init__(self, console: Console) -> None:
        self._console, self._shown = console, 0

    def __call__(self, kind: str, data: Any) -> None:
        """One thing that happened."""
        out = self._console
        match kind:
            case "ask":
                out.print("[bold]you>[/bold] ", end="")
            case "sentence":
                self._shown += 1
                out.print(Text(f"  {data['text']}"))
            case "taken_back":
                out.print("  [dim](begun again)[/dim]")
            case "agent":
                out.print(Text.assemble(("  colleague> ", "bold"), data.text))
            case "reply":
                if not self._shown:
                    out.print(Text(f"  {data.text}"))
                self._shown = 0
                for line in _about(data):
                    out.print(Text(f"    {line}", style="dim"))


def _about(found: Reply) -> list[str]:
    """What stands under an answer."""
    sources = list(dict.fromkeys(source for each in found.sentences for source in each.sources))
    origins = ", ".join(dict.fromkeys(each.origin for each in found.sentences))
    lines = [f"{found.outcome.lower()} ({origins}), {found.first_sentence_ms} ms to the first sentence"]
    if sources:
        lines.append(f"sources: {', '.join(sources)}")
    if found.intent:
        lines.append(f"intent: {found.intent} ({found.confidence:.0%})")
    if found.urgency != "normal":
        lines.append(f"urgency: {found.urgency}")
    if found.masked:
        hidden = ", ".join(f"{name} {count}" for name, count in sorted(found.masked.items()))
        lines.append(f"masked before anything read it: {hidden}")
    if found.guard:
        lines.append(f"guard: {found.guard}")
    if found.degraded_reason:
        lines.append(f"degraded: {found.degraded_reason}")
    if found.outcome == "HANDED_OVER":
        lines.append(
            f"a person takes over: `weir desk tail`, `weir desk reply {found.conversation_id} 'Hello'`"
        )
    return lines


def _json_line(kind: str, data: Any) -> None:
    if kind in ("reply", "agent"):
        about = asdict(data)
        del about["raw"]
        typer.echo(json.dumps(about, default=str, ensure_ascii=False))


def _print_handed(console: Console, handed: HandOver) -> None:
    console.print(
        Text.assemble(
            (f"{handed.handed_over_time:%H:%M:%S} ", "dim"),
            (f"{handed.urgency:<9} ", "red" if handed.urgency == "emergency" else "yellow"),
            (f"{handed.reason:<10} ", "bold"),
            handed.conversation_id,
        )
    )
    for turn in handed.transcript:
        console.print(Text(f"    {turn.role}> {turn.text}"))
    for text in handed.suggested:
        console.print(Text(f"    may answer: {text}", style="dim"))
