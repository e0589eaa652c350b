"""The circuit breaker, the retry budget and the deadline: pure, with time passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.inference import Breaker, Circuit, Deadline, RetryBudget
from weir.inference._retry import backoff_s


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker(failures_to_open=3, open_s=1.0, open_s_max=3.0)
    for _ in range(3):
        assert breaker.admit(at_s)
        breaker.failed(at_s)
    return breaker


def test_it_opens_after_failures_in_a_row_and_admits_nothing():
    breaker = opened()
    assert breaker.state is Circuit.OPEN
    assert not breaker.admit(0.99)


def test_an_answer_between_failures_keeps_it_closed():
    breaker = Breaker(failures_to_open=2)
    for _ in range(10):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.state is Circuit.CLOSED


def test_when_its_time_is_over_one_probe_passes():
    breaker = opened()
    assert breaker.admit(1.0)
    assert breaker.state is Circuit.HALF_OPEN
    assert not breaker.admit(1.0)
    breaker.succeeded()
    assert breaker.state is Circuit.CLOSED
    assert breaker.admit(1.0)


def test_a_failed_probe_doubles_the_wait_up_to_its_maximum():
    breaker, now_s = opened(), 0.0
    for wait_s in (1.0, 2.0, 3.0, 3.0):
        assert not breaker.admit(now_s + wait_s - 0.01)
        now_s += wait_s
        assert breaker.admit(now_s)
        breaker.failed(now_s)


def test_a_probe_that_is_given_up_frees_its_place():
    breaker = opened()
    assert breaker.admit(1.0)
    breaker.abandoned(1.5)
    assert breaker.admit(1.5)


def test_failures_sent_before_it_opened_do_not_lengthen_the_wait():
    breaker = opened()
    breaker.failed(0.9)
    assert breaker.admit(1.0)


@given(st.lists(st.tuples(st.sampled_from(["admit", "ok", "fail", "drop"]), st.floats(0, 2)), max_size=60))
def test_it_is_never_stuck_open(steps):
    """After any history, once its longest wait has passed it admits one, and an answer closes it."""
    breaker, now_s = Breaker(failures_to_open=2, open_s=0.5, open_s_max=4.0), 0.0
    for step, passed_s in steps:
        now_s += passed_s
        if step == "admit":
            breaker.admit(now_s)
        elif step == "ok":
            breaker.succeeded()
        elif step == "fail":
            breaker.failed(now_s)
        else:
            breaker.abandoned(now_s)
    if breaker.state is not Circuit.HALF_OPEN:  # else the probe under way owes its outcome
        assert breaker.admit(now_s + 4.0)
    breaker.succeeded()
    assert breaker.state is Circuit.CLOSED


@given(st.lists(st.booleans(), max_size=400))
def test_retries_never_multiply_the_load(answers):
    """Whatever fails, retries stay within the bucket and a tenth of what was answered."""
    budget = RetryBudget(tokens_max=5, refill=0.1)
    retry_count = answered_count = 0
    for answered in answers:
        if answered:
            budget.answered()
            answered_count += 1
        elif budget.take():
            retry_count += 1
    assert retry_count <= 5 + 0.1 * answered_count + 1e-9


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_backoff_is_bounded(attempt_index, random):
    assert 0 <= backoff_s(attempt_index, lambda: random) <= 0.2


def test_a_deadline_is_one_point_in_time():
    now_s = [10.0]
    deadline = Deadline(0.5, lambda: now_s[0])
    now_s[0] = 10.4
    assert deadline.left_s() == pytest.approx(0.1)
    assert deadline.waited_s() == pytest.approx(0.4)
    now_s[0] = 11.0
    assert deadline.left_s() < 0


@pytest.mark.parametrize(
    "wrong", [{"failures_to_open": 0}, {"open_s": 0.0}, {"open_s": 9.0, "open_s_max": 1.0}]
)
def test_a_breaker_with_impossible_numbers_is_refused(wrong):
    with pytest.raises(ValueError, match="failures_to_open"):
        Breaker(**wrong)
