"""Compile the Java peer: the machine's own javac, jars by a list of hashes, both kept under `.weir/bench`."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.install.jars import read_jar_lock
from infra.install.progress import Reporter
from infra.install.stamp import fingerprint, is_current, write
from infra.install.steps import fetch_jars, replacing
from infra.local import layout
from infra.local.java import version_of
from weir.errors import MissingPart, WeirError

HERE = Path(__file__).parent
FOLDER = layout.HOME / "bench" / "kafka-streams"
VERSION_MIN = 17
# Of the broker's jars, those that a client needs; the rest only lengthens the class path.
_FROM_BROKER = (
    "jackson-annotations",
    "jackson-core",
    "jackson-databind",
    "kafka-clients",
    "log4j-api",
    "log4j-core",
    "log4j-slf4j-impl",
    "lz4-java",
    "slf4j-api",
)


class NoJavac(MissingPart):
    """No Java compiler of a sufficient version: the peer cannot be built here."""

    def __init__(self, seen: Sequence[str]) -> None:
        found = f" (found: {'; '.join(seen)})" if seen else ""
        super().__init__(
            f"Kafka Streams is left out: no javac {VERSION_MIN} or newer in JAVA_HOME or on PATH{found}. "
            "Install a JDK, such as openjdk-17-jdk-headless."
        )


@dataclass(frozen=True, slots=True)
class Jdk:
    """A compiler and the Java beside it."""

    javac: Path
    java: Path
    version: int


@dataclass(frozen=True, slots=True)
class Built:
    """What runs the peer."""

    jdk: Jdk
    class_path: str

    def command(self, main: str, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """The command line of one of the peer's programs."""
        return [str(self.jdk.java), *options, "-cp", self.class_path, main, *arguments]


def find_jdk() -> Jdk:
    """The first compiler of JAVA_HOME and PATH that is new enough, with the Java of its own folder.

    Raises:
        NoJavac: none.
    """
    places = [Path(home) / "bin" / "javac"] if (home := os.environ.get("JAVA_HOME")) else []
    if on_path := shutil.which("javac"):
        # A link of the system leads to the folder that holds both.
        places.append(Path(on_path).resolve())
    seen = []
    for javac in places:
        java = javac.with_name("java")
        version = version_of(java) if javac.is_file() else None
        if version is not None and version >= VERSION_MIN:
            return Jdk(javac, java, version)
        seen.append(f"{javac} is {f'version {version}' if version else 'not a working compiler'}")
    raise NoJavac(seen)


def build(*, rocksdb: bool = False) -> Built:
    """The compiled peer; fetches its jars and compiles when something changed.

    Raises:
        NoJavac: no compiler. MissingPart: the broker's jars are not there.
        WeirError: a jar cannot be had, or the sources do not compile.
    """
    jdk = find_jdk()
    libs = [_jars(HERE / lock) for lock in (("jars.lock", "rocksdb.lock") if rocksdb else ("jars.lock",))]
    paths = [next(iter(layout.KAFKA_LIB.glob(f"{name}-[0-9]*.jar")), None) for name in _FROM_BROKER]
    if None in paths:
        raise MissingPart(f"Kafka's jars are not in {layout.KAFKA_LIB}. Run `make setup`.")
    jars = [str(path) for path in (*paths, *(jar for lib in libs for jar in sorted(lib.glob("*.jar"))))]
    sources = sorted((HERE / "java").rglob("*.java"))
    classes = FOLDER / "classes"
    made_from = fingerprint(sources, f"{jdk.version} {' '.join(jars)}")
    if not (classes.is_dir() and is_current(FOLDER / "classes.stamp", made_from)):
        with replacing(classes) as fresh:
            options = ["-Xlint:all", "-encoding", "UTF-8", "-cp", os.pathsep.join(jars), "-d", str(fresh)]
            done = subprocess.run(
                [jdk.javac, *options, *map(str, sources)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise WeirError(f"the Kafka Streams peer does not compile: {done.stderr[:2000]}")
        write(FOLDER / "classes.stamp", made_from)
    return Built(jdk, os.pathsep.join([str(classes), *jars]))


def _jars(lock: Path) -> Path:
    """The folder of the list's jars; fetched when the list changed."""
    folder, stamp = FOLDER / lock.stem, FOLDER / f"{lock.stem}.stamp"
    made_from = fingerprint([lock])
    if not (folder.is_dir() and is_current(stamp, made_from)):
        fetch_jars(read_jar_lock(lock), folder, Reporter(), "kafka streams")
        write(stamp, made_from)
    return folder
