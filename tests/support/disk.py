"""A small disk that can be full: a tmpfs of its own, which only root may mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = "weir-faults-"
_FILLER = "filler"
_MB = 1 << 20


class SmallDisk:
    """A folder on a file system of its own; `fill` leaves no byte in it, `free` gives them back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> int:
        """Take every free byte; how many there were."""
        taken = 0
        with (self.folder / _FILLER).open("ab", buffering=0) as filler:
            for piece in (b"\0" * _MB, b"\0" * 4096, b"\0"):
                try:
                    while True:
                        taken += filler.write(piece)
                except OSError:
                    continue
        return taken

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.folder / _FILLER).unlink(missing_ok=True)


def can_mount() -> bool:
    """Whether this process may mount a file system: root on Linux, outside a strict container."""
    return os.path.exists("/proc/mounts") and os.geteuid() == 0 and _mount_works()


def _mount_works() -> bool:
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def small_disk(folder: Path, size_mb: int) -> Iterator[SmallDisk]:
    """A tmpfs of `size_mb` at `folder` for as long as the block runs.

    Raises:
        CalledProcessError: this process may not mount (`can_mount`).
    """
    _unmount_leftovers()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{_NAME}{os.getpid()}"
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", name, str(folder)],
        check=True,
        capture_output=True,
    )
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: a server that is being killed may still hold a file.
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _unmount_leftovers() -> None:
    """Unmount what a run left that was killed."""
    for line in Path("/proc/mounts").read_text().splitlines():
        name, folder, *_ = line.split()
        if name.startswith(_NAME) and not Path(f"/proc/{name.removeprefix(_NAME)}").exists():
            subprocess.run(["umount", "-l", folder], check=False, capture_output=True)
