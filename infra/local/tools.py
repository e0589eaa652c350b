"""Programs that checks use and that no Python package carries: `promtool`."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from infra.local import layout
from weir.errors import MissingPart

_PROMTOOL = layout.TOOLS / "usr" / "bin" / "promtool"


def find_promtool() -> Path:
    """Prometheus's own checker: from PATH, else the one that setup unpacked.

    Raises:
        MissingPart: there is none; the text says how to get it.
    """
    if on_path := shutil.which("promtool"):
        return Path(on_path)
    if _PROMTOOL.is_file():
        return _PROMTOOL
    raise MissingPart(
        "promtool is not on this machine. Run `python3 infra/bootstrap.py --only tools` (Debian, Ubuntu), "
        "or install Prometheus so that promtool is on PATH."
    )


def unpack_debian(package: str, target: Path) -> None:
    """Unpack a package of the machine's own distribution below `target`: no root, nothing installed.

    The files come to a folder beside `target` first, which then takes its place.

    Raises:
        MissingPart: not Debian, no package lists, or no network; the text says which.
    """
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise MissingPart(
                f"{package} cannot be unpacked here: {program} is missing (not Debian or Ubuntu?). "
                f"Install {package} with your system's package manager."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        work = Path(folder)
        work.chmod(0o755)  # apt-get drops root before it writes
        _run(["apt-get", "-qq", "download", package], work, package)
        (archive,) = work.glob("*.deb")
        unpacked = work / "unpacked"
        _run(["dpkg-deb", "-x", str(archive), str(unpacked)], work, package)
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def _run(command: list[str], folder: Path, package: str) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MissingPart(
            f"{package}: `{' '.join(command[:2])}` failed ({said}). "
            f"Run `apt-get update` as root once, or install {package} yourself."
        )
