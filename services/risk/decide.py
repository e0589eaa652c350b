"""Approve, review or decline: alone knows what fraud is. Pure: columns in, columns out.

With scores, a row's outcome is the most severe of three: what the thresholds say of its calibrated
probability, what is cheapest by expected cost (where the policy has [cost]), and what any rule that fired
asks for. So it never falls as the probability rises. Without scores it is the more severe of the policy's
default and what a rule asks for: an approval happens only below an amount that the policy names, and every
row says `degraded`.

Reasons are the model's own contributions, at most four, strongest first: for review and decline those that
raised the score; for approve the strongest either way, since what speaks for a payment explains its approval.
"""

import numba
import numpy as np
from numpy.typing import NDArray

from services.risk.batch import (
    AMOUNT_SCALE,
    APPROVE,
    DECLINE,
    REASONS_MAX,
    REVIEW,
    ModelRef,
    RiskBatch,
    RiskDecisions,
    Scores,
)
from services.risk.policy import Cost, Policy
from services.risk.rules import OUTCOME_OF_THEN, Rules

__all__ = [
    "APPROVE",
    "DECLINE",
    "REVIEW",
    "ModelRef",
    "RiskBatch",
    "RiskDecisions",
    "Scores",
    "by_thresholds",
    "decide",
]


def decide(
    batch: RiskBatch,
    scores: Scores | None,
    rules: Rules,
    policy: Policy,
    degraded_reason: str = "model_unavailable",
) -> RiskDecisions:
    """A decision for each row of the batch.

    Args:
        batch: n rows.
        scores: of the same rows; None when the model gave no answer.
        rules, policy: of the same file (`PolicyFile.rules`, `.policy`).
        degraded_reason: one word for why there are no scores; unused with scores.
    Raises:
        ValueError: scores of another number of rows or features.
    """
    if scores is None:
        return _without_model(batch, rules, policy, degraded_reason)
    if scores.contributions.shape != batch.features.shape:
        raise ValueError(
            f"scores are for {scores.contributions.shape} (rows, features), not {batch.features.shape}"
        )
    modelled = by_thresholds(scores.probability, policy)
    if policy.cost is not None:
        np.maximum(modelled, _by_cost(scores.probability, batch.amount, policy.cost), out=modelled)
    fired, ruled = rules.fired(batch, degraded=False)
    outcome = np.maximum(modelled, ruled)
    reason_index, reason_contribution = strongest(scores.contributions, outcome)
    logit = scores.logit.astype(np.float64)
    return RiskDecisions(
        outcome=outcome,
        score=1.0 / (1.0 + np.exp(-logit)),
        probability=scores.probability.astype(np.float64),
        logit=logit,
        base_logit=scores.base_logit,
        reason_index=reason_index,
        reason_contribution=reason_contribution,
        rules_fired=fired,
        rule_ids=rules.ids,
        by_rule=ruled > modelled,
        model=scores.model,
        degraded=False,
        degraded_reason=None,
    )


def _without_model(batch: RiskBatch, rules: Rules, policy: Policy, degraded_reason: str) -> RiskDecisions:
    n = batch.row_count
    default = np.full(n, OUTCOME_OF_THEN[policy.degraded.default], np.int8)
    if policy.degraded.approve_below is not None:
        default[batch.amount < int(policy.degraded.approve_below * AMOUNT_SCALE)] = APPROVE
    fired, ruled = rules.fired(batch, degraded=True)
    outcome = np.maximum(default, ruled)
    unknown = np.full(n, np.nan)
    return RiskDecisions(
        outcome=outcome,
        score=unknown,
        probability=unknown,
        logit=unknown,
        base_logit=None,
        reason_index=np.full((n, REASONS_MAX), -1, np.int16),
        reason_contribution=np.zeros((n, REASONS_MAX)),
        rules_fired=fired,
        rule_ids=rules.ids,
        by_rule=ruled > default,
        model=None,
        degraded=True,
        degraded_reason=degraded_reason,
    )


def by_thresholds(probability: NDArray[np.float32], policy: Policy) -> NDArray[np.int8]:
    """(n,) outcomes; a probability that is not a number is reviewed, because neither comparison holds."""
    thresholds = policy.thresholds
    outcome = np.full(len(probability), REVIEW, np.int8)
    outcome[probability < np.float32(thresholds.review_at)] = APPROVE
    outcome[probability >= np.float32(thresholds.decline_at)] = DECLINE
    return outcome


def _by_cost(probability: NDArray[np.float32], amount: NDArray[np.int64], cost: Cost) -> NDArray[np.int8]:
    """(n,) outcomes of least expected cost, the milder one of two that cost the same.

    Approving costs the loss where it is fraud, declining the quarrel where it is not, reviewing its fee
    always: the first rises with the probability, the second falls, the third stays. So it never falls.
    Source: Elkan 2001, The foundations of cost-sensitive learning.
    """
    p = probability.astype(np.float64)
    approving = p * amount * (cost.fraud_loss_share / AMOUNT_SCALE)
    declining = (1.0 - p) * float(cost.decline)
    reviewing = float(cost.review)
    outcome = np.zeros(len(p), np.int8)
    outcome[np.minimum(declining, reviewing) < approving] = REVIEW
    outcome[declining < np.minimum(approving, reviewing)] = DECLINE
    return outcome


def strongest(
    contributions: NDArray[np.float32], outcome: NDArray[np.int8]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """The up to four reasons of each row: (n, 4) indexes into the reason table, (n, 4) contributions.

    Index j is feature j raising the score, F + j is feature j lowering it; -1 with contribution 0 for none.
    Of equal contributions the feature that comes first is listed first.
    """
    # A tensor from the wire is read-only, one that was put together is not: one type, one compilation.
    view = np.ascontiguousarray(contributions).view()
    view.flags.writeable = False
    found: tuple[NDArray[np.int16], NDArray[np.float64]] = _strongest(view, outcome)
    return found


@numba.njit(cache=True, nogil=True)
def _strongest(
    contributions: NDArray[np.float32], outcome: NDArray[np.int8]
) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    n, width = contributions.shape
    index = np.full((n, REASONS_MAX), -1, np.int16)
    contribution = np.zeros((n, REASONS_MAX), np.float64)
    strength = np.zeros(REASONS_MAX, np.float32)
    for row in range(n):
        both_ways = outcome[row] == APPROVE
        strength[:] = 0.0
        for j in range(width):
            value = contributions[row, j]
            weight = -value if both_ways and value < 0 else value
            # Not `<=`: a value that is not a number is no reason.
            if not weight > strength[REASONS_MAX - 1]:
                continue
            at = REASONS_MAX - 1
            while at > 0 and weight > strength[at - 1]:
                strength[at] = strength[at - 1]
                index[row, at] = index[row, at - 1]
                contribution[row, at] = contribution[row, at - 1]
                at -= 1
            strength[at] = weight
            index[row, at] = j if value > 0 else width + j
            contribution[row, at] = value
    return index, contribution
