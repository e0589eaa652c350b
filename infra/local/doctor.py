"""What this machine has and lacks, and whether each neighbour answers, each with what to do."""

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.local import layout
from infra.local.control import running
from infra.local.java import find_java
from infra.local.ports import accepts
from infra.local.stack import healthy
from infra.local.stack_settings import StackSettings
from infra.local.triton import site_packages
from weir.config import (
    KafkaSettings,
    KeyServiceSettings,
    LogSettings,
    RegistrySettings,
    TopicSettings,
    TritonSettings,
    WeirSettings,
    config_path,
    read_config,
)
from weir.errors import AccessDenied, ExitCode, MissingPart, WeirError

PYTHON_MIN = (3, 11)
MEMORY_GB_MIN = 3.0
NEIGHBOURS = ("kafka", "topics", "triton", "keys", "ledger")
_ANSWER_S = 5.0


class Verdict(StrEnum):
    """OK; a note that stops nothing; missing on this machine; a neighbour that gives no answer."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    name: str
    verdict: Verdict
    text: str

    @property
    def colour(self) -> str:
        """For the terminal."""
        return {Verdict.OK: "green", Verdict.NOTE: "yellow"}.get(self.verdict, "red")

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        return {"name": self.name, "verdict": str(self.verdict), "text": self.text}


# What a check says when all is well; it raises when not.
Check = Callable[[], str | Awaitable[str]]


class Note(WeirError):
    """Worth knowing, and nothing that stops."""


async def examine(only: str | None = None) -> list[Finding]:
    """Every check, or the one of that name.

    Raises:
        MissingPart: no check has that name.
    """
    checks = dict(_checks())
    if only is not None:
        if only not in checks:
            raise MissingPart(f"the doctor knows nothing of {only!r}. He checks {', '.join(checks)}.")
        checks = {only: checks[only]}
    nobody = only is None and config_path() is None and running(StackSettings.load().paths) is None
    return [
        Finding(name, Verdict.NOTE, "not asked: no settings file says where, and no stack runs. `weir up`.")
        if nobody and name in NEIGHBOURS
        else await _finding(name, check)
        for name, check in checks.items()
    ]


def _checks() -> Iterator[tuple[str, Check]]:
    yield "python", _python
    yield "packages", _packages
    yield "java", _java
    yield "kafka-jars", _kafka_jars
    yield "triton-env", _triton_env
    yield "models", _models
    yield "language-models", _language_models
    yield "disk", _disk
    yield "memory", _memory
    yield "settings", _settings
    yield "ports", _ports
    yield "stack", _stack
    yield "kafka", _kafka
    yield "topics", _topics
    yield "triton", _triton
    yield "keys", _keys
    yield "ledger", _ledger


async def _finding(name: str, check: Check) -> Finding:
    try:
        answer = check()
        text = await asyncio.wait_for(answer, 3 * _ANSWER_S) if not isinstance(answer, str) else answer
    except Note as error:
        return Finding(name, Verdict.NOTE, str(error))
    except TimeoutError:
        return Finding(name, Verdict.AWAY, f"no answer in {3 * _ANSWER_S:.0f} s. See `weir logs`.")
    except WeirError as error:
        away = error.exit_code in (ExitCode.UNAVAILABLE, ExitCode.DENIED)
        return Finding(name, Verdict.AWAY if away else Verdict.MISSING, str(error))
    return Finding(name, Verdict.OK, text)


def _python() -> str:
    if sys.version_info < PYTHON_MIN:
        raise MissingPart(
            f"{sys.version.split()[0]} is too old: Weir needs {'.'.join(map(str, PYTHON_MIN))}."
        )
    return f"{sys.version.split()[0]} ({sys.executable})"


def _packages() -> str:
    """The environment against the lock: each pinned package with its version."""
    lock = layout.REQUIREMENTS / "dev.lock"
    if not lock.is_file():
        raise MissingPart(f"no {lock}. The checkout is not whole.")
    pinned = dict(pins(lock))
    wrong = []
    for name, wanted in pinned.items():
        try:
            held = version(name)
        except PackageNotFoundError:
            held = "absent"
        if held != wanted:
            wrong.append(f"{name} {held}, not {wanted}")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise MissingPart(f"{', '.join(wrong[:3])}{more}. Run `make setup`.")
    return f"{len(pinned)} as pinned in {lock.name}"


def pins(lock: Path) -> Iterator[tuple[str, str]]:
    """Name and version of each line `name==version ; marker` of a lock whose marker holds here."""
    from packaging.markers import Marker

    for line in lock.read_text(encoding="utf-8").splitlines():
        if not line[:1].isalnum() or "==" not in line:
            continue
        requirement, _, marker = line.rstrip(" \\").partition(";")
        name, _, pinned = requirement.partition("==")
        if not marker.strip() or Marker(marker.strip()).evaluate():
            yield name.partition("[")[0].strip(), pinned.strip()


def _java() -> str:
    java = find_java()
    return f"{java.version} from {java.source} ({java.program})"


def _kafka_jars() -> str:
    jars = list(layout.KAFKA_LIB.glob("*.jar"))
    if not jars:
        raise MissingPart(f"none in {layout.KAFKA_LIB}. Run `make setup`.")
    return f"{len(jars)} in {layout.KAFKA_LIB}"


def _triton_env() -> str:
    site = site_packages(layout.TRITON_ENV)
    program = site / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if not program.is_file() or not (layout.TRITON_BACKENDS / "python").is_dir():
        raise MissingPart(f"the server is not whole in {layout.TRITON_ENV}. Run `make setup`.")
    return str(program)


def _models() -> str:
    folder = StackSettings.load().models
    names = sorted(path.parent.name for path in folder.glob("*/config.pbtxt"))
    if not names:
        raise MissingPart(f"none in {folder}. Run `weir train risk`, or restore the checkout.")
    return f"{', '.join(names)} in {folder}"


def _language_models() -> str:
    from infra.install.models import Models

    if not Models().is_there():
        raise Note(f"not whole in {layout.MODELS}: customers are answered by words alone. Run `make setup`.")
    names = sorted(path.parent.name for path in layout.MODELS.glob("*/*/config.pbtxt"))
    return f"{', '.join(names)} in {layout.MODELS}"


def _disk() -> str:
    from infra.local.stack import require_disk

    settings = StackSettings.load()
    require_disk(settings.paths.home, settings.disk_free_mb_min)
    here = next(each for each in (settings.paths.home, *settings.paths.home.parents) if each.exists())
    return f"{shutil.disk_usage(here).free / 1e9:.1f} GB free at {here}"


def _memory() -> str:
    import psutil

    free_gb = psutil.virtual_memory().available / 1e9
    if free_gb < MEMORY_GB_MIN and running(StackSettings.load().paths) is None:
        raise Note(f"{free_gb:.1f} GB are free; the stack wants {MEMORY_GB_MIN:.0f}. Close something.")
    return f"{free_gb:.1f} GB free, {os.cpu_count()} CPUs"


def _settings() -> str:
    path = config_path()
    sections: list[type[WeirSettings]] = [
        KafkaSettings,
        TopicSettings,
        TritonSettings,
        KeyServiceSettings,
        RegistrySettings,
        LogSettings,
        StackSettings,
    ]
    for section in sections:
        section.load()
    for module, name in (("risk", "RiskSettings"), ("ledger", "LedgerSettings")):
        _service_settings(module, name).load()
    if path is None:
        raise Note("no settings file: defaults and WEIR_*. `weir up` writes one, or write ./weir.toml.")
    return f"{path}: {', '.join(read_config(path))}"


def _service_settings(module: str, name: str) -> type[WeirSettings]:
    from importlib import import_module

    found: type[WeirSettings] = getattr(import_module(f"services.{module}.settings"), name)
    return found


def _ports() -> str:
    settings = StackSettings.load()
    given = {name: port for name, port in settings.wanted_ports().items() if port}
    if running(settings.paths) is None:
        for name, port in given.items():
            if accepts(port):
                raise MissingPart(
                    f"{name}: {port} is taken by another process. Stop it, or give another port."
                )
    return f"given: {', '.join(f'{name} {port}' for name, port in given.items())}" if given else "chosen free"


def _stack() -> str:
    paths = StackSettings.load().paths
    state = running(paths)
    if state is None:
        raise Note(f"none runs in {paths.home}. Start it with `weir up`, or set your own servers.")
    return f"{state.phase}, supervisor {state.supervisor.pid}"


async def _kafka() -> str:
    from weir.cli.topics import admin

    settings = KafkaSettings.load()
    async with admin(settings) as client:
        cluster = await client.describe_cluster()
    return f"{len(cluster['brokers'])} brokers at {settings.bootstrap_servers}"


async def _topics() -> str:
    from weir.cli.topics import describe, wanted

    found = await describe(KafkaSettings.load(), wanted(TopicSettings.load()))
    missing = [topic.name for topic in found if not topic.exists]
    if missing:
        raise MissingPart(f"no {', '.join(missing)}. Make it with `weir topics create`.")
    return ", ".join(f"{topic.name} ({len(topic.partitions)})" for topic in found)


async def _triton() -> str:
    from services.risk.scoring import ServedModel
    from services.risk.settings import RiskSettings
    from weir.inference.client import ModelClient

    risk, settings = RiskSettings.load(), TritonSettings.load()
    pinned = ServedModel.deciding(risk.model_repository, risk.model, risk.model_version).ref.version
    async with ModelClient(
        settings, risk.model, pinned, outputs=("logit",), rows_max=1, deadline_s=_ANSWER_S
    ) as model:
        found = await model.metadata()
    return f"{found.name} {pinned} ready at {settings.endpoint} (serves {', '.join(found.versions)})"


async def _keys() -> str:
    from weir.crypto.client import KeyServiceClient

    settings = KeyServiceSettings.load()
    client = KeyServiceClient(settings)
    try:
        count = len(await client.list_keys(_ANSWER_S))
    except AccessDenied:
        return f"answers at {settings.endpoint}, and knows this role (which may not list keys)"
    finally:
        await client.close()
    return f"{count} data keys at {settings.endpoint}"


async def _ledger() -> str:
    port = getattr(_service_settings("ledger", "LedgerSettings").load(), "metrics_port", 0)
    missing = await asyncio.to_thread(healthy, port)
    if missing is not None:
        raise Note(f"{missing}. See `weir logs ledger`, or [ledger] metrics_port.")
    return f"ready, its metrics on port {port}"
