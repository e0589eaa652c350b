"""Rewrite the tables of fields in `docs/reference/schemas.md` from the schemas.

python -m tests.support.schema_tables
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weir.codec import load_schema

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "schemas.md"

_BLOCK = re.compile(r"(<!-- fields of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def shown(kind: Any) -> str:
    """A type for a reader: nullable ones end in a question mark."""
    if isinstance(kind, list):
        return "".join(shown(branch) for branch in kind if branch != "null") + "?"
    if not isinstance(kind, dict):
        return str(kind)
    if kind["type"] == "enum":
        return f"enum {', '.join(kind['symbols'])}"
    if kind["type"] == "array":
        return f"array of {shown(kind['items'])}"
    if kind["type"] == "record":
        return str(kind["name"])
    if kind.get("logicalType") == "decimal":
        return f"decimal({kind['precision']},{kind['scale']})"
    return str(kind.get("logicalType", kind["type"]))


def rows(fields: list[dict[str, Any]], prefix: str = "") -> Iterator[str]:
    """A table row for each field, nested ones after their parent."""
    for field in fields:
        name = prefix + field["name"]
        yield f"| `{name}` | {shown(field['type'])} | {field['classification']} | {field['doc']} |"
        kind = field["type"]
        if isinstance(kind, dict):
            inner = kind["items"] if kind["type"] == "array" else kind
            if isinstance(inner, dict) and inner["type"] == "record":
                yield from rows(inner["fields"], f"{name}.")


def table(name: str) -> str:
    """The Markdown table of one schema."""
    lines = ["| field | type | class | what it holds |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *rows(load_schema(name)["fields"])])


def page(text: str) -> str:
    """The page with its tables as the schemas have them now."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{table(m[2])}\n\n{m[3]}", text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
