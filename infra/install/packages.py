"""Install Python packages by hash, with a `uv` of our own that comes by hash too."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from infra.install import stamp
from infra.install.progress import Meter, Reporter, progress
from infra.local import layout
from weir.errors import IntegrityError, MissingPart, NeighbourUnavailable, WeirError

BOOT = layout.HOME / "boot"
_BOOT_LOCK = layout.REQUIREMENTS / "boot.lock"
_BOOT_STAMP = layout.HOME / "stamps" / "boot"

_NO_NETWORK = re.compile(
    r"failed to (fetch|lookup|download)|dns error|error sending request|timed out|connection (refused|reset)"
    r"|network is unreachable|no matching distribution|name resolution|newconnectionerror|could not connect"
    r"|max retries",
    re.IGNORECASE,
)
_UNKNOWN_AUTHORITY = re.compile(r"UnknownIssuer|invalid peer certificate", re.IGNORECASE)
_WRONG_HASH = re.compile(r"hash(es)? (mismatch|do not match)|do(es)? not match the hashes", re.IGNORECASE)


class Uv:
    """The installer, and the indexes that this machine's pip or uv is set up with."""

    def __init__(self, program: Path, reporter: Reporter) -> None:
        self.program, self._reporter = program, reporter
        self._env = {
            **os.environ,
            **index_settings(_pip_config(), os.environ),
            "UV_PYTHON_DOWNLOADS": "never",
        }
        # A shell's active environment is not ours.
        self._env.pop("VIRTUAL_ENV", None)

    def make_environment(self, folder: Path) -> None:
        """An empty virtual environment of this Python, over whatever stands there."""
        self.run("venv", "--quiet", "--clear", "--python", sys.executable, str(folder), step=folder.name)

    def sync(self, lock: Path, environment: Path, step: str) -> None:
        """Make the environment hold exactly the packages of the lock."""
        python = environment / "bin" / "python"
        # Wheels alone: to build a package takes a compiler that a bare machine lacks, and minutes.
        options = ["--require-hashes", "--no-build", "--python", str(python)]
        self.run("pip", "sync", *options, str(lock), step=step)

    def run(self, *arguments: str, step: str) -> None:
        """Run uv; the large packages that it says it downloads are counted as they come.

        Raises:
            NeighbourUnavailable: no network. IntegrityError: a wrong hash. WeirError: anything else.
        """
        code, said = self._run(arguments, step)
        if code and _UNKNOWN_AUTHORITY.search(said) and "UV_SYSTEM_CERTS" not in self._env:
            # A proxy of the house signs with an authority that this machine knows and uv's own list does not.
            self._env["UV_SYSTEM_CERTS"] = "true"
            code, said = self._run(arguments, step)
        if code:
            raise explain(step, said)

    def _run(self, arguments: Sequence[str], step: str) -> tuple[int, str]:
        said: list[str] = []
        with (
            progress(self._reporter, f"  {step}: packages") as meter,
            subprocess.Popen(
                [self.program, *arguments],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=layout.ROOT,
            ) as process,
        ):
            downloads = Downloads(meter)
            for line in process.stdout or ():
                said.append(line)
                downloads.read(line)
        return process.returncode, "".join(said)


class Downloads:
    """Counts what uv tells of its downloads: `Downloading numba (3.6MiB)`, later ` Downloaded numba`."""

    _BEGAN = re.compile(r"^\s*Downloading (\S+) \(([\d.]+)\s?([KMG])iB\)")
    _CAME = re.compile(r"^\s*Downloaded (\S+)")
    _UNITS: ClassVar[dict[str, int]] = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._sizes: dict[str, int] = {}

    def read(self, line: str) -> None:
        """Count one line of uv's."""
        if began := self._BEGAN.match(line):
            size = int(float(began[2]) * self._UNITS[began[3]])
            self._sizes[began[1]] = size
            self._meter.expect(size)
        elif came := self._CAME.match(line):
            self._meter.add(self._sizes.pop(came[1], 0))


