"""Whether a changed schema still reads, and is read by, every registered version (FULL, transitive).

Run as `python -m weir.codec.compatibility`; one line for each break, exit code 1 when there are any.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from weir.codec.avro import full_name, parsed
from weir.codec.registry import FileRegistry, HttpRegistry
from weir.codec.schemas import SUBJECTS, Schema, fingerprint, load_schema, schemas_dir
from weir.config import RegistrySettings
from weir.errors import ExitCode, WeirError

CLASSIFICATIONS = ("C1", "C2", "C3")
_MONEY = ("amount", "price", "balance", "fee", "limit", "income", "debt")


def check_compatibility(schema: Schema, registered: Sequence[Schema]) -> list[str]:
    """Why data of `schema` and of the registered versions cannot be read as each other; empty when it can.

    Each line says the place, what changed and what to do. Stricter than Avro: a type never changes, so that
    promotions (int to long), which only one direction can read, are breaks too.
    """
    lines: list[str] = []
    for before in registered:
        lines += [line for line in _breaks(before, schema, schema.get("name", "")) if line not in lines]
    return lines


def check_conventions(schema: Schema) -> list[str]:
    """What the schema owes its readers: documented, classified fields, and money as a decimal."""
    lines: list[str] = []
    for where, field in _fields(schema, schema.get("name", "")):
        if not field.get("doc"):
            lines.append(f"{where}: has no doc; say what it holds and in which unit.")
        if field.get("classification") not in CLASSIFICATIONS:
            lines.append(f"{where}: has no classification; give it one of {', '.join(CLASSIFICATIONS)}.")
        kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
        money = any(word in field["name"].lower().split("_") for word in _MONEY)
        if money and any(_type_of(kind) in ("float", "double") for kind in kinds):
            lines.append(f"{where}: money is a float; make it bytes with logicalType decimal.")
    return lines


def _type_of(schema: Any) -> str:
    if isinstance(schema, list):
        return "union"
    return str(schema["type"]) if isinstance(schema, dict) else str(schema)


def _fields(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        for branch in schema:
            yield from _fields(branch, where)
    elif isinstance(schema, dict):
        for field in schema.get("fields", ()):
            yield f"{where}.{field['name']}", field
            yield from _fields(field["type"], f"{where}.{field['name']}")
        for key in ("items", "values"):
            if key in schema:
                yield from _fields(schema[key], where)


def _named(schema: Any) -> str:
    """A type's description for a person, and its identity within a union."""
    if isinstance(schema, dict):
        kind, logical = schema["type"], schema.get("logicalType")
        if kind in ("record", "enum", "fixed"):
            return f"{kind} {schema['name']}"
        if logical == "decimal":
            return f"{kind} decimal({schema.get('precision')},{schema.get('scale', 0)})"
        return f"{kind} {logical}" if logical else str(kind)
    return "union" if isinstance(schema, list) else str(schema)


def _breaks(before: Any, now: Any, where: str) -> Iterator[str]:
    """Lines for each difference that keeps either side from reading the other."""
    if isinstance(before, list) and isinstance(now, list):
        branches = {_named(branch): branch for branch in before}
        if list(branches) != [_named(branch) for branch in now]:
            yield f"{where}: branches of its union changed; restore them, or add a new field with a default."
            return
        for branch in now:
            yield from _breaks(branches[_named(branch)], branch, where)
    elif _named(before) != _named(now):
        yield (
            f"{where}: type changed from {_named(before)} to {_named(now)}; "
            "restore it, or add a new field with a default."
        )
    elif isinstance(now, dict) and isinstance(before, dict):
        yield from _breaks_within(before, now, where)


def _breaks_within(before: Schema, now: Schema, where: str) -> Iterator[str]:
    kind = now["type"]
    if kind == "record":
        if full_name(before) != full_name(now):
            yield f"{where}: renamed from {full_name(before)} to {full_name(now)}; restore the name."
        old = {field["name"]: field for field in before["fields"]}
        new = {field["name"]: field for field in now["fields"]}
        for name, field in old.items():
            if name not in new and "default" not in field:
                yield f"{where}.{name}: removed, and it had no default; restore it (old readers need it)."
        for name, field in new.items():
            if name in old:
                yield from _breaks(old[name]["type"], field["type"], f"{where}.{name}")
                if "default" in old[name] and "default" not in field:
                    yield f"{where}.{name}: lost its default; restore it (old records may lack the field)."
            elif "default" not in field:
                yield f"{where}.{name}: added without a default; give it one (old records lack it)."
    elif kind == "enum":
        gone = [symbol for symbol in before["symbols"] if symbol not in now["symbols"]]
        added = [symbol for symbol in now["symbols"] if symbol not in before["symbols"]]
        if gone and "default" not in now:
            yield f"{where}: symbols {', '.join(gone)} removed, and it has no default; restore them."
        if added and "default" not in before:
            yield f"{where}: symbols {', '.join(added)} added, old readers have no default; add a new field."
    elif kind == "array":
        yield from _breaks(before["items"], now["items"], where)
    elif kind == "map":
        yield from _breaks(before["values"], now["values"], where)
    elif kind == "fixed" and before["size"] != now["size"]:
        yield f"{where}: size changed from {before['size']} to {now['size']}; restore it."


def check_all(registry: FileRegistry) -> list[str]:
    """Every break of the repository's schemas against `registry`.

    Raises:
        ConfigError: a file is not an Avro schema.
    """
    lines: list[str] = []
    for name, subject in SUBJECTS.items():
        schema = load_schema(name)
        parsed(schema)
        versions = registry.subjects.get(subject, ())
        lines += check_compatibility(schema, [version.schema() for version in versions])
        lines += check_conventions(schema)
    return lines


def unregistered(registry: FileRegistry) -> list[str]:
    """Names of the schemas whose present text is not in `registry`."""
    return [
        name
        for name, subject in SUBJECTS.items()
        if fingerprint(load_schema(name)) not in {v.fingerprint for v in registry.subjects.get(subject, ())}
    ]


async def _publish() -> list[str]:
    registry = HttpRegistry(RegistrySettings.load())
    try:
        return [
            f"{subject}: id {await registry.register(subject, load_schema(name))}"
            for name, subject in SUBJECTS.items()
        ]
    finally:
        await registry.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, and on demand register; 0 when all is well, 1 for breaks."""
    parser = argparse.ArgumentParser(prog="python -m weir.codec.compatibility", description=__doc__)
    parser.add_argument(
        "--register", action="store_true", help="record changed schemas in schemas/registry.json"
    )
    parser.add_argument("--publish", action="store_true", help="register all schemas at [registry] url")
    options = parser.parse_args(arguments)
    path: Path = schemas_dir() / "registry.json"
    try:
        registry = FileRegistry.read(path) if path.is_file() else FileRegistry({}, str(path))
        lines = check_all(registry)
        new = unregistered(registry)
        if not lines and options.register:
            for name in new:
                registry = registry.with_version(SUBJECTS[name], load_schema(name))
            registry.write(path)
        elif not lines:
            lines = [
                f"{name}: changed, not registered; run with --register and commit the file." for name in new
            ]
        if not lines and options.publish:
            print("\n".join(asyncio.run(_publish())))  # noqa: T201 - this is the command's answer
    except WeirError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return int(error.exit_code)
    for line in lines:
        print(line, file=sys.stderr)  # noqa: T201
    return int(ExitCode.FAILED) if lines else int(ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
