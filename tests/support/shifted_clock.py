"""`python -m tests.support.shifted_clock FILE MODULE`: run a module whose wall clock is off as FILE says.

FILE holds 8 bytes, a little-endian count of nanoseconds that may change at any time. What asks Python's
`time` module for the time of day sees the shifted one; durations (`monotonic`, `perf_counter`) go on
undisturbed, as they do when a machine's clock is set.
"""

import mmap
import runpy
import struct
import sys
import time
from pathlib import Path

from tests.support import stacks

_FORMAT = struct.Struct("<q")


def set_shift(file: Path, seconds: float) -> None:
    """Let the clock of whoever runs over `file` be off by `seconds` from now on."""
    with file.open("r+b") as opened:
        opened.write(_FORMAT.pack(int(seconds * 1e9)))


def make_shift_file(file: Path) -> Path:
    """A file by which the clock is right."""
    file.write_bytes(_FORMAT.pack(0))
    return file


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
