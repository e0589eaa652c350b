"""A whole federation on one machine: a Flower SuperLink, a SuperNode for each bank, one run.

Every process listens on 127.0.0.1 alone, has a folder of this run as its home, and is ended by its own id.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from services.training.errors import TrainingError
from services.training.federate.apps import PROGRESS, RESULT
from services.training.federate.plan import Plan
from services.training.federate.rounds import Outcome
from weir.errors import MissingPart, NeighbourUnavailable

HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 5.0
_POLL_S = 0.1
# The kernel ends a child whose parent was killed, before it could end the child itself.
_GUARDED = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
os.execv(sys.argv[1], sys.argv[1:])
"""


class Federation:
    """The processes of one run in `folder`, which must be new and private."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str) -> None:
        """A Flower command, its output in `<name>.log`.

        Raises:
            MissingPart: Flower is not installed.
        """
        program = Path(sys.executable).with_name(words[0])
        if not program.exists():
            raise MissingPart("Flower is not installed. Run `make setup`, or pip install 'weir[federate]'.")
        home = self.folder / name
        home.mkdir(mode=0o700)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(  # noqa: S603 - a program of this environment
                [sys.executable, "-c", _GUARDED, str(program), *words[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(home),
                cwd=home,
                start_new_session=True,
            )

    def stop(self, name: str | None = None) -> None:
        """End one part or all, with what they started themselves; by id, first politely."""
        chosen = list(self.processes) if name is None else [name]
        found: list[psutil.Process] = []
        for each in chosen:
            if (process := self.processes.pop(each, None)) is not None:
                found += _tree(process.pid)
        for signal_ in (signal.SIGTERM, signal.SIGKILL):
            for one in found:
                with suppress(psutil.NoSuchProcess):
                    one.send_signal(signal_)
            _, found = psutil.wait_procs(found, STOP_S)

    def require_alive(self, name: str) -> None:
        """Nothing while the part runs.

        Raises:
            NeighbourUnavailable: it has ended.
        """
        process = self.processes[name]
        if process.poll() is not None:
            raise NeighbourUnavailable(f"Flower's {name} ended by itself: {self.last_line(name)}")

    def last_line(self, name: str) -> str:
        """The last words of a part, on one line."""
        lines = (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def run_here(
    banks: Mapping[str, Path],
    plan: Plan,
    folder: Path,
    *,
    patience_s: float,
    say: Callable[[str], None] = lambda line: None,
    watch: Callable[[Federation, str], None] = lambda federation, line: None,
) -> Outcome:
    """The outcome of a federation of these banks, all its processes on this machine and ended afterwards.

    Args:
        banks: folder of events by name.
        folder: new and private; logs, secrets and cells lie there while it runs.
        watch: called with each line of progress.
    Raises:
        NeighbourUnavailable: a part of Flower did not start or ended. TrainingError: what the coordinator
            found wrong before the first round.
    """
    federation = Federation(folder)
    ports = _free_ports(len(banks) + 1)
    link = f"{HOST}:{ports[0]}"
    try:
        federation.start(
            "superlink", "flower-superlink", "--insecure", "--host", HOST, "--port", str(ports[0]),
            "--disable-runtime-dependency-installation",
        )  # fmt: skip
        _wait_for_port(federation, "superlink", ports[0])
        for (name, data), port in zip(banks.items(), ports[1:], strict=True):
            config = node_config(name, data.resolve(), folder / f"bank-{name}" / "scratch")
            federation.start(
                f"bank-{name}", "flower-supernode", "--insecure", "--superlink", link,
                "--host", HOST, "--port", str(port), "--node-config", config,
            )  # fmt: skip
        app = folder / "app"
        write_app(app, plan, banks=len(banks), out=folder / "coordinator", patience_s=patience_s)
        _submit(federation, app, link)
        return _followed(federation, folder / "coordinator", patience_s, say, watch)
    finally:
        federation.stop()


def environment(home: Path) -> dict[str, str]:
    """Variables of a part: of the caller's only paths; no telemetry, no look for a newer version."""
    kept = {
        name: os.environ[name] for name in ("LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH") if name in os.environ
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return kept | {
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        "HOME": str(home),
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "OMP_NUM_THREADS": "1",
    }


def node_config(bank: str, data: Path, scratch: Path) -> str:
    """What `flower-supernode --node-config` of a bank says.

    Raises:
        TrainingError: a path holds a quotation mark, which Flower cannot read.
    """
    for path in (data, scratch):
        if {'"', "'", "\\"} & set(str(path)):
            raise TrainingError(
                f"{path}: Flower cannot read a path with a quotation mark. Rename the folder."
            )
    return f'bank="{bank}" data="{data}" scratch="{scratch}"'


def write_app(folder: Path, plan: Plan, *, banks: int, out: Path, patience_s: float) -> None:
    """A folder that `flwr run` takes: two lines of code that name Weir's apps, and the plan."""
    code = folder / "weir_federation"
    code.mkdir(parents=True)
    (code / "__init__.py").write_text("", encoding="utf-8")
    for part in ("client", "server"):
        line = f"from services.training.federate.apps import {part}_app as app\n\n__all__ = ['app']\n"
        (code / f"{part}_app.py").write_text(line, encoding="utf-8")
    # A JSON string is a basic string of TOML.
    (folder / "pyproject.toml").write_text(
        f"""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "weir-federation"
version = "1.0.0"
description = "Weir's risk model, trained by several banks"
license = "Apache-2.0"
dependencies = ["flwr>=1.42"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "weir"

[tool.flwr.app.components]
serverapp = "weir_federation.server_app:app"
clientapp = "weir_federation.client_app:app"

[tool.flwr.app.config]
plan = {json.dumps(plan.as_json())}
banks = {banks}
patience-s = {float(patience_s)}
folder = {json.dumps(str(out))}
""",
        encoding="utf-8",
    )


def _submit(federation: Federation, app: Path, link: str) -> None:
    """`flwr run`, with a configuration that knows this SuperLink alone."""
    home = federation.folder / "submit"
    (home / "flwr").mkdir(parents=True)
    (home / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{link}"\ninsecure = true\n',
        encoding="utf-8",
    )
    words = [str(Path(sys.executable).with_name("flwr")), "run", str(app), "here"]
    done = subprocess.run(  # noqa: S603 - a program of this environment
        words, env=environment(home), cwd=home, capture_output=True, text=True, timeout=START_S, check=False
    )
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).split("\n") if line.strip()]
        raise NeighbourUnavailable(f"{shlex.join(words[:2])} was refused: {said[-1] if said else 'no word'}")