def explain(step: str, output: str) -> WeirError:
    """What an installer's output means, as one line."""
    lines = [line.strip(" ×│├╰─▶\t") for line in output.splitlines()]
    said = next(
        (line for line in reversed(lines) if line and not line.lower().startswith("hint")), "no message"
    )
    said = _without_secrets(said)[:300]
    if _WRONG_HASH.search(output):
        return IntegrityError(
            f"{step}: a package is not the file that its lock names by SHA-256 ({said}). "
            "Do not use that index until this is explained."
        )
    if _NO_NETWORK.search(output):
        return NeighbourUnavailable(
            f"{step}: no network to a package index, or it lacks the package ({said}). Connect (or set "
            "PIP_INDEX_URL to a mirror), then run this again: what is here already stays."
        )
    return WeirError(f"{step}: the installer failed ({said}).")


def _without_secrets(text: str) -> str:
    """An address without the name and password in it."""
    return re.sub(r"://[^/@\s]+@", "://", text)


def _pip_config() -> dict[str, str]:
    """pip's settings as `pip config list` tells them: files and environment, the stronger later."""
    done = subprocess.run(
        [BOOT / "bin" / "python", "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return parse_pip_config(done.stdout)


def parse_pip_config(text: str) -> dict[str, str]:
    """`global.index-url='...'` lines by setting; the environment wins, then [install], then [global]."""
    found: dict[str, str] = {}
    for scope in ("global", "install", ":env:"):
        for setting, value in re.findall(rf"^{re.escape(scope)}\.([\w-]+)='(.*)'$", text, re.MULTILINE):
            found[setting] = value
    return found


def index_settings(pip: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """uv reads none of pip's settings: the same index, mirror and authority, unless uv has its own."""
    settings = {}
    has_own = {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(environment)
    if "index-url" in pip and not has_own:
        settings["UV_DEFAULT_INDEX"] = pip["index-url"]
        if "extra-index-url" in pip and "UV_INDEX" not in environment:
            settings["UV_INDEX"] = pip["extra-index-url"].replace("\\n", " ")
    if "cert" in pip and "SSL_CERT_FILE" not in environment:
        settings["SSL_CERT_FILE"] = pip["cert"]
    if "timeout" in pip and "UV_HTTP_TIMEOUT" not in environment:
        settings["UV_HTTP_TIMEOUT"] = pip["timeout"]
    return settings


def get_uv(reporter: Reporter) -> Uv:
    """The pinned uv, installed by hash into an environment of its own at the first call.

    Raises:
        MissingPart: this Python cannot make virtual environments.
        NeighbourUnavailable, IntegrityError: pip could not fetch it.
    """
    program = BOOT / "bin" / "uv"
    expected = stamp.fingerprint([_BOOT_LOCK])
    if not (program.is_file() and stamp.is_current(_BOOT_STAMP, expected)):
        _install_uv(reporter)
        stamp.write(_BOOT_STAMP, expected)
    return Uv(program, reporter)


def _install_uv(reporter: Reporter) -> None:
    shutil.rmtree(BOOT, ignore_errors=True)
    BOOT.parent.mkdir(parents=True, exist_ok=True)
    with progress(reporter, "  uv: a first environment"):
        made = _quiet([sys.executable, "-m", "venv", str(BOOT)])
    if made.returncode:
        shutil.rmtree(BOOT, ignore_errors=True)
        if "ensurepip" in made.stdout + made.stderr or "No module named venv" in made.stderr:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise MissingPart(
                f"{sys.executable} cannot make a virtual environment: its ensurepip module is missing. "
                f"Install your system's python{version}-venv package (Debian, Ubuntu), or use another Python."
            )
        raise explain("uv", made.stderr + made.stdout)
    with progress(reporter, "  uv: install"):
        pip = [str(BOOT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
        got = _quiet([*pip, "install", "--quiet", "--require-hashes", "--no-deps", "-r", str(_BOOT_LOCK)])
    if got.returncode:
        raise explain("uv", got.stderr + got.stdout)


def _quiet(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
