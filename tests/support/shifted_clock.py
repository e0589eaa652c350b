"""`python -m tests.support.shifted_clock FILE MODULE`: run a module whose wall clock is off as FILE says.

FILE holds 8 bytes, a little-endian count of nanoseconds that may change at any time. What asks Python's
`time` module for the time of day sees the shifted one; durations (`monotonic`, `perf_counter`) go on
undisturbed, as they do when a machine's clock is set.

A process that is not Python (a broker) has its clock moved by `process_clock.c`, where there is a C compiler.
"""

import mmap
import runpy
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

from tests.support import stacks

_FORMAT = struct.Struct("<q")
_SOURCE = Path(__file__).with_name("process_clock.c")


def set_shift(file: Path, seconds: float) -> None:
    """Let the clock of whoever runs over `file` be off by `seconds` from now on."""
    with file.open("r+b") as opened:
        opened.write(_FORMAT.pack(int(seconds * 1e9)))


def make_shift_file(file: Path) -> Path:
    """A file by which the clock is right."""
    file.write_bytes(_FORMAT.pack(0))
    return file


def can_shift_processes() -> bool:
    """Whether `build_for_processes` can do its work: a C compiler, on Linux."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def build_for_processes(folder: Path) -> Path:
    """Compile `process_clock.c` into the folder; the library.

    Raises:
        CalledProcessError, OSError: there is no compiler here (`can_shift_processes`), or it fails.
    """
    library = folder / "process_clock.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(_SOURCE)],
        check=True,
        capture_output=True,
    )
    return library


def environment(library: Path, file: Path) -> dict[str, str]:
    """What a process needs in its environment so that its clock is off as `file` says."""
    return {"LD_PRELOAD": str(library), "WEIR_CLOCK_SHIFT": str(file)}


def install(file: Path) -> None:
    """Put the shift between this process and its `time` module."""
    with file.open("rb") as opened:
        shift = mmap.mmap(opened.fileno(), _FORMAT.size, access=mmap.ACCESS_READ)
    true_ns = time.time_ns

    def time_ns() -> int:
        moved: int = _FORMAT.unpack_from(shift)[0]
        return true_ns() + moved

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


def main() -> None:
    """Become the module."""
    file, module, *arguments = sys.argv[1:]
    install(Path(file))
    stacks.install()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
