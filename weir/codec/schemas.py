"""The repository's Avro schemas: where they are, their canonical text and fingerprint."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from weir.errors import MissingPart

Schema = dict[str, Any]

# Subjects are those of the default topic names; a topic that is called otherwise keeps its schema's subject.
SUBJECTS: Mapping[str, str] = {
    "transaction": "bank.transactions-value",
    "label": "bank.labels-value",
    "decision": "weir.decisions-value",
    "dead_letter": "weir.risk.dlq-value",
    # Two kinds on one topic, so that a conversation keeps its order: named by topic and record.
    "chat_message": "bank.chat.messages-weir.v1.ChatMessage",
    "agent_reply": "bank.chat.messages-weir.v1.AgentReply",
    "chat_reply": "weir.chat.replies-value",
    "handover": "weir.chat.handovers-value",
    "card_command": "weir.card.commands-value",
    "chat_audit": "weir.chat.audit-value",
}

_FOR_PEOPLE = {"doc", "classification"}


@cache
def schemas_dir() -> Path:
    """The folder of `*.avsc` and `registry.json`: the checkout's, else the installed package's.

    Raises:
        MissingPart: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_schemas", package.parent / "schemas"):
        if (folder / "registry.json").is_file() or (folder / "transaction.avsc").is_file():
            return folder
    raise MissingPart(f"No Avro schemas beside {package}. Install weir again.")


@cache
def _schema_text(name: str) -> str:
    path = schemas_dir() / f"{name}.avsc"
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingPart(f"{path}: {error.strerror}. Schemas are {', '.join(sorted(SUBJECTS))}.") from error


def load_schema(name: str) -> Schema:
    """The Avro schema of that name, one of `SUBJECTS`, as a new dict.

    Raises:
        MissingPart: no such schema.
    """
    schema: Schema = json.loads(_schema_text(name))
    return schema


def without_keys(schema: Any, keys: set[str]) -> Any:
    """The schema with these attributes left out of every type and field."""
    if isinstance(schema, dict):
        return {key: without_keys(part, keys) for key, part in schema.items() if key not in keys}
    if isinstance(schema, list):
        return [without_keys(part, keys) for part in schema]
    return schema


def plain_type(schema: Any) -> Any:
    """The type without what is written for people."""
    return without_keys(schema, _FOR_PEOPLE)


def canonical_text(schema: Schema) -> str:
    """What decides how bytes are read, as compact JSON: all but documentation and classification.

    Avro's own canonical form also drops logical types and defaults, which readers here depend on.
    """
    return json.dumps(plain_type(schema), ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def fingerprint(schema: Schema) -> str:
    """SHA-256 of the canonical text, hexadecimal."""
    return hashlib.sha256(canonical_text(schema).encode()).hexdigest()
