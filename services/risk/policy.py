"""The policy: thresholds, costs, limits and rules from one file; versioned, hashed, hot reloaded.

Money in the file is in home currency; inside it is int64 in 1/10000, as everywhere. The file's reference is
`docs/reference/policy.md`.
"""

import hashlib
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.risk.errors import PolicyError
from services.risk.rules import Rules
from weir.obs.log import get_logger
from weir.obs.metrics import ReloadResult

_log = get_logger(__name__)

RULES_MAX = 64

Probability = Annotated[float, Field(ge=0, le=1)]
Money = Annotated[Decimal, Field(ge=0, le=Decimal(10) ** 12, decimal_places=4)]
Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]+$")]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Thresholds(_Table):
    """On the calibrated probability: review from `review_at`, decline from `decline_at`."""

    review_at: Probability
    decline_at: Probability

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.review_at > self.decline_at:
            raise ValueError("review_at must not be above decline_at")
        return self


class Cost(_Table):
    """What each outcome costs the bank; the cheapest one by expectation may raise the thresholds' outcome."""

    fraud_loss_share: float = Field(1.0, gt=0, le=10, description="of the amount, lost in an approved fraud")
    review: Money = Field(description="an analyst's time, for each review")
    decline: Money = Field(description="of declining an honest payment")


class Degraded(_Table):
    """Without a model: the outcome where no rule fires."""

    # "approve" is left out on purpose: without a model an approval must be asked for by amount.
    default: Literal["review", "decline"]
    approve_below: Money | None = None


class Limits(_Table):
    """What a well-formed event must keep to; see `validate.py`."""

    amount_max: Money
    zero_amount: Literal["accept", "refuse"] = "accept"
    id_bytes_max: int = Field(128, ge=1, le=4096)
    future_skew_s: int = Field(300, ge=0, le=86_400)
    event_age_max_s: int | None = Field(None, ge=60)


class Condition(_Table):
    """One comparison; `feature` by the model's name, or `field` of the event."""

    feature: str | None = None
    field: Literal["amount", "channel", "currency"] | None = None
    op: Literal["<", "<=", ">", ">=", "==", "in"]
    value: int | Decimal | str | list[int | Decimal | str]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.feature is None) == (self.field is None):
            raise ValueError("give either feature or field")
        values = self.value if isinstance(self.value, list) else [self.value]
        if (self.op == "in") != isinstance(self.value, list) or not values:
            raise ValueError("`in` takes a list of one or more, every other op one value")
        names = self.field in ("channel", "currency")
        if names and self.op not in ("==", "in"):
            raise ValueError(f"{self.field} is compared by == or in")
        if any(isinstance(value, str) != names for value in values):
            raise ValueError(f"value must be {'text' if names else 'a number'}")
        return self


class Rule(_Table):
    """Where all conditions hold, the outcome is at least `then`."""

    id: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    when: list[Condition] = Field(min_length=1, max_length=16)
    then: Literal["review", "decline"]
    applies: Literal["always", "degraded"] = "always"
    text_en: Text
    text_zh: Text


class _File(_Table):
    version: str = Field(pattern=r"^[A-Za-z0-9._-]{1,32}$")
    thresholds: Thresholds
    cost: Cost | None = None
    degraded: Degraded
    limits: Limits
    rule: list[Rule] = Field(default_factory=list, max_length=RULES_MAX)

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        ids = [rule.id for rule in self.rule]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"rule id {twice[0]} stands twice")
        return self


@dataclass(frozen=True, slots=True)
class Policy:
    """One state of the file; `sha256` is of its bytes, as `sha256sum` prints it."""

    version: str
    sha256: str
    thresholds: Thresholds
    cost: Cost | None
    degraded: Degraded
    limits: Limits
    rule_list: tuple[Rule, ...]


