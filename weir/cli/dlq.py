"""`weir dlq`: what could not be decided, why, and how to put it back."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

import typer

from weir.client.dead_letters import DeadLetter, DeadLetters, Entry, replay
from weir.config import KafkaSettings
from weir.errors import BadInput, ExitCode

app = typer.Typer(help="Dead letters: list, show, replay.", no_args_is_help=True)

_PLACE = re.compile(r"(\d{1,9}):(\d{1,19})\Z")
_BYTES_SHOWN = 4096

ReasonOption = Annotated[str | None, typer.Option(help="Only letters of this reason.")]
PurposeOption = Annotated[
    str, typer.Option(help="Why you read: it stands in the key service's audit record.")
]


@app.command("list")
def list_letters(
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=0, help="How many of the latest to list.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count dead letters by reason and list the latest; nothing is opened."""
    topic, counts, latest = asyncio.run(_list(reason, limit))
    if as_json:
        typer.echo(json.dumps({"topic": topic, "counts": counts, "letters": [_row(each) for each in latest]}))
    elif not counts:
        typer.echo(f"no dead letters in {topic}")
    else:
        _print_list(topic, counts, latest)


@app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="PARTITION:OFFSET", help="As `weir dlq list` names it.")],
    reveal: Annotated[bool, typer.Option("--reveal", help="Show the original's bytes.")] = False,
    purpose: PurposeOption = "investigation",
) -> None:
    """Open one dead letter: reason, source and headers' names; its bytes only with --reveal."""
    partition, offset = _parse_place(place)
    for line in describe(asyncio.run(_open(partition, offset, purpose)), reveal=reveal):
        typer.echo(line)


@app.command("replay")
def replay_letters(
    reason: ReasonOption = None,
    place: Annotated[
        str | None, typer.Option("--at", metavar="PARTITION:OFFSET", help="Only this letter.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most this many, the oldest of a partition first.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do it; without this, only say what would be done.")
    ] = False,
    purpose: PurposeOption = "replay",
) -> None:
    """Put originals back on their topic and partition as they were: `weir --role admin dlq replay`."""
    count = asyncio.run(_replay(reason, place, limit, yes, purpose))
    if yes:
        typer.echo(f"replayed {count}")
        return
    typer.echo(f"{count} dead letters would be replayed. Add --yes to do it.")
    if count:
        raise typer.Exit(ExitCode.USAGE)


async def _list(reason: str | None, limit: int) -> tuple[str, Counter[str], list[Entry]]:
    counts: Counter[str] = Counter()
    latest: list[Entry] = []
    async with DeadLetters.connect() as letters:
        async for entry in letters.entries():
            if reason is not None and entry.reason != reason:
                continue
            counts[entry.reason] += 1
            latest.append(entry)
            # However long the topic is, twice what is shown is all that is held.
            if len(latest) > 2 * limit:
                latest = _by_time(latest)[len(latest) - limit :]
    return letters.topic, counts, _by_time(latest)[max(0, len(latest) - limit) :]


def _by_time(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: (entry.time, entry.raw.partition, entry.raw.offset))


async def _open(partition: int, offset: int, purpose: str) -> DeadLetter:
    async with DeadLetters.connect(purpose=purpose) as letters:
        return await letters.open(await letters.at(partition, offset))


async def _replay(reason: str | None, place: str | None, limit: int | None, yes: bool, purpose: str) -> int:
    async with DeadLetters.connect(purpose=purpose) as letters:
        chosen = _chosen(letters, reason, place, limit)
        if not yes:
            return len([entry async for entry in chosen])
        return await replay(_opened(letters, chosen), KafkaSettings.load())


async def _chosen(
    letters: DeadLetters, reason: str | None, place: str | None, limit: int | None
) -> AsyncIterator[Entry]:
    if place is not None:
        entry = await letters.at(*_parse_place(place))
        if reason is None or entry.reason == reason:
            yield entry
        return
    count = 0
    async for entry in letters.entries():
        if reason is None or entry.reason == reason:
            yield entry
            count += 1
            if count == limit:
                return


async def _opened(letters: DeadLetters, entries: AsyncIterator[Entry]) -> AsyncIterator[DeadLetter]:
    async for entry in entries:
        yield await letters.open(entry)


def describe(letter: DeadLetter, *, reveal: bool) -> list[str]:
    """The letter for a person, line by line; the original's key, value and header values only on `reveal`."""
    source_size = "null" if letter.value is None else f"{len(letter.value)} bytes"
    lines = [
        f"dead letter  {letter.raw}",
        f"reason       {letter.reason}: {letter.detail}",
        f"failed       {letter.failed_time:%Y-%m-%d %H:%M:%S.%f} UTC in {letter.service}",
        f"source       {letter.source}, {letter.source_time:%Y-%m-%d %H:%M:%S.%f} UTC",
        f"trace        {letter.traceparent or '-'}",
        f"value        {source_size}",
    ]
    for name, value in letter.headers:
        size = "null" if value is None else f"{len(value)} bytes"
        lines.append(f"header       {name!r}, {repr(value) if reveal else size}")
    if not reveal:
        lines.append("The key, the value and the headers' contents are shown with --reveal.")
        return lines
    lines.append(f"key          {letter.key!r}")
    lines += _hex_lines(letter.value or b"")
    return lines


def _hex_lines(value: bytes) -> list[str]:
    lines = []
    for at in range(0, min(len(value), _BYTES_SHOWN), 16):
        row = value[at : at + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{at:08x}  {row.hex(' '):<47}  {text}")
    if len(value) > _BYTES_SHOWN:
        lines.append(f"… {len(value) - _BYTES_SHOWN} bytes more")
    return lines


def _row(entry: Entry) -> dict[str, str | int]:
    return {
        "topic": entry.raw.topic,
        "partition": entry.raw.partition,
        "offset": entry.raw.offset,
        "reason": entry.reason,
        "time": entry.time.isoformat(timespec="milliseconds"),
        "size_bytes": entry.size_bytes,
    }


def _print_list(topic: str, counts: Counter[str], latest: list[Entry]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    summary = Table(
        "reason", title=f"{counts.total():,} dead letters in {topic}", box=None, title_justify="left"
    )
    summary.add_column("count", justify="right")
    for name, count in counts.most_common():
        summary.add_row(name, f"{count:,}")
    console.print(summary)
    table = Table("at", "time (UTC)", "reason", box=None)
    table.add_column("bytes", justify="right")
    for entry in latest:
        place = f"{entry.raw.partition}:{entry.raw.offset}"
        table.add_row(place, f"{entry.time:%Y-%m-%d %H:%M:%S}", entry.reason, f"{entry.size_bytes:,}")
    console.print(table)


def _parse_place(text: str) -> tuple[int, int]:
    match = _PLACE.match(text)
    if match is None:
        raise BadInput("bad_place", "a dead letter is named PARTITION:OFFSET, such as 2:1042.")
    return int(match[1]), int(match[2])
