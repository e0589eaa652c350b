"""The supervisor with real processes: order, health, kill -9 of each and of itself, nothing left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.local.process import ProcessRef, session_members, start_of, this_process
from infra.local.state import AlreadyRunning, PartPhase, PartState, Phase, StackState, read_state, write_state
from infra.local.supervisor import Process, RestartPolicy, StartFailed, Step, Supervisor, end_leftovers

QUICK = RestartPolicy(first_s=0.01, cap_s=0.05, start_attempts=3)
DEADLINE_S = 20.0

# Says that it is ready by a file, tells its own end, and starts a child as Triton starts its stubs.
CHILD = """
import os, pathlib, signal, subprocess, sys, time
here, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def end(*_):
    with open(here / "ends", "a") as f: f.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else end)
if "parent" in sys.argv:
    stub = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (here / f"{name}.stub").write_text(str(stub.pid))
with open(here / "starts", "a") as f: f.write(name + "\\n")
(here / f"{name}.ready").write_text(str(os.getpid()))
print("hello from", name, flush=True)
while True: time.sleep(600)
"""


async def eventually(condition, what: str):
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.01)
    return value


def part(folder: Path, name: str, *after: str, words: tuple[str, ...] = (), **changes) -> Process:
    async def probe() -> str | None:
        return None if (folder / f"{name}.ready").exists() else "no file yet"

    async def prepare() -> None:
        (folder / f"{name}.ready").unlink(missing_ok=True)

    settings = {
        "name": name,
        "command": lambda: [sys.executable, "-c", CHILD, str(folder), name, *words],
        "env": lambda: dict(os.environ),
        "probe": probe,
        "prepare": prepare,
        "after": after,
        "stop_grace_s": 5.0,
    }
    return Process(**(settings | changes))


def alive(pid: int) -> bool:
    return start_of(pid) is not None


@pytest.fixture
def supervise(tmp_path):
    """Run a supervisor over parts; afterwards it is stopped and nothing of it is alive."""
    running: list[tuple[Supervisor, asyncio.Task[None]]] = []

    def start(*parts) -> Supervisor:
        supervisor = Supervisor(parts, run_dir=tmp_path / "run", log_dir=tmp_path / "logs", policy=QUICK)
        running.append((supervisor, asyncio.ensure_future(supervisor.run())))
        supervisor.task = running[-1][1]
        return supervisor

    return start


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def test_parts_start_in_order_and_stop_in_reverse(tmp_path, supervise):
    done: list[str] = []

    async def topics() -> str:
        done.extend(lines(tmp_path / "starts"))
        return "4 topics"

    stack = supervise(
        part(tmp_path, "kafka"),
        Step(name="topics", run=topics, after=("kafka",)),
        part(tmp_path, "risk", "topics"),
    )
    await eventually(lambda: stack.state.phase is Phase.RUNNING, "running")
    assert (done, lines(tmp_path / "starts")) == (["kafka"], ["kafka", "risk"])
    pids = [each.process.pid for each in stack.state.parts if each.process]
    seen = read_state(tmp_path / "run")
    assert seen.alive
    assert [each.phase for each in seen.parts] == [PartPhase.HEALTHY, PartPhase.DONE, PartPhase.HEALTHY]
    stack.stop()
    await asyncio.wait_for(stack.task, DEADLINE_S)
    assert lines(tmp_path / "ends") == ["risk", "kafka"]
    assert not any(map(alive, pids))
    assert "hello from kafka" in (tmp_path / "logs" / "kafka.log").read_text()
    assert read_state(tmp_path / "run").phase is Phase.STOPPED


async def test_killed_part_is_started_again_and_its_own_children_go_with_it(tmp_path, supervise):
    stack = supervise(part(tmp_path, "triton", words=("parent",)))
    await eventually(lambda: stack.state.phase is Phase.RUNNING, "running")
    first, stub = stack.state.parts[0].process.pid, int((tmp_path / "triton.stub").read_text())
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: stack.state.parts[0].restarts == 1, "restarted")
    await eventually(lambda: stack.state.parts[0].phase is PartPhase.HEALTHY, "healthy again")
    assert not alive(first)
    assert not alive(stub)
    stack.stop()
    await asyncio.wait_for(stack.task, DEADLINE_S)
    assert not alive(int((tmp_path / "triton.stub").read_text()))


async def test_a_part_that_ignores_its_end_is_made_to(tmp_path, supervise):
    stack = supervise(part(tmp_path, "deaf", words=("deaf",), stop_grace_s=0.2))
    await eventually(lambda: stack.state.phase is Phase.RUNNING, "running")
    pid = stack.state.parts[0].process.pid
    stack.stop()
    await asyncio.wait_for(stack.task, DEADLINE_S)
    assert not alive(pid)


async def test_a_halted_part_is_ended_too(tmp_path, supervise):
    stack = supervise(part(tmp_path, "halted"))
    await eventually(lambda: stack.state.phase is Phase.RUNNING, "running")
    pid = stack.state.parts[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    stack.stop()
    await asyncio.wait_for(stack.task, DEADLINE_S)
    assert not alive(pid)


async def test_a_part_that_cannot_start_fails_the_stack_with_its_last_word(tmp_path, supervise):
    broken = part(
        tmp_path,
        "risk",
        "kafka",
        command=lambda: [sys.executable, "-c", "import sys; sys.exit('error: no model')"],
    )
    stack = supervise(part(tmp_path, "kafka"), broken)
    with pytest.raises(StartFailed, match=r"risk: ended with status 1 \(error: no model\).*risk\.log"):
        await asyncio.wait_for(stack.task, DEADLINE_S)
    state = read_state(tmp_path / "run")
    assert (state.phase, state.failure) == (Phase.FAILED, str(stack.task.exception()))
    assert lines(tmp_path / "ends") == ["kafka"]


async def test_a_part_that_is_never_ready_says_what_was_missing(tmp_path, supervise):
    async def probe() -> str:
        return "no answer on port 1"

    stack = supervise(part(tmp_path, "slow", probe=probe, start_deadline_s=0.1))
    with pytest.raises(StartFailed, match="slow: no answer on port 1"):
        await asyncio.wait_for(stack.task, DEADLINE_S)


async def test_a_program_that_does_not_exist_is_named(tmp_path, supervise):
    stack = supervise(part(tmp_path, "ghost", command=lambda: ["/nowhere/ghost"]))
    with pytest.raises(StartFailed, match="cannot start /nowhere/ghost"):
        await asyncio.wait_for(stack.task, DEADLINE_S)


async def test_two_supervisors_of_one_stack_are_refused_and_the_first_is_named(tmp_path, supervise):
    first = supervise(part(tmp_path, "kafka"))
    await eventually(lambda: first.state.phase is Phase.RUNNING, "running")
    second = supervise(part(tmp_path, "kafka"))
    with pytest.raises(AlreadyRunning, match=str(os.getpid())):
        await second.task
    assert first.state.parts[0].process.alive
    first.stop()
    await asyncio.wait_for(first.task, DEADLINE_S)


SUPERVISOR = """
import asyncio, pathlib, sys
sys.path.insert(0, {tests!r})
from test_supervisor import Supervisor, part
folder = pathlib.Path(sys.argv[1])
parts = [part(folder, "kafka", words=("parent",)), part(folder, "risk", "kafka")]
asyncio.run(Supervisor(parts, run_dir=folder / "run", log_dir=folder / "logs").run())
"""


async def test_killed_supervisor_takes_its_parts_along_and_the_next_start_is_clean(tmp_path, supervise):
    """kill -9 of the supervisor: the kernel ends its children, the next start ends what those had started."""
    program = SUPERVISOR.format(tests=str(Path(__file__).parent))
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(tmp_path))
    try:
        state = await eventually(
            lambda: (s := read_state(tmp_path / "run")) and s.phase is Phase.RUNNING and s, "running"
        )
    finally:
        process.kill()
        await process.wait()
    pids = [each.process.pid for each in state.parts]
    await eventually(lambda: not any(map(alive, pids)), "children gone with their supervisor")
    stub = int((tmp_path / "kafka.stub").read_text())
    assert alive(stub)
    again = supervise(part(tmp_path, "kafka"))
    await eventually(lambda: again.state.phase is Phase.RUNNING, "running again")
    assert not alive(stub)
    again.stop()
    await asyncio.wait_for(again.task, DEADLINE_S)


def test_a_recycled_process_id_is_never_touched(tmp_path):
    """A state file that names a living process with another start: that process is somebody else's."""
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    ) as other:
        started = start_of(other.pid)
        boot, _, ticks = started.rpartition(":")
        old = ProcessRef(other.pid, f"{boot}:{int(ticks) + 1}")
        gone = ProcessRef(this_process().pid, "another start")
        parts = [PartState("kafka", PartPhase.HEALTHY, old)]
        write_state(tmp_path, StackState(gone, Phase.RUNNING, 0.0, parts))
        assert not old.alive
        assert end_leftovers(tmp_path) == []
        assert start_of(other.pid) == started
        assert list(session_members(ProcessRef(other.pid, started))) == [other.pid]
        other.kill()


def test_a_state_file_that_is_no_json_is_as_none(tmp_path):
    (tmp_path / "stack.json").write_bytes(b'{"supervisor": {"pi')
    assert read_state(tmp_path) is None
    assert end_leftovers(tmp_path) == []
