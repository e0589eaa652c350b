"""Starting and stopping a stack from outside its supervisor; `up`, `down` and `demo` share it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from infra.local import layout
from infra.local.java import find_java
from infra.local.process import dies_with_us, end_session, this_process
from infra.local.server import tail
from infra.local.stack_settings import StackPaths, StackSettings
from infra.local.state import AlreadyRunning, Phase, StackState, exclusive, is_held, read_state
from infra.local.supervisor import end_leftovers
from weir.errors import ExitCode, MissingPart, WeirError

_POLL_S = 0.05
START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 60.0

Show = Callable[[StackState], None]


def require_setup(settings: StackSettings, only: Sequence[str] = ()) -> None:
    """Check that what the stack (of it, `only` these parts) starts is on this machine.

    Raises:
        MissingPart: the first that is not, and what to do.
    """
    if set(only) != {"keys"}:
        find_java()
        if not any(layout.KAFKA_LIB.glob("*.jar")):
            raise MissingPart(f"Kafka's jars are not in {layout.KAFKA_LIB}. Run `make setup`.")
    if not only or any(name == "triton" or name.startswith("risk") for name in only):
        # Imported here, because it brings gRPC along, for which `weir status` would wait.
        from infra.local.triton import site_packages

        site_packages(layout.TRITON_ENV)
        if not any(settings.models.glob("*/config.pbtxt")):
            raise MissingPart(
                f"no model is in {settings.models}. Run `weir train risk`, or restore the checkout."
            )


def running(paths: StackPaths) -> StackState | None:
    """The state of the stack that is up or on its way, None when no supervisor lives."""
    state = read_state(paths.run)
    return state if state is not None and state.alive else None


def start(
    settings: StackSettings, only: Sequence[str], show: Show, *, die_with_us: bool = False
) -> StackState:
    """Start a supervisor in the background and wait until all parts are ready; Ctrl-C takes it down again.

    Args:
        only: these parts and what they need; all when empty.
        die_with_us: the kernel ends the stack when this process ends without stopping it (Linux).

    Raises:
        WeirError: what the supervisor says (a part did not come up, port taken, disk full, not installed).
    """
    paths = settings.paths
    paths.logs.mkdir(parents=True, exist_ok=True)
    log = paths.logs / "supervisor.log"
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [*(dies_with_us() if die_with_us else ()), sys.executable, "-m", "infra.local.stack", *only],
            cwd=layout.ROOT,
            env={**os.environ, "WEIR_STACK_HOME": str(paths.home), **_config_env()},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        return _wait_until_up(paths, supervisor, log, show)
    except BaseException:
        if supervisor.poll() is None:
            supervisor.terminate()
            try:
                supervisor.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                supervisor.kill()
        raise


def _config_env() -> dict[str, str]:
    """The person's settings file by its full path, because the supervisor runs in the checkout's root."""
    named = os.environ.get("WEIR_CONFIG")
    path = Path(named) if named else Path("weir.toml")
    return {"WEIR_CONFIG": str(path.resolve())} if path.is_file() else {}


def _wait_until_up(
    paths: StackPaths, supervisor: "subprocess.Popen[bytes]", log: Path, show: Show
) -> StackState:
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        state = read_state(paths.run)
        if state is not None and state.supervisor.pid == supervisor.pid:
            show(state)
            if state.phase is Phase.RUNNING:
                return state
        status = supervisor.poll()
        if status is not None:
            raise _why(paths, supervisor.pid, status, log)
        if time.monotonic() > deadline:
            raise WeirError(f"the stack was not up in {START_DEADLINE_S:.0f} s. See `weir logs`.")
        time.sleep(_POLL_S)


def _why(paths: StackPaths, pid: int, status: int, log: Path) -> WeirError:
    state = read_state(paths.run)
    code = ExitCode(status) if status in set(ExitCode) and status else ExitCode.FAILED
    if state is not None and state.supervisor.pid == pid and state.failure:
        return _Said(state.failure, code)
    if state is not None and state.supervisor.pid == pid and status == 0:
        return _Said("the stack was stopped while it started.", ExitCode.FAILED)
    lines = tail(log).splitlines()
    said = lines[-1] if lines else f"ended with status {status}"
    return _Said(said if code is not ExitCode.FAILED or len(said) < 300 else f"{said[:300]} ({log})", code)


class _Said(WeirError):
    """What the supervisor said, with its exit code."""

    def __init__(self, text: str, exit_code: ExitCode) -> None:
        self.exit_code = exit_code
        super().__init__(text)


def wait_for_other(paths: StackPaths, show: Show) -> StackState:
    """Wait for a stack that somebody else is starting.

    Raises:
        WeirError: it did not come up.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        state = read_state(paths.run)
        if not is_held(paths.run):
            break
        if state is not None and state.alive:
            show(state)
            if state.phase is Phase.RUNNING:
                return state
        time.sleep(_POLL_S)
    raise WeirError("another process was starting this stack, and it did not come up. See `weir logs`.")


def stop(paths: StackPaths, show: Show) -> list[str]:
    """Stop the stack, by its supervisor or without it; what was ended, empty when nothing ran.

    Raises:
        WeirError: this process is the supervisor's own child and cannot stop it.
    """
    state = running(paths)
    ended: list[str] = []
    if state is not None:
        if state.supervisor == this_process():
            raise AlreadyRunning(paths.run, state.supervisor.pid)
        ended = [part.name for part in state.parts if part.process]
        os.kill(state.supervisor.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_DEADLINE_S
        while state.supervisor.alive:
            if time.monotonic() > deadline:
                end_session(state.supervisor, 0.0)
                break
            show(read_state(paths.run) or state)
            time.sleep(_POLL_S)
        if (last := read_state(paths.run)) is not None:
            show(last)
    with exclusive(paths.run, wait_s=5.0):
        return ended or end_leftovers(paths.run)


def wipe(paths: StackPaths) -> list[Path]:
    """Remove everything that a stopped stack keeps; what was removed.

    Raises:
        AlreadyRunning: it is not stopped.
    """
    with exclusive(paths.run):
        gone = [folder for folder in paths.state_folders if folder.exists()]
    for folder in gone:
        shutil.rmtree(folder)
    return gone
