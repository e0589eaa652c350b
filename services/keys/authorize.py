"""Who may do what: one function, `enforce`, over the rules of `infra/policy.toml`. No clock, no network."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from weir.errors import AccessDenied, BadInput, ConfigError


class Action(StrEnum):
    """What a caller asks for."""

    SEAL = "seal"
    OPEN = "open"
    PSEUDONYMISE = "pseudonymise"
    LIST = "list"
    ROTATE = "rotate"
    REWRAP = "rewrap"


# Only who opens says why; what the other actions are for follows from the action.
PURPOSE_OF = {
    Action.SEAL: "sealing",
    Action.PSEUDONYMISE: "pseudonymising",
    Action.LIST: "administration",
    Action.ROTATE: "administration",
    Action.REWRAP: "administration",
}

_WORD = re.compile(r"[a-z][a-z0-9-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")
Word = Annotated[str, Field(pattern=f"^{_WORD.pattern}$")]
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{0,300}\*?$", min_length=1)]


class Rule(BaseModel):
    """One [[allow]] of the policy file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Word
    actions: Annotated[frozenset[Action], Field(min_length=1)]
    resources: Annotated[tuple[Pattern, ...], Field(min_length=1)]
    purposes: Annotated[frozenset[Word], Field(min_length=1)]


class _PolicyFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, le=1)]
    allow: list[Rule]


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules in force."""

    rules: Sequence[Rule]

    @classmethod
    def load(cls, path: Path) -> "Policy":
        """The policy in a file.

        Raises:
            ConfigError: unreadable, or a rule that is not one; nothing of it is in force.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls(tuple(_PolicyFile.model_validate(table).allow))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{path} {field}: {first['msg']}. Correct the policy.") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: {error}. Correct the policy.") from error


def enforce(policy: Policy, *, role: str, action: Action, resource: str, purpose: str) -> None:
    """Returns when a rule allows it.

    Raises:
        AccessDenied: no rule does. The text repeats role, action, resource and purpose, which hold no
            personal values (see `check_word` and `check_name`).
    """
    for rule in policy.rules:
        if (
            rule.role == role
            and action in rule.actions
            and purpose in rule.purposes
            and any(_matches(pattern, resource) for pattern in rule.resources)
        ):
            return
    raise AccessDenied(
        f"Role {role} may not {action} {resource} for the purpose {purpose}. "
        "If it should, ask who keeps the key service's policy for a rule."
    )


def check_word(what: str, word: str) -> str:
    """`word`, when it is lower-case letters, digits and hyphens.

    Raises:
        BadInput: it is not; it reaches neither the audit nor a text.
    """
    if not _WORD.fullmatch(word):
        raise BadInput(f"bad_{what}", f"a {what} is 1 to 64 lower-case letters, digits and hyphens")
    return word


def check_name(what: str, name: str) -> str:
    """`name`, when it is one that Kafka would take for a topic.

    Raises:
        BadInput: it is not.
    """
    if not _NAME.fullmatch(name):
        raise BadInput(f"bad_{what}", f"a {what} is 1 to 249 letters, digits, dots, hyphens and underscores")
    return name


def _matches(pattern: str, resource: str) -> bool:
    return resource.startswith(pattern[:-1]) if pattern.endswith("*") else resource == pattern
