"""The steps of the set-up, each with what it is made from and how it is made."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.install import jars, packages, stamp, triton_layout
from infra.install.models import Models
from infra.install.progress import Reporter, progress
from infra.install.step import Step
from infra.local import layout
from infra.local.java import VERSION_MIN, Java, NoJava, bundled_java, candidates, find_java
from infra.local.kafka import make_class_cache
from infra.local.mariadb import find_mariadb
from infra.local.tools import find_promtool, unpack_debian
from weir.errors import MissingPart, WeirError

MAVEN_SETTINGS = Path.home() / ".m2" / "settings.xml"


class _Venv(Step):
    """`.venv`: the pinned packages, and the project itself with its generated gRPC code."""

    name = "venv"
    what = "Python packages and the project"
    needs_mb = 1500

    _lock = layout.REQUIREMENTS / "dev.lock"
    _python = layout.VENV / "bin" / "python"

    @property
    def _packages_stamp(self) -> Path:
        return layout.HOME / "stamps" / "venv-packages"

    def made_from(self) -> str:
        project = [
            layout.ROOT / "pyproject.toml",
            layout.ROOT / "infra" / "build" / "hatch_build.py",
            *sorted((layout.ROOT / "protos").rglob("*.proto")),
        ]
        return stamp.fingerprint([self._lock, *project], str(layout.ROOT))

    def is_there(self) -> bool:
        return self._python.exists() and (layout.ROOT / "weir" / "_proto").is_dir()

    def make(self, reporter: Reporter) -> str:
        uv = packages.get_uv(reporter)
        wanted = stamp.fingerprint([self._lock], str(layout.ROOT))
        if not (self._python.exists() and stamp.is_current(self._packages_stamp, wanted)):
            if not self._fits():
                uv.make_environment(layout.VENV)
            uv.sync(self._lock, layout.VENV, self.name)
            stamp.write(self._packages_stamp, wanted)
        # No isolation and no dependencies: what builds the project is in the lock, by hash, already.
        python = str(self._python)
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--python", python]
        uv.run("pip", "install", *options, "--editable", str(layout.ROOT), step=self.name)
        return f"{len(list(layout.VENV.glob('lib/python3.*/site-packages/*.dist-info')))} packages"

    def _fits(self) -> bool:
        """Whether the environment that stands there is of this very Python."""
        try:
            lines = (layout.VENV / "pyvenv.cfg").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        facts = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
        version = facts.get("version_info") or facts.get("version", "")
        wanted = ".".join(map(str, sys.version_info[:3]))
        return version.startswith(wanted) and self._python.exists()


class _JavaRuntime(Step):
    """Java for Kafka: the machine's own, or else one that a Python package carries."""

    name = "java"
    what = "Java"
    needs_mb = 150

    _lock = layout.REQUIREMENTS / "java.lock"

    def made_from(self) -> str:
        return stamp.fingerprint([self._lock], str(VERSION_MIN))

    def is_there(self) -> bool:
        # Asking each Java for its version takes a tenth of a second: done when something uses it.
        return any(program.is_file() for program, _ in candidates())

    def make(self, reporter: Reporter) -> str:
        try:
            return _java_words(find_java())
        except NoJava:
            uv = packages.get_uv(reporter)
        with replacing(layout.JAVA) as fresh:
            lock = str(self._lock)
            options = ["--quiet", "--require-hashes", "--python", sys.executable, "--target", str(fresh)]
            uv.run("pip", "install", *options, "--requirements", lock, step=self.name)
        return _java_words(bundled_java())


def _java_words(java: Java) -> str:
    return f"Java {java.version} from {java.source}"


class _Kafka(Step):
    """Kafka's jars by our own list of hashes, and an archive of its classes for a quick start."""

    name = "kafka"
    what = "Kafka broker"
    needs_mb = 200

    _lock = layout.REQUIREMENTS / "kafka-jars.lock"

    def made_from(self) -> str:
        return stamp.fingerprint([self._lock])

    def is_there(self) -> bool:
        return layout.KAFKA_LIB.is_dir()

    def make(self, reporter: Reporter) -> str:
        wanted = jars.read_jar_lock(self._lock)
        fetch_jars(wanted, layout.KAFKA_LIB, reporter, self.name)
        try:
            java = find_java()
        except NoJava:
            return f"{len(wanted)} jars"
        with progress(reporter, "  kafka: archive of its classes"):
            made = make_class_cache(java)
        return f"{len(wanted)} jars" + (f", quick start for Java {java.version}" if made else "")


class _Triton(Step):
    """The Triton server, its Python backend and ONNX Runtime, in an environment of their own."""

    name = "triton"
    what = "Triton inference server"
    needs_mb = 600

    _lock = layout.REQUIREMENTS / "triton.lock"

    def made_from(self) -> str:
        return stamp.fingerprint([self._lock, Path(triton_layout.__file__)])

    def is_there(self) -> bool:
        return (layout.TRITON_BACKENDS / "python").is_dir() and layout.TRITON_ENV.is_dir()

    def make(self, reporter: Reporter) -> str:
        triton_layout.require_platform()
        uv = packages.get_uv(reporter)
        uv.make_environment(layout.TRITON_ENV)
        uv.sync(self._lock, layout.TRITON_ENV, self.name)
        return triton_layout.lay_out(layout.TRITON_ENV, layout.TRITON)


