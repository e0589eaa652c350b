"""Writes docs/reference/cli.md from the commands themselves: `python -m infra.local.cli_reference`."""

from collections.abc import Iterator
from typing import Any

from infra.local import layout
from weir.cli._root import commands, load, root

TARGET = layout.ROOT / "docs" / "reference" / "cli.md"

_HEAD = """# Command line

Written from the commands by `python -m infra.local.cli_reference`; do not edit.

`weir --help` lists the commands that are installed: the SDK alone brings `decisions`, `dlq`, `topics` and
`schemas`, the checkout the rest. Every error is one line on stderr; [exit codes](exit-codes.md) say of what
kind. An unexpected one leaves a report in `.weir/logs` (or the temporary folder); `WEIR_DEBUG=1` shows it.
Settings come from `$WEIR_CONFIG`, else `./weir.toml`, else the file that `weir up` writes.
"""


def reference() -> Iterator[str]:
    """The page, line by line."""
    yield _HEAD
    yield from _options("Of every command", root())
    for known in commands().values():
        yield from _command(f"weir {known.name}", load(known), 2)


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    if getattr(command, "hidden", False):
        return
    yield f"{'#' * level} `{path}`\n"
    yield f"{_text(command.help)}\n"
    yield from _options("", command)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", inner, min(level + 1, 4))


def _options(title: str, command: Any) -> Iterator[str]:
    rows = []
    for each in command.params:
        if each.name in ("help", "install_completion", "show_completion") or getattr(each, "hidden", False):
            continue
        is_argument = each.param_type_name == "argument"
        names = (
            f"`{str(each.name).upper()}`" if is_argument else ", ".join(f"`{name}`" for name in _names(each))
        )
        rows.append(f"| {names} | {_text(getattr(each, 'help', '') or '')} | {_default(each)} |")
    if rows:
        if title:
            yield f"{title}:\n"
        yield "| option | meaning | default |\n| --- | --- | --- |"
        yield "\n".join(rows) + "\n"


def _names(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _default(parameter: Any) -> str:
    value = parameter.default
    if callable(value) or value is None or value == () or getattr(parameter, "is_flag", False):
        return ""
    return f"`{value}`"


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> None:
    """Write the page."""
    TARGET.write_text("\n".join(reference()).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
