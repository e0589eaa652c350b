"""`weir demo` as typed: decisions are read, and however it ends nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.process import session_members, start_of
from infra.local.state import Phase, read_state
from weir.errors import ExitCode

DEADLINE_S = 150.0


@pytest.fixture
def home(tmp_path):
    """A stack of the test's own; whatever is left of it is ended, and fails the test."""
    folder = tmp_path / "home"
    yield folder
    state = read_state(folder / "run")
    if state is not None and state.alive:
        os.kill(state.supervisor.pid, signal.SIGTERM)
        pytest.fail("the stack outlived the demo")


def typed(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "weir", "demo", *arguments],
        env={**os.environ, "WEIR_STACK_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, what: str):
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)
    return value


def state_in(home: Path, phase: Phase):
    state = read_state(home / "run")
    return state if state is not None and state.phase is phase else None


def nothing_left(state) -> bool:
    refs = [state.supervisor, *(part.process for part in state.parts if part.process)]
    return not any(start_of(ref.pid) == ref.started or list(session_members(ref)) for ref in refs)


def test_the_demo_shows_decisions_and_ends_by_itself(home):
    process = typed(home, "--seconds", "5")
    state = wait_for(lambda: state_in(home, Phase.RUNNING), "stack up")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.OK, out + err
    assert "decisions/s" in out
    assert "p99" in out
    assert "masked CARD 1" in out
    assert "handed_over" in out
    assert "approved" in out
    assert nothing_left(state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_stops_what_it_started(home, number):
    process = typed(home, "--seconds", "600")
    state = wait_for(lambda: state_in(home, Phase.RUNNING), "stack up")
    process.send_signal(number)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.INTERRUPTED, out + err
    assert "Traceback" not in out + err
    assert nothing_left(state)


def test_a_demo_that_is_interrupted_while_it_starts_leaves_nothing(home):
    process = typed(home)
    state = wait_for(lambda: state_in(home, Phase.STARTING), "the stack's first state")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == ExitCode.INTERRUPTED
    last = read_state(home / "run")
    assert nothing_left(state)
    assert nothing_left(last)


def test_a_killed_demo_takes_its_stack_along(home):
    """kill -9 gives it no chance to stop anything: the kernel does."""
    process = typed(home, "--seconds", "600")
    state = wait_for(lambda: state_in(home, Phase.RUNNING), "stack up")
    process.kill()
    process.communicate()
    wait_for(lambda: nothing_left(state), "nothing left")
