"""Lay out Triton's backends where its server finds them, with a stub for this Python."""

import ctypes
import platform
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from infra.local import layout
from infra.local.tools import unpack_debian
from weir.errors import MissingPart

_STUB = "triton_python_backend_stub"


def require_platform() -> None:
    """Check that there is a Triton for this machine.

    Raises:
        MissingPart: there is none.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise MissingPart(
            f"Triton's package runs on Linux on x86-64 only, not on {sys.platform} {platform.machine()}. "
            "Point [triton] endpoint at a server elsewhere."
        )


def lay_out(environment: Path, target: Path) -> str:
    """Make `target/backends` (and `target/lib` if needed) from the packages of `environment`; a few words.

    `target/lib` holds libpython when the system's loader does not find the one that the stub is linked to.

    Raises:
        MissingPart: no stub for this Python, or no libpython.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (server,) = environment.glob("lib/python3.*/site-packages/pytriton/tritonserver")
    stub = server / "python_backend_stubs" / version / _STUB
    if not stub.is_file():
        known = ", ".join(sorted(path.name for path in stub.parents[1].iterdir()))
        raise MissingPart(
            f"Triton's Python backend has no part for Python {version} (only for {known}). "
            "Run setup with one of those: `make setup PYTHON=python3.12`."
        )
    target.mkdir(parents=True, exist_ok=True)
    layout.SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="triton-", dir=layout.SCRATCH) as folder:
        fresh = Path(folder)
        shutil.copytree(server / "backends", fresh / "backends")
        placed = fresh / "backends" / "python" / _STUB
        shutil.copyfile(stub, placed)
        placed.chmod(0o755)
        library = find_libpython(f"libpython{version}.so.1.0", version, fresh)
        if library is not None:
            (fresh / "lib").mkdir()
            if fresh in library.parents:
                shutil.copyfile(library, fresh / "lib" / library.name)
            else:
                (fresh / "lib" / library.name).symlink_to(library)
        for name in ("backends", "lib"):
            shutil.rmtree(target / name, ignore_errors=True)
            if (fresh / name).exists():
                (fresh / name).rename(target / name)
    return f"Python {version} backend"


def find_libpython(name: str, version: str, scratch: Path) -> Path | None:
    """The library that the stub embeds: None when the loader finds it itself, else its path.

    Raises:
        MissingPart: this Python was built without it, and the system has none to offer.
    """
    # First this Python's own: what the interpreter has loaded, it would find by name where the stub does not.
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder) / name
    if _loader_finds(name):
        return None
    try:
        unpack_debian(f"libpython{version}", scratch / "debian")
        found = next((scratch / "debian").rglob(name))
        return found.resolve()
    except (MissingPart, StopIteration) as error:
        raise MissingPart(
            f"Triton's Python backend needs {name}, which this Python ({sys.executable}) was built without. "
            f"Install your system's libpython{version} package, or use a Python built with --enable-shared."
        ) from error


def _loader_finds(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
