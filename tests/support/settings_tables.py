"""Rewrite the tables in `docs/reference/settings.md` from the settings classes.

python -m tests.support.settings_tables
"""

import re
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import annotated_types
from pydantic import SecretStr
from pydantic.fields import FieldInfo

import services
from infra.local import layout
from infra.local.stack_settings import StackSettings
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.settings import ChatSettings
from services.keys.settings import KeysServiceSettings
from services.ledger.settings import LedgerSettings
from services.risk.settings import RiskSettings
from services.simulator.settings import SimulatorSettings
from services.training.guard.settings import GuardSettings
from services.training.settings import TrainingSettings
from weir.config import (
    KafkaSettings,
    KeyServiceSettings,
    LogSettings,
    RegistrySettings,
    TopicSettings,
    TritonSettings,
    WeirSettings,
)

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"
CLASSES: tuple[type[WeirSettings], ...] = (
    KafkaSettings,
    TopicSettings,
    TritonSettings,
    KeyServiceSettings,
    RegistrySettings,
    LogSettings,
    RiskSettings,
    KeysServiceSettings,
    LedgerSettings,
    StackSettings,
    SimulatorSettings,
    TrainingSettings,
    GuardSettings,
    KnowledgeSettings,
    ChatSettings,
)

_BLOCK = re.compile(r"(<!-- settings of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ROOT = Path(next(iter(services.__path__))).parent


def default(value: Any) -> str:
    """A default for a reader: paths of the checkout are shown from its top."""
    if value is None:
        return "none"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Enum):
        value = value.name
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, Path):
        value = value.relative_to(_ROOT) if value.is_relative_to(_ROOT) else value
    if isinstance(value, dict):
        return ", ".join(f"`{key}` {each}" for key, each in value.items())
    if isinstance(value, int) and value >= 10_000:
        return f"`{value:_}`"
    return f"`{value}`"


def bounds(field: FieldInfo) -> str:
    """What a number may be, in words; empty without bounds."""
    low = high = ""
    found = [each for each in field.metadata if not isinstance(each, FieldInfo)]
    # `Annotated[int, Field(...)]` below a union keeps its bounds inside.
    for argument in typing.get_args(field.annotation):
        for inner in getattr(argument, "__metadata__", ()):
            found += getattr(inner, "metadata", [])
    for each in found:
        if isinstance(each, annotated_types.Ge):
            low = f"{each.ge:,}"
        elif isinstance(each, annotated_types.Gt):
            low = f"above {each.gt:,}"
        elif isinstance(each, annotated_types.Le):
            high = f"{each.le:,}" if each.le != 2**63 - 1 else ""
    return f"{low} to {high}" if low and high else f"{low} or more" if low else ""


def rows(settings: type[WeirSettings]) -> Iterator[str]:
    """A table row for each field."""
    for name, field in settings.model_fields.items():
        if not field.description:
            raise ValueError(f"{settings.__name__}.{name} has no description")
        text = field.description.replace("|", "\\|")
        yield f"| `{name}` | {default(field.default)} | {bounds(field)} | {text} |"


def table(section: str) -> str:
    """The Markdown table of one section."""
    settings = next(each for each in CLASSES if each.section == section)
    lines = ["| setting | default | range | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *rows(settings)])


def page(text: str) -> str:
    """The page with its tables as the classes have them now."""
    return _BLOCK.sub(lambda m: f"{m[1]}\n{table(m[2])}\n\n{m[3]}", text)


if __name__ == "__main__":
    assert _ROOT == layout.ROOT
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
