"""Memory for large tables: reserved before it is used, and asked for before anything starts."""

import mmap
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weir.errors import ConfigError

GIB = 1 << 30
# What a worker needs beside its state: interpreter, compiled loops, batches in flight, clients.
BESIDE_STATE_BYTES = 1 << 30

_HUGE_PAGE_BYTES = 2 << 20
_LINUX = sys.platform == "linux"
# Python 3.11 does not name it. A reservation must not count as memory that was promised.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _LINUX else 0)
# A limit at or above this is how cgroup v1 says that there is none.
_NO_LIMIT = 1 << 60


class Region:
    """Zeroed bytes at a fixed address; a page takes memory when it is first written.

    Attributes:
        bytes: (nbytes,) uint8.
    """

    def __init__(self, nbytes: int) -> None:
        """Reserve.

        Raises:
            OSError: the system refuses so large a reservation.
        """
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._map = mmap.mmap(-1, max(nbytes, 1), flags=flags)
        # Random rows of a large table otherwise cost a page walk each.
        if hasattr(mmap, "MADV_HUGEPAGE") and nbytes >= _HUGE_PAGE_BYTES:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)[:nbytes]

    def clear(self, start: int, stop: int) -> None:
        """Zero bytes `start` to `stop`; whole pages among them are given back."""
        page = _HUGE_PAGE_BYTES
        first, last = -(-start // page) * page, stop // page * page
        if not _LINUX or last <= first:
            self.bytes[start:stop] = 0
            return
        self.bytes[start:first] = 0
        self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        self.bytes[last:stop] = 0


class NotEnoughMemory(ConfigError):
    """The state that the settings allow does not fit; nothing was started."""

    def __init__(self, need_bytes: int, have_bytes: int, text: str) -> None:
        self.need_bytes, self.have_bytes = need_bytes, have_bytes
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Need:
    """What a part takes at most, and the setting that bounds it, such as `risk.accounts_max`."""

    what: str
    setting: str
    nbytes: int


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes this process may have: its control group's limit (v2 or v1), at most the machine's memory.

    Args:
        root: where `proc` and `sys` are.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_group_limits(root)])


def require_memory(
    needs: Sequence[Need], *, beside_bytes: int = BESIDE_STATE_BYTES, limit_bytes: int | None = None
) -> int:
    """Bytes left over when every part is as large as its setting lets it become.

    Args:
        beside_bytes: what the process needs for everything else.
        limit_bytes: what it may have; `memory_limit()` unless given.
    Raises:
        NotEnoughMemory: they do not fit; the text names the settings, largest part first.
    """
    have = memory_limit() if limit_bytes is None else limit_bytes
    need = beside_bytes + sum(each.nbytes for each in needs)
    if need <= have:
        return have - need
    parts = sorted(needs, key=lambda each: -each.nbytes)
    sizes = ", ".join(f"{each.what} {each.nbytes / GIB:.1f}" for each in parts)
    settings = " or ".join(dict.fromkeys(each.setting for each in parts))
    raise NotEnoughMemory(
        need,
        have,
        f"The state may grow to {need / GIB:.1f} GiB ({sizes}, the rest {beside_bytes / GIB:.1f}), "
        f"but this process may have {have / GIB:.1f} GiB. Lower {settings}, or give it more memory.",
    )


def _group_limits(root: Path) -> list[int]:
    """Every limit above this process, of either version of control groups."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the group's own path may not be there, but its mount's root is.
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            found += _limit(folder / name)
            if folder == mount:
                break
    return found


def _limit(file: Path) -> list[int]:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and int(text) < _NO_LIMIT else []