def parse_policy(data: bytes, path: Path) -> Policy:
    """The policy that these bytes say; `path` is for the error's text.

    Raises:
        PolicyError: not TOML, or a field missing, unknown or out of range; one line.
    """
    table = parse_toml(data, path)
    try:
        found = _File.model_validate(table)
    except ValidationError as error:
        raise PolicyError(f"{path}: {first_error(error)}. Correct it.") from None
    return Policy(
        version=found.version,
        sha256=hashlib.sha256(data).hexdigest(),
        thresholds=found.thresholds,
        cost=found.cost,
        degraded=found.degraded,
        limits=found.limits,
        rule_list=tuple(found.rule),
    )


def parse_toml(data: bytes, path: Path) -> dict[str, Any]:
    """The file's tables, decimal numbers exact.

    Raises:
        PolicyError: not UTF-8, or not TOML.
    """
    try:
        return tomllib.loads(data.decode("utf-8"), parse_float=Decimal)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"{path}: not valid TOML: {str(error).splitlines()[0]}. Correct it.") from error


def first_error(error: ValidationError) -> str:
    """The first thing wrong, as `rule[2].when[0].op: what it must be`."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ""
    for part in first["loc"]:
        if isinstance(part, int):
            where += f"[{part + 1}]"
        elif part in ("int", "decimal", "str") or part.startswith("list["):
            continue  # which branch of a union was tried says nothing to a person
        else:
            where += f".{part}" if where else part
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def read_file(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        PolicyError: missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}. Put it there, or correct its path.") from error


@dataclass(frozen=True, slots=True)
class InForce:
    """A policy and its compiled rules: a group is read and decided under one and the same."""

    policy: Policy
    rules: Rules


def compile_policy(data: bytes, path: Path, features: Sequence[str]) -> InForce:
    """The policy that these bytes say, with its rules over these features; `path` is for the error's text.

    Raises:
        PolicyError: not a policy, or a rule names what the model does not have; one line.
    """
    policy = parse_policy(data, path)
    return InForce(policy, Rules.compile(policy.rule_list, features, where=str(path)))


class PolicyFile:
    """The policy in force and its compiled rules; keeps the last good state of a file that changes.

    Args:
        path: the file.
        features: the model's features in its order; a rule that names another is refused.
        on_reload: told "loaded" or "refused" for each change, for the metric.
        keep: given the bytes of each policy before it is in force.

    Raises:
        PolicyError: the file is not usable at the start, when there is no last good state yet.
    """

    def __init__(
        self,
        path: Path,
        features: Sequence[str],
        on_reload: Callable[[ReloadResult], None] | None = None,
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        self.path, self._features, self._on_reload, self._keep = path, tuple(features), on_reload, keep
        self._stamp = file_stamp(path)
        data = read_file(path)
        self._seen_sha256 = hashlib.sha256(data).hexdigest()
        self.in_force = self._compile(data)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self.in_force.policy

    def _compile(self, data: bytes) -> "InForce":
        compiled = compile_policy(data, self.path, self._features)
        if self._keep:
            self._keep(data)
        return compiled

    def reload_if_changed(self) -> bool:
        """True when a changed and valid file was taken. A broken one is reported once and changes nothing.

        One `stat` when nothing changed; call it every second or so, not for each batch.
        """
        stamp = file_stamp(self.path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            data = read_file(self.path)
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 == self._seen_sha256:
                return False
            self._seen_sha256 = sha256
            taken = self._compile(data)
        except PolicyError as error:
            _log.error("policy_refused", error=str(error), in_force=self.policy.version)
            self._tell("refused")
            return False
        # Policy and rules at once: no batch sees new thresholds with old rules.
        self.in_force, policy = taken, taken.policy
        _log.info(
            "policy_loaded", version=policy.version, sha256=policy.sha256, rule_count=len(taken.rules.ids)
        )
        self._tell("loaded")
        return True

    def _tell(self, result: ReloadResult) -> None:
        if self._on_reload:
            self._on_reload(result)


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does (the inode, when one is moved into its place); None while missing."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
