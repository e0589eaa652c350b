"""`weir up`, `status`, `down` as typed, with a real broker and the real key service."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.process import start_of
from infra.local.state import read_state
from weir.cli.topics import wanted
from weir.config import TopicSettings
from weir.errors import ExitCode


class Typed:
    """The command line over a stack of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {**os.environ, "WEIR_STACK_HOME": str(home), "WEIR_CONFIG": ""}

    def __call__(self, *arguments: str, code: int | None = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "weir", *arguments],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, done.stdout + done.stderr
        return done

    def status(self) -> dict:
        return json.loads(self("status", "--json", code=None).stdout)

    def pids(self) -> dict[str, int]:
        return {part["name"]: part["pid"] for part in self.status()["parts"] if part["pid"]}


@pytest.fixture
def weir(tmp_path):
    typed = Typed(tmp_path / "home")
    yield typed
    typed("down", code=None)


def wait_for(condition, what: str, deadline_s: float = 60.0):
    deadline = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)
    return value


def none_lives(pids) -> bool:
    return not any(start_of(pid) for pid in pids)


def test_a_stack_lives_through_kill_and_leaves_nothing_behind(weir):
    """Up, a second up, kill -9 of a part and of the supervisor, up again on the same ports, down, wiped."""
    assert "healthy" in weir("up", "topics", "keys").stdout
    before = weir.status()
    assert before["phase"] == "running"
    assert all(part["healthy"] for part in before["parts"])

    assert str(before["supervisor_pid"]) in weir("up").stdout
    assert weir.status()["supervisor_pid"] == before["supervisor_pid"]

    pids = weir.pids()
    os.kill(pids["keys"], signal.SIGKILL)
    wait_for(
        lambda: [
            p for p in weir.status()["parts"] if p["name"] == "keys" and p["restarts"] == 1 and p["healthy"]
        ],
        "keys healthy again",
    )

    pids = weir.pids()
    os.kill(before["supervisor_pid"], signal.SIGKILL)
    wait_for(lambda: none_lives(pids.values()), "parts gone with the killed supervisor")
    gone = weir("status", code=ExitCode.UNAVAILABLE)
    assert "killed" in gone.stderr
    assert gone.stderr.count("\n") == 1

    weir("up", "topics", "keys")
    after = weir.status()
    assert [part["ports"] for part in after["parts"]] == [part["ports"] for part in before["parts"]]
    topics = json.loads(weir("topics", "--json", WEIR_CONFIG=after["config"]).stdout)
    assert {topic["name"]: len(topic["partitions"]) for topic in topics} == dict.fromkeys(
        wanted(TopicSettings()), 4
    )
    assert "keys" in weir("logs", "-n", "1").stdout

    pids = [*weir.pids().values(), after["supervisor_pid"]]
    weir("down")
    assert none_lives(pids)
    assert weir("down").stdout.strip() == "nothing was running"
    weir("down", "--wipe", "--yes")
    assert not (weir.home / "data").exists()
    assert not (weir.home / "keystore").exists()


def test_each_part_comes_back_from_kill_and_so_does_the_whole(weir):
    """kill -9 of each part in turn, then of everything at once, followed by `weir up`."""

    def all_healthy(restarted: str | None = None) -> bool:
        parts = {part["name"]: part for part in weir.status()["parts"]}
        return all(part["healthy"] for part in parts.values()) and (
            restarted is None or parts[restarted]["restarts"] > 0
        )

    weir("up")
    for name in ("kafka", "triton", "keys", "ledger", "risk-1"):
        os.kill(weir.pids()[name], signal.SIGKILL)
        wait_for(lambda name=name: all_healthy(name), f"{name} restarted and all healthy")

    pids = [*weir.pids().values(), weir.status()["supervisor_pid"]]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: none_lives(pids), "everything gone")
    weir("up")
    assert all_healthy()
    weir("down")


def test_a_port_that_is_taken_is_one_line_and_nothing_stays_up(weir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = weir("up", "keys", code=ExitCode.UNAVAILABLE, WEIR_STACK_KEYS_PORT=str(port))
    assert done.stderr.count("\n") == 1
    assert f"port {port}" in done.stderr
    assert weir("status", code=ExitCode.UNAVAILABLE)


def test_a_machine_without_java_is_told_what_to_do(weir):
    empty = weir.home / "bin"
    empty.mkdir(parents=True)
    program = (
        "import infra.local.java as java, sys, weir.cli; "
        "java._BUNDLED = java.Path('/nowhere'); sys.exit(weir.cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "up"],
        env={**weir.env, "PATH": str(empty), "JAVA_HOME": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.MISSING
    assert done.stderr.count("\n") == 1
    assert "make setup" in done.stderr


def test_interrupting_up_leaves_nothing(weir):
    process = subprocess.Popen(
        [sys.executable, "-m", "weir", "up", "keys"],
        env=weir.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    state = wait_for(lambda: read_state(weir.home / "run"), "the supervisor's first state")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert not state.supervisor.alive
    assert none_lives([part.process.pid for part in read_state(weir.home / "run").parts if part.process])


def test_down_of_a_stack_that_a_person_does_not_confirm_keeps_its_data(weir):
    (weir.home / "data").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "weir", "down", "--wipe"],
        env=weir.env,
        input="n\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.FAILED
    assert (weir.home / "data").is_dir()
