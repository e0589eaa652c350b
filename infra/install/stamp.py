"""Know in milliseconds whether a step is done: a stamp holds the hash of all that the step was made from."""

import fcntl
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.install.progress import Reporter


def fingerprint(files: Iterable[Path], *facts: str) -> str:
    """The hash of the files' names and bytes, of this Python, this machine's kind and of `facts`."""
    digest = hashlib.sha256()
    version = ".".join(map(str, sys.version_info[:3]))
    for fact in (version, platform.machine(), sys.platform, *facts):
        digest.update(fact.encode() + b"\0")
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_current(stamp: Path, expected: str) -> bool:
    """Whether the step was finished from exactly this."""
    try:
        return stamp.read_text(encoding="ascii") == expected
    except (OSError, UnicodeDecodeError):
        return False


def write(stamp: Path, value: str) -> None:
    """Say that the step is finished; whole or not at all."""
    stamp.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{stamp.name}-", dir=stamp.parent)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(value)
    Path(name).replace(stamp)


@contextmanager
def only_one(path: Path, reporter: Reporter) -> Iterator[None]:
    """Hold the file lock, waiting for whoever holds it; the kernel frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reporter.line("Another setup runs in this folder: waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
