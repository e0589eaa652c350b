"""Decisions as a table of promises: outcomes, rules, costs, reasons, and what happens without a model."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from services.risk.decide import APPROVE, DECLINE, REVIEW, ModelRef, RiskBatch, Scores, decide, strongest
from services.risk.policy import Policy, parse_policy
from services.risk.rules import Rules, currency_code
from weir.features.spec import CHANNELS

FEATURES = ("ratio", "count", "risk")
MODEL = ModelRef("risk", "1", "ab" * 32)
BASE = """
version = "t1"
[thresholds]
review_at = 0.1
decline_at = 0.5
[degraded]
default = "review"
[limits]
amount_max = 1000000
"""
COST = "[cost]\nfraud_loss_share = 1.0\nreview = 10\ndecline = 40\n"


def rule(name: str, when: str, then: str = "review", extra: str = "") -> str:
    return (
        f'[[rule]]\nid = "{name}"\nwhen = [{when}]\nthen = "{then}"\ntext_en = "t"\ntext_zh = "t"\n{extra}\n'
    )


def policy_of(*parts: str, base: str = BASE) -> tuple[Policy, Rules]:
    policy = parse_policy("\n".join((base, *parts)).encode(), Path("policy.toml"))
    return policy, Rules.compile(policy.rule_list, FEATURES, where="policy.toml")


def batch_of(features, amount=100.0, channel="POS", currency="EUR") -> RiskBatch:
    features = np.atleast_2d(np.asarray(features, np.float32))
    n = len(features)
    return RiskBatch(
        features=features,
        amount=np.broadcast_to(np.asarray(amount) * 10_000, n).astype(np.int64),
        channel=np.full(n, CHANNELS.index(channel), np.int8),
        currency=np.full(n, currency_code(currency), np.uint32),
    )


def scores_of(probability, contributions=None) -> Scores:
    p = np.atleast_1d(np.asarray(probability, np.float32))
    if contributions is None:
        contributions = np.zeros((len(p), len(FEATURES)))
    contributions = np.asarray(contributions, np.float32)
    logit = (-3.0 + contributions.sum(axis=1)).astype(np.float32)
    return Scores(logit, p, contributions, -3.0, MODEL)


@pytest.mark.parametrize(
    ("probability", "outcome"),
    [(0.0, APPROVE), (0.0999, APPROVE), (0.1, REVIEW), (0.4999, REVIEW), (0.5, DECLINE), (1.0, DECLINE)],
)
def test_thresholds_include_their_own_value(probability, outcome):
    policy, rules = policy_of()
    decisions = decide(batch_of([0, 0, 0]), scores_of(probability), rules, policy)
    assert decisions.outcome.tolist() == [outcome]
    assert decisions.counts() == {(("approve", "review", "decline")[outcome], "model"): 1}


def test_a_probability_that_is_no_number_is_never_approved():
    policy, rules = policy_of(COST)
    assert decide(batch_of([0, 0, 0]), scores_of(np.nan), rules, policy).outcome.tolist() == [REVIEW]


@pytest.mark.parametrize(
    ("amount", "probability", "outcome"),
    [
        (100, 0.05, APPROVE),  # 5 at stake, a review costs 10
        (1000, 0.05, REVIEW),  # 50 at stake
        (10_000, 0.09, REVIEW),  # declining an honest payment: 36
        (10_000, 0.80, DECLINE),
        (1, 0.2, REVIEW),  # the thresholds' outcome is raised, never lowered
    ],
)
def test_cost_raises_the_outcome_of_large_payments(amount, probability, outcome):
    policy, rules = policy_of(COST)
    decisions = decide(batch_of([0, 0, 0], amount), scores_of(probability), rules, policy)
    assert decisions.outcome.tolist() == [outcome]


@pytest.mark.parametrize(
    ("when", "batch", "fires"),
    [
        ('{feature="ratio", op=">=", value=20}', {"features": [20, 0, 0]}, True),
        ('{feature="ratio", op=">", value=20}', {"features": [20, 0, 0]}, False),
        ('{feature="risk", op="==", value=0.1}', {"features": [0, 0, 0.1]}, True),
        ('{feature="risk", op="<=", value=0.1}', {"features": [0, 0, 0.1]}, True),
        ('{feature="risk", op="<", value=0.1}', {"features": [0, 0, np.nan]}, False),
        ('{feature="count", op="in", value=[1, 2]}', {"features": [0, 2, 0]}, True),
        ('{field="amount", op=">=", value=500.25}', {"features": [0, 0, 0], "amount": 500.25}, True),
        ('{field="amount", op="<", value=500.25}', {"features": [0, 0, 0], "amount": 500.25}, False),
        ('{field="channel", op="==", value="ATM"}', {"features": [0, 0, 0], "channel": "ATM"}, True),
        ('{field="channel", op="in", value=["ECOM", "ATM"]}', {"features": [0, 0, 0]}, False),
        (
            '{field="currency", op="in", value=["USD", "CHF"]}',
            {"features": [0, 0, 0], "currency": "CHF"},
            True,
        ),
        (
            '{feature="ratio", op=">", value=1}, {feature="count", op=">", value=1}',
            {"features": [2, 1, 0]},
            False,
        ),
    ],
)
def test_a_rule_fires_where_all_its_conditions_hold(when, batch, fires):
    policy, rules = policy_of(rule("r", when, "decline"))
    decisions = decide(batch_of(**batch), scores_of(0.0), rules, policy)
    assert decisions.outcome.tolist() == [DECLINE if fires else APPROVE]
    assert decisions.rules_fired.tolist() == [1 if fires else 0]
    assert decisions.by_rule.tolist() == [fires]


def test_rules_raise_and_never_lower():
    policy, rules = policy_of(rule("a", '{feature="ratio", op=">", value=1}'))
    decisions = decide(batch_of([[2, 0, 0]] * 3), scores_of([0.0, 0.3, 0.9]), rules, policy)
    assert decisions.outcome.tolist() == [REVIEW, REVIEW, DECLINE]
    assert decisions.by_rule.tolist() == [True, False, False]
    assert decisions.counts() == {("review", "rule"): 1, ("review", "model"): 1, ("decline", "model"): 1}


def test_each_rule_has_its_bit_up_to_the_sixty_fourth():
    policy, rules = policy_of(*(rule(f"r{k}", f'{{feature="count", op="==", value={k}}}') for k in range(64)))
    decisions = decide(batch_of([[0, k, 0] for k in range(65)]), scores_of(np.zeros(65)), rules, policy)
    assert decisions.rules_fired.tolist() == [1 << k for k in range(64)] + [0]
    assert decisions.rule_ids[63] == "r63"


@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(0, 1, width=32)),
    st.integers(0, 10**12),
    st.booleans(),
    st.floats(0, 40),
)
def test_the_outcome_never_falls_as_the_probability_rises(probability, amount, with_cost, ratio):
    policy, rules = policy_of(COST if with_cost else "", rule("r", '{feature="ratio", op=">", value=20}'))
    probability = np.sort(probability)
    n = len(probability)
    batch = RiskBatch(
        np.full((n, 3), ratio, np.float32),
        np.full(n, amount, np.int64),
        np.zeros(n, np.int8),
        np.zeros(n, np.uint32),
    )
    outcome = decide(batch, scores_of(probability), rules, policy).outcome
    assert (np.diff(outcome) >= 0).all()


# Without a model


def test_without_a_model_everything_is_reviewed_unless_a_rule_says_more():
    policy, rules = policy_of(
        rule("big", '{feature="ratio", op=">", value=20}', "decline", 'applies = "degraded"'),
        rule("busy", '{feature="count", op=">", value=5}'),
    )
    batch = batch_of([[0, 0, 0], [30, 0, 0], [0, 9, 0]])
    decisions = decide(batch, None, rules, policy, "model_unavailable")
    assert decisions.outcome.tolist() == [REVIEW, DECLINE, REVIEW]
    assert decisions.rules_fired.tolist() == [0, 1, 2]
    assert (decisions.degraded, decisions.degraded_reason) == (True, "model_unavailable")
    assert (decisions.model, decisions.base_logit) == (None, None)
    assert np.isnan(decisions.score).all()
    assert np.isnan(decisions.probability).all()
    assert np.isnan(decisions.logit).all()
    assert (decisions.reason_index == -1).all()
    assert decisions.counts() == {("review", "degraded"): 2, ("decline", "degraded"): 1}


def test_a_rule_for_degraded_times_is_silent_with_a_model():
    policy, rules = policy_of(rule("r", '{feature="ratio", op=">", value=1}', extra='applies = "degraded"'))
    decisions = decide(batch_of([2, 0, 0]), scores_of(0.0), rules, policy)
    assert (decisions.outcome.tolist(), decisions.rules_fired.tolist()) == ([APPROVE], [0])


@given(st.lists(st.integers(0, 10**13), min_size=1, max_size=20), st.sampled_from(["review", "decline"]))
def test_without_a_model_nothing_is_approved_that_the_policy_does_not_name(amounts, default):
    batch = RiskBatch(
        np.zeros((len(amounts), 3), np.float32),
        np.array(amounts, np.int64),
        np.zeros(len(amounts), np.int8),
        np.zeros(len(amounts), np.uint32),
    )
    silent, rules = policy_of(base=BASE.replace('"review"', f'"{default}"'))
    assert APPROVE not in decide(batch, None, rules, silent).outcome
    told, rules = policy_of(base=BASE.replace('"review"', f'"{default}"\napprove_below = 20.00'))
    decisions = decide(batch, None, rules, told)
    np.testing.assert_array_equal(decisions.outcome == APPROVE, batch.amount < 200_000)
    assert decisions.degraded


# Reasons


def reference_reasons(contributions: np.ndarray, outcome: int) -> list[tuple[int, float]]:
    weight = np.abs(contributions) if outcome == APPROVE else contributions
    order = sorted(range(len(weight)), key=lambda j: (-weight[j], j))
    return [
        (j if contributions[j] > 0 else j + len(weight), float(contributions[j]))
        for j in order[:4]
        if weight[j] > 0
    ]


@settings(max_examples=200)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(0, 12), st.integers(1, 30)), elements=st.floats(-9, 9, width=16)
    ),
    st.integers(0, 2),
)
def test_reasons_are_the_strongest_contributions_as_they_are(contributions, outcome):
    index, contribution = strongest(contributions, np.full(len(contributions), outcome, np.int8))
    for row, expected in enumerate(reference_reasons(c, outcome) for c in contributions):
        got = [(int(i), float(c)) for i, c in zip(index[row], contribution[row], strict=True) if i >= 0]
        assert got == expected
        assert (contribution[row][index[row] < 0] == 0).all()


def test_reasons_for_a_refusal_only_raise_and_for_an_approval_go_either_way():
    contributions = [[0.5, -2.0, 1.0]]
    policy, rules = policy_of()
    declined = decide(batch_of([0, 0, 0]), scores_of(0.9, contributions), rules, policy)
    approved = decide(batch_of([0, 0, 0]), scores_of(0.0, contributions), rules, policy)
    assert declined.reason_index.tolist() == [[2, 0, -1, -1]]
    assert declined.reason_contribution.tolist() == [[1.0, 0.5, 0.0, 0.0]]
    assert approved.reason_index.tolist() == [[1 + len(FEATURES), 2, 0, -1]]
    assert approved.reason_contribution.tolist() == [[-2.0, 1.0, 0.5, 0.0]]


def test_a_contribution_that_is_no_number_is_no_reason():
    index, _ = strongest(np.array([[np.nan, 1.0]], np.float32), np.array([REVIEW], np.int8))
    assert index.tolist() == [[1, -1, -1, -1]]


@given(hnp.arrays(np.float32, (20, 3), elements=st.floats(-5, 5, width=32)))
def test_contributions_add_up_to_the_logit_and_the_score_is_its_sigmoid(contributions):
    policy, rules = policy_of()
    scores = scores_of(np.full(20, 0.2), contributions)
    assert scores.sum_error() < 1e-5
    decisions = decide(batch_of(np.zeros((20, 3))), scores, rules, policy)
    np.testing.assert_allclose(decisions.score, 1 / (1 + np.exp(-scores.logit.astype(float))))
    few = decisions.reason_contribution.sum(axis=1) + np.where(contributions > 0, 0, contributions).sum(
        axis=1
    )
    np.testing.assert_allclose(
        -3.0 + few, scores.logit, atol=1e-5
    )  # three features: no raising one is left out


def test_no_rows_are_no_decisions():
    policy, rules = policy_of(COST, rule("r", '{feature="ratio", op=">", value=1}'))
    empty = batch_of(np.zeros((0, 3)))
    for scores in (None, scores_of(np.zeros(0), np.zeros((0, 3)))):
        decisions = decide(empty, scores, rules, policy)
        assert (len(decisions.outcome), decisions.counts()) == (0, {})


def test_shapes_that_do_not_fit_are_refused():
    policy, rules = policy_of()
    with pytest.raises(ValueError, match="scores are for"):
        decide(batch_of([0, 0, 0]), scores_of([0.1, 0.2]), rules, policy)
    with pytest.raises(ValueError, match="logit must be float32"):
        Scores(np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 3), np.float32), 0.0, MODEL)
    with pytest.raises(ValueError, match="features must be float32"):
        RiskBatch(np.zeros((2, 3)), np.zeros(2, np.int64), np.zeros(2, np.int8), np.zeros(2, np.uint32))


def test_scores_take_tritons_columns():
    one = np.zeros((5, 1), np.float32)
    assert Scores(one, one, np.zeros((5, 3), np.float32), 0.0, MODEL).probability.shape == (5,)