class _Loops(Step):
    """The compiled loops of the hot path: the first payment on this machine need not wait for a compiler."""

    name = "loops"
    what = "compiled loops"
    needs_mb = 50

    _python = layout.VENV / "bin" / "python"

    def made_from(self) -> str:
        sources = [path for room in ("weir", "services") for path in (layout.ROOT / room).rglob("*.py")]
        return stamp.fingerprint([layout.REQUIREMENTS / "dev.lock", *sorted(sources)], str(layout.ROOT))

    def is_there(self) -> bool:
        return any((layout.ROOT / "weir" / "features" / "__pycache__").glob("*.nbi"))

    def make(self, reporter: Reporter) -> str:
        with progress(reporter, "  loops: compile"):
            done = subprocess.run(
                [self._python, "-m", "services.risk.warm"],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                cwd=layout.ROOT,
                check=False,
            )
        if done.returncode:
            # Everything works without them, later: the first worker compiles what it needs.
            return f"left to the first worker ({done.stderr.strip().splitlines()[-1:]})"
        return "ready"


class _MariaDb(Step):
    """A MariaDB server for the ledger's tests, from a jar that carries it."""

    name = "mariadb"
    what = "MariaDB server (for tests)"
    needs_mb = 700

    _lock = layout.REQUIREMENTS / "mariadb-jars.lock"
    _wanted = ("bin/mariadbd", "share/english/", "share/charsets/")

    def made_from(self) -> str:
        return stamp.fingerprint([self._lock])

    def is_there(self) -> bool:
        return (layout.MARIADB / "bin" / "mariadbd").is_file()

    def make(self, reporter: Reporter) -> str:
        (jar,) = jars.read_jar_lock(self._lock)
        folder = layout.SCRATCH / "mariadb-jar"
        fetch_jars([jar], folder, reporter, self.name)
        with progress(reporter, "  mariadb: unpack"), replacing(layout.MARIADB) as fresh:
            self._unpack(folder / jar.file_name, fresh)
        found = find_mariadb()
        return f"version {jar.version}" if found.source == "setup" else f"the machine's own, {found.program}"

    def _unpack(self, jar: Path, target: Path) -> None:
        with zipfile.ZipFile(jar) as archive:
            for entry in archive.infolist():
                inside = entry.filename.rpartition("/linux/")[2]
                sql = inside.startswith("share/") and inside.count("/") == 1 and inside.endswith(".sql")
                if entry.is_dir() or not (inside.startswith(self._wanted) or sql) or ".." in inside:
                    continue
                path = target / inside
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
        (target / "bin" / "mariadbd").chmod(0o755)


class _Tools(Step):
    """promtool, which checks the Prometheus configuration; a machine without it only skips that check."""

    name = "tools"
    what = "promtool (optional)"
    needs_mb = 250
    optional = True

    def made_from(self) -> str:
        return stamp.fingerprint([], "promtool")

    def is_there(self) -> bool:
        try:
            find_promtool()
        except MissingPart:
            return False
        return True

    def make(self, reporter: Reporter) -> str:
        if not self.is_there():
            with progress(reporter, "  tools: promtool"):
                unpack_debian("prometheus", layout.TOOLS)
        return str(find_promtool())


EMBEDDED_STACK: tuple[Step, ...] = (_Venv(), _JavaRuntime(), _Kafka(), _Triton(), _Loops(), Models())
ALL: tuple[Step, ...] = (*EMBEDDED_STACK, _MariaDb(), _Tools())


@contextmanager
def replacing(target: Path, scratch: Path = layout.SCRATCH) -> Iterator[Path]:
    """A fresh folder that takes the place of `target` if the block ends well; else nothing changes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{target.name}-", dir=scratch) as folder:
        fresh = Path(folder) / "fresh"
        fresh.mkdir()
        yield fresh
        if target.exists():
            target.rename(Path(folder) / "old")
        fresh.rename(target)


def fetch_jars(wanted: list[jars.Jar], folder: Path, reporter: Reporter, step: str) -> None:
    """Download jars into `folder`, which appears only once all are there and checked."""
    repository = jars.mirror_of_central(MAVEN_SETTINGS) or _central()
    total = sum(jar.byte_count for jar in wanted)
    with replacing(folder) as fresh, progress(reporter, f"  {step}: download", total) as meter:
        jars.fetch(wanted, repository, fresh, meter)


def _central() -> jars.Repository:
    """Maven's central repository, as the `maven-artifact` package knows it."""
    asked = subprocess.run(
        [
            layout.VENV / "bin" / "python",
            "-c",
            "import maven_artifact as m; print(m.Resolver.default().base)",
        ],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if asked.returncode:
        raise WeirError(
            "the address of the Java repository is not known: the `maven-artifact` package is not in .venv. "
            "Run `python3 infra/bootstrap.py --only venv` first."
        )
    return jars.Repository(asked.stdout.strip(), "Maven Central")