def _followed(
    federation: Federation,
    folder: Path,
    patience_s: float,
    say: Callable[[str], None],
    watch: Callable[[Federation, str], None],
) -> Outcome:
    """The result once it is there; lines of progress as they come."""
    told, since = 0, time.monotonic()
    while True:
        done = (folder / RESULT).exists()
        lines = (folder / PROGRESS).read_text("utf-8").splitlines() if (folder / PROGRESS).exists() else []
        for line in lines[told:]:
            say(line)
            watch(federation, line)
            since = time.monotonic()
        told = len(lines)
        if done:
            break
        federation.require_alive("superlink")
        # A round asks up to three times, and each may use up the patience.
        if time.monotonic() - since > 4 * patience_s + START_S:
            raise NeighbourUnavailable(f"The coordinator is silent: {federation.last_line('superlink')}")
        time.sleep(_POLL_S)  # the coordinator is no child of this process, so nothing tells of its end
    found = json.loads((folder / RESULT).read_text("utf-8"))
    if "error" in found:
        raise TrainingError(found["error"])
    return Outcome.from_dict(found)


def _wait_for_port(federation: Federation, name: str, port: int) -> None:
    end = time.monotonic() + START_S
    while True:
        federation.require_alive(name)
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            if time.monotonic() > end:
                said = federation.last_line(name)
                raise NeighbourUnavailable(f"Flower's {name} does not answer: {said}") from None
            time.sleep(_POLL_S)  # a server tells nobody when it begins to listen
        else:
            return


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
