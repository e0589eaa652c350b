"""Rules beside the model: declared in the policy file, compiled to comparisons of whole columns.

A rule raises an outcome, it never lowers one. A comparison with a missing value (nan) does not hold.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from services.risk.batch import AMOUNT_SCALE, RiskBatch
from services.risk.errors import PolicyError
from weir.features.spec import CHANNELS

if TYPE_CHECKING:
    from services.risk.policy import Condition, Rule

Mask = NDArray[np.bool_]
_Test = Callable[[RiskBatch], Mask]

_COMPARE: dict[str, Callable[[Any, Any], Mask]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "in": lambda column, values: _is_one_of(column, values),
}
OUTCOME_OF_THEN = {"review": 1, "decline": 2}


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule: `tests` all hold where it fires."""

    id: str
    bit: np.uint64
    outcome: int
    only_degraded: bool
    tests: tuple[_Test, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy's rules, in its order: bit k of a row's mask says that `ids[k]` fired."""

    compiled: tuple[CompiledRule, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        """Their ids; a bit's number is the index here."""
        return tuple(rule.id for rule in self.compiled)

    @classmethod
    def compile(cls, rules: Iterable["Rule"], features: Sequence[str], *, where: str) -> Self:
        """The rules over these features.

        Args:
            rules: as the policy file declares them, at most 64.
            features: the model's, in its order.
            where: the file, for the error's text.
        Raises:
            PolicyError: a feature, a channel or a currency that does not exist; one line.
        """
        column = {name: index for index, name in enumerate(features)}
        compiled = []
        for index, rule in enumerate(rules):
            tests = []
            for number, condition in enumerate(rule.when, start=1):
                try:
                    tests.append(_compile(condition, column))
                except ValueError as error:
                    raise PolicyError(
                        f"{where}: rule {rule.id}, condition {number}: {error}. Correct it."
                    ) from error
            compiled.append(
                CompiledRule(
                    id=rule.id,
                    bit=np.uint64(1 << index),
                    outcome=OUTCOME_OF_THEN[rule.then],
                    only_degraded=rule.applies == "degraded",
                    tests=tuple(tests),
                )
            )
        return cls(tuple(compiled))

    def fired(self, batch: RiskBatch, *, degraded: bool) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
        """Which rules fired, and the outcome that they ask for at least.

        Args:
            batch: n rows.
            degraded: whether rules that only apply without a model take part.
        Returns:
            (n,) uint64 bit masks, (n,) int8 outcomes (0 where none fired).
        """
        mask = np.zeros(batch.row_count, np.uint64)
        outcome = np.zeros(batch.row_count, np.int8)
        for rule in self.compiled:
            if rule.only_degraded and not degraded:
                continue
            hit = rule.tests[0](batch)
            for test in rule.tests[1:]:
                hit = hit & test(batch)
            # Most rules fire on no row of a batch.
            if hit.any():
                mask[hit] |= rule.bit
                np.maximum(outcome, rule.outcome, out=outcome, where=hit)
        return mask, outcome


def _compile(condition: "Condition", column: dict[str, int]) -> _Test:
    compare = _COMPARE[condition.op]
    values = condition.value if isinstance(condition.value, list) else [condition.value]
    if condition.feature is not None:
        if condition.feature not in column:
            raise ValueError(f"the model has no feature {condition.feature!r}")
        return _on_feature(compare, column[condition.feature], _operand(condition.op, map(_float32, values)))
    if condition.field == "amount":
        return _on_column(compare, "amount", _operand(condition.op, map(_amount, values)))
    if condition.field == "channel":
        return _on_column(compare, "channel", _operand(condition.op, map(_channel, values)))
    return _on_column(compare, "currency", _operand(condition.op, map(_currency, values)))


def _is_one_of(column: NDArray[Any], values: Sequence[Any]) -> Mask:
    # A list in a rule is short: a comparison for each value costs a tenth of np.isin.
    hit: Mask = column == values[0]
    for value in values[1:]:
        hit |= column == value
    return hit


def _on_feature(compare: Callable[[Any, Any], Mask], index: int, operand: Any) -> _Test:
    return lambda batch: compare(batch.features[:, index], operand)


def _on_column(compare: Callable[[Any, Any], Mask], name: str, operand: Any) -> _Test:
    return lambda batch: compare(getattr(batch, name), operand)


def _operand(op: str, values: Iterable[Any]) -> Any:
    found = list(values)
    return np.array(found) if op == "in" else found[0]


def _float32(value: object) -> np.float32:
    # Features are float32: 0.1 in the file must equal 0.1 in a feature.
    return np.float32(float(str(value)))


def _amount(value: object) -> np.int64:
    scaled = Decimal(str(value)) * AMOUNT_SCALE
    if scaled != int(scaled) or abs(scaled) > 10**17:
        raise ValueError("an amount has at most 4 decimals and 13 digits before them")
    return np.int64(int(scaled))


def _channel(value: object) -> np.int8:
    if value not in CHANNELS:
        raise ValueError(f"no channel {value!r}; there are {', '.join(CHANNELS)}")
    return np.int8(CHANNELS.index(str(value)))


def _currency(value: object) -> np.uint32:
    text = str(value)
    if len(text) != 3 or not (text.isascii() and text.isupper()):
        raise ValueError(f"no currency {value!r}; give an ISO 4217 code")
    return currency_code(text)


def currency_code(code: str) -> np.uint32:
    """A currency's three letters as one number: what `RiskBatch.currency` holds."""
    return np.uint32(int.from_bytes(code.encode("ascii"), "big"))
