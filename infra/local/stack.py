"""The embedded stack: which parts there are, in what order, with what settings. Run by `weir up`.

kafka -> topics -> ledger, risk, chat; keys and triton start beside kafka.
`python -m infra.local.stack` holds it.
"""

import asyncio
import http.client
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.local import layout
from infra.local.kafka import KafkaServer
from infra.local.pki import Identity, ensure_pki
from infra.local.ports import LOOPBACK
from infra.local.process import spawn
from infra.local.server import LocalServer
from infra.local.stack_settings import (
    WRITTEN,
    StackPaths,
    StackSettings,
    choose_ports,
    to_toml,
    users_config,
)
from infra.local.state import StackState, exclusive
from infra.local.supervisor import Process, Step, Supervisor, end_leftovers
from infra.local.triton import TritonServer
from weir.config import KafkaSettings, TopicSettings
from weir.errors import MissingPart, WeirError

# Settings that would lead a process of this stack to somewhere else.
_FOREIGN = ("WEIR_CONFIG", "WEIR_KAFKA_", "WEIR_TRITON_", "WEIR_KEYS_", "WEIR_REGISTRY_")
_DATABASE = ("url", "ssl_ca", "ssl_certificate", "ssl_key")
_HEALTH_TIMEOUT_S = 2.0
# A consumer gets partitions only once its group has given up on a killed member: a session's timeout later.
_JOIN_DEADLINE_S = 180.0
_DETAIL_CHARS_MAX = 200

# Whose certificate the command line shows when nothing else is said: reads decisions, looks into cases.
PERSON_ROLE = "analyst"


_TOKENIZER = layout.ENCODER_MODELS / "encoder" / "tokenizer.json"


class DiskFull(WeirError):
    """There is too little room for a broker's log."""


class Stack:
    """The parts of one embedded stack with its ports chosen and its files written.

    Raises:
        MissingPart: Java, the jars, Triton or the models are not there.
        PortTaken, DiskFull, ConfigError: say what to do.
    """

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.paths = settings.paths
        require_disk(self.paths.home, settings.disk_free_mb_min)
        for folder in (self.paths.run, self.paths.logs, self.paths.data):
            folder.mkdir(parents=True, exist_ok=True)
        self.ports = choose_ports(settings.wanted_ports(), self.paths.run / "ports.json")
        self.pki = ensure_pki(self.paths.pki)
        self.kafka = KafkaServer(
            self.paths.data / "kafka",
            self.paths.logs / "kafka.log",
            port=self.ports["kafka"],
            controller_port=self.ports["kafka-controller"],
            heap_mb=settings.kafka_heap_mb,
            long_run=settings.kafka_long_run,
        )
        self.triton = TritonServer(
            settings.models,
            self.paths.logs / "triton.log",
            also=language_models(settings),
            staged=self.paths.run / "models",
            grpc_port=self.ports["triton"],
            metrics_port=self.ports["triton-metrics"],
        )
        _write_private(self.paths.config, config_text(self.tables()))
        self.paths.prometheus.write_text(prometheus_text(self.ports), encoding="utf-8")

    def tables(self) -> dict[str, Any]:
        """The settings by which every part and the command line reach this stack, over the person's own."""
        mine = users_config()
        embedded: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": self.kafka.bootstrap_servers, "security_protocol": "PLAINTEXT"},
            "triton": {"endpoint": self.triton.endpoint},
            "keys": {
                "endpoint": f"{LOOPBACK}:{self.ports['keys']}",
                "tls": True,
                "ssl_ca": self.pki.ca,
                **_files(self.pki.roles[PERSON_ROLE]),
            },
            "keys_service": {
                "host": LOOPBACK,
                "port": self.ports["keys"],
                "ssl_ca": self.pki.ca,
                **_files(self.pki.keys_server),
                "keystore_dir": self.paths.keystore,
                "data_dir": self.paths.data / "keys",
                "metrics_host": LOOPBACK,
                "metrics_port": self.ports["keys-metrics"],
            },
            "ledger": {
                "url": f"sqlite+aiosqlite:///{self.paths.data / 'ledger.db'}",
                "metrics_host": LOOPBACK,
                "metrics_port": self.ports["ledger-metrics"],
            },
            "risk": {
                "model_repository": self.settings.models.resolve(),
                "metrics_host": LOOPBACK,
                "metrics_port": self.ports["risk-1-metrics"],
            },
            "chat": {
                "stream_host": LOOPBACK,
                "stream_port": self.ports["chat-stream"],
                "grpc_port": self.ports["chat-grpc"],
                "metrics_host": LOOPBACK,
                "metrics_port": self.ports["chat-metrics"],
                "data_dir": self.paths.data / "chat",
                **({"intent_model": "intent"} if _TOKENIZER.is_file() else {}),
            },
        }
        # What a person says about a broker or a server of theirs is not about this stack's.
        replaced = {"kafka", "triton", "keys", "registry", "stack"}
        tables = {name: table for name, table in mine.items() if name not in replaced}
        for name, table in embedded.items():
            given = tables.get(name, {})
            tables[name] = {**given, **table}
        # A ledger's database stays the person's: this stack can write into it.
        tables["ledger"] |= {
            name: value for name, value in mine.get("ledger", {}).items() if name in _DATABASE
        }
        tables["knowledge"] = {
            "folder": self.paths.knowledge,
            **({"encoder": layout.ENCODER, "encoder_tokenizer": _TOKENIZER} if _TOKENIZER.is_file() else {}),
            **mine.get("knowledge", {}),
        }
        tables["roles"] = {role: _files(identity) for role, identity in self.pki.roles.items()}
        return tables

    def parts(self, only: Sequence[str] = ()) -> list[Process | Step]:
        """All parts in their order; with `only` those and what they need.

        Raises:
            WeirError: no part has that name.
        """
        ports = self.ports
        everything: list[Process | Step] = [
            self._server(
                self.kafka, {"kafka": ports["kafka"], "controller": ports["kafka-controller"]}, 60.0
            ),
            Step(name="topics", run=self._make_topics, after=("kafka",)),
            self._service("keys", "keys", ports["keys-metrics"], ports={"grpc": ports["keys"]}),
            self._server(self.triton, {"grpc": ports["triton"], "metrics": ports["triton-metrics"]}, 60.0),
            self._service(
                "ledger",
                "ledger",
                ports["ledger-metrics"],
                after=("topics", "keys"),
                role=self.pki.roles["ledger"],
                start_deadline_s=_JOIN_DEADLINE_S,
            ),
            *(
                self._service(
                    worker,
                    "risk",
                    ports[f"{worker}-metrics"],
                    after=("topics", "keys", "triton"),
                    role=self.pki.roles["risk-worker"],
                    env={
                        "WEIR_RISK_METRICS_PORT": str(ports[f"{worker}-metrics"]),
                        "WEIR_RISK_DATA_DIR": str(self.paths.data / worker),
                    },
                    start_deadline_s=_JOIN_DEADLINE_S,
                    stop_grace_s=15.0,
                )
                for worker in self.settings.workers()
            ),
            *(self._chat() if self.settings.chat else ()),
        ]
        return _selected(everything, only)

    def supervisor(
        self, only: Sequence[str] = (), on_change: Callable[[StackState], None] | None = None
    ) -> Supervisor:
        """What brings the parts up and keeps them up."""
        return Supervisor(
            self.parts(only), run_dir=self.paths.run, log_dir=self.paths.logs, on_change=on_change
        )

    def _chat(self) -> list[Process | Step]:
        """The worker that answers customers, and what it answers from."""
        ports = self.ports
        return [
            Step(name="knowledge", run=self._take_in_knowledge),
            self._service(
                "chat",
                "chat",
                ports["chat-metrics"],
                after=("topics", "keys", "knowledge"),
                role=self.pki.roles["chat-worker"],
                ports={"stream": ports["chat-stream"], "grpc": ports["chat-grpc"]},
                start_deadline_s=_JOIN_DEADLINE_S,
                stop_grace_s=15.0,
            ),
        ]

    async def _take_in_knowledge(self) -> str:
        """The starter set, where nothing else is in use.

        Set-up has made it with vectors. Else a process of its own reads the documents: what it imports,
        threads of this one import as well.
        """
        from services.chat.knowledge.settings import KnowledgeSettings

        folder = layout.ROOT / KnowledgeSettings.load(self.paths.config).folder
        if (folder / "current").is_file() and not _is_old_starter(folder):
            return f"what is in use in {folder}"
        if layout.STARTER_KNOWLEDGE.is_dir():
            await asyncio.to_thread(_copy_starter, folder)
            return "starter set"
        command = [sys.executable, "-m", "weir", "knowledge", "import"]
        child = await spawn(command, service_env(self.paths, {}), layout.ROOT)
        said = (await child.output.read()).decode(errors="replace").strip()
        if await child.process.wait():
            raise WeirError(f"the starter knowledge: {said.splitlines()[-1] if said else 'no word of why'}")
        return said.splitlines()[-1]

    async def _make_topics(self) -> str:
        from weir.cli.topics import create_missing, wanted

        settings = KafkaSettings.load(
            self.paths.config, bootstrap_servers=self.kafka.bootstrap_servers, security_protocol="PLAINTEXT"
        )
        topics = TopicSettings.load(self.paths.config)
        made = await create_missing(settings, topics)
        return f"{len(wanted(topics))} topics, {len(made)} new"

    def _server(self, server: LocalServer, ports: Mapping[str, int], start_deadline_s: float) -> Process:
        return Process(
            name=server.name,
            prepare=lambda: asyncio.to_thread(server.prepare),
            command=server.command,
            env=server.env,
            probe=lambda: asyncio.to_thread(server.probe),
            ports=ports,
            stop_signal=server.stop_signal,
            start_deadline_s=start_deadline_s,
            stop_grace_s=20.0,
        )

    def _service(
        self,
        name: str,
        module: str,
        metrics_port: int,
        *,
        after: tuple[str, ...] = (),
        role: Identity | None = None,
        env: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
        start_deadline_s: float = 60.0,
        stop_grace_s: float = 10.0,
    ) -> Process:
        own = dict(env or {})
        if role:
            own |= {
                "WEIR_KEYS_SSL_CERTIFICATE": str(role.certificate),
                "WEIR_KEYS_SSL_KEY": str(role.key),
            }
        return Process(
            name=name,
            command=lambda: [sys.executable, "-m", f"services.{module}"],
            env=lambda: service_env(self.paths, own),
            probe=lambda: asyncio.to_thread(healthy, metrics_port),
            cwd=layout.ROOT,
            after=after,
            ports={**(ports or {}), "metrics": metrics_port},
            start_deadline_s=start_deadline_s,
            stop_grace_s=stop_grace_s,
        )


# Beside the versions: the name of the one that a start has put there.
_STARTER_MARK = "starter"


def _is_old_starter(folder: Path) -> bool:
    """Whether nothing but the starter set of an earlier set-up is there."""
    mark, fresh = folder / _STARTER_MARK, layout.STARTER_KNOWLEDGE / "current"
    if not (mark.is_file() and fresh.is_file()):
        return False
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return names == [mark.read_text(encoding="ascii")] != [fresh.read_text(encoding="ascii").strip()]


def _copy_starter(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(layout.STARTER_KNOWLEDGE, folder)
    name = (folder / "current").read_text(encoding="ascii").strip()
    (folder / _STARTER_MARK).write_text(name, encoding="ascii")


def language_models(settings: StackSettings) -> list[Path]:
    """The repositories of what set-up has converted, as far as this stack asks it."""
    if not settings.chat:
        return []
    wanted = [layout.ENCODER_MODELS]
    if _TOKENIZER.is_file():
        # It scores the encoder's vectors.
        wanted.append(layout.INTENT_MODELS)
    chat = users_config().get("chat", {})
    if os.environ.get("WEIR_CHAT_GENERATE", str(chat.get("generate", False))).lower() in ("1", "true", "yes"):
        wanted.append(layout.LLM_MODELS)
    return [repository for repository in wanted if repository.is_dir()]


def service_env(paths: StackPaths, own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process of this stack: nothing in it leads elsewhere."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**inherited, "WEIR_CONFIG": str(paths.config), "PYTHONUNBUFFERED": "1", **own}


def require_disk(folder: Path, free_mb_min: int) -> None:
    """Check that there is room.

    Raises:
        DiskFull: there is less than `free_mb_min`.
    """
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    free_mb = shutil.disk_usage(existing).free // 1_000_000
    if free_mb < free_mb_min:
        raise DiskFull(
            f"{folder}: only {free_mb} MB are free, the stack wants {free_mb_min}. "
            "Make room, or set [stack] home or disk_free_mb_min."
        )


def healthy(port: int) -> str | None:
    """None when `/healthz` on this port of the loopback interface says ready, else what is missing."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=_HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        body = answer.read(65_536)
    except (OSError, http.client.HTTPException):
        return f"no answer on port {port}"
    finally:
        connection.close()
    return None if answer.status == http.HTTPStatus.OK else _missing(body)


def _missing(body: bytes) -> str:
    try:
        told = json.loads(body)
    except ValueError:
        return "not ready"
    if not isinstance(told, dict):
        return "not ready"
    if isinstance(told.get("error"), str):
        return str(told["error"])[:_DETAIL_CHARS_MAX]
    shown = ", ".join(f"{name} {value}" for name, value in told.items() if name != "ready")
    return f"not ready: {shown}"[:_DETAIL_CHARS_MAX] if shown else "not ready"


def config_text(tables: Mapping[str, Any]) -> str:
    """The settings file of a stack."""
    return f"{WRITTEN}; it is written anew at each start.\n" + to_toml(tables)


def prometheus_text(ports: Mapping[str, int]) -> str:
    """The scrape configuration of infra/prometheus with the ports of this stack for those of its example.

    Raises:
        MissingPart: the file is not in the checkout.
    """
    source = layout.ROOT / "infra" / "prometheus" / "prometheus.yml"
    if not source.is_file():
        raise MissingPart(f"No {source}. The checkout is not whole.")
    jobs = {
        "weir-risk": [port for name, port in ports.items() if name.startswith("risk-")],
        "weir-ledger": [ports["ledger-metrics"]],
        "weir-keys": [ports["keys-metrics"]],
        "weir-chat": [ports["chat-metrics"]],
        "triton": [ports["triton-metrics"]],
    }
    lines, job = [], ""
    for line in source.read_text(encoding="utf-8").splitlines():
        word, _, value = line.strip().lstrip("- ").partition(":")
        job = value.strip() if word == "job_name" else job
        if word == "targets" and job in jobs:
            targets = ", ".join(f'"{LOOPBACK}:{port}"' for port in jobs[job])
            line = f"{line[: line.index('targets')]}targets: [{targets}]"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _files(identity: Identity) -> dict[str, Path]:
    return {"ssl_certificate": identity.certificate, "ssl_key": identity.key}


def _write_private(path: Path, text: str) -> None:
    # The person's own tables may hold a password, which then stands here too.
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def _selected(parts: Sequence[Process | Step], only: Sequence[str]) -> list[Process | Step]:
    by_name = {part.name: part for part in parts}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise WeirError(f"no part is named {unknown[0]!r}. There are {', '.join(by_name)}.")
    wanted, open_names = set(), list(only) or list(by_name)
    while open_names:
        name = open_names.pop()
        wanted.add(name)
        open_names += [each for each in by_name[name].after if each not in wanted]
    return [part for part in parts if part.name in wanted]


async def hold_up(
    settings: StackSettings,
    only: Sequence[str] = (),
    on_change: Callable[[StackState], None] | None = None,
) -> None:
    """Bring the stack up and keep it up until SIGTERM or SIGINT.

    Raises:
        AlreadyRunning, StartFailed, MissingPart, PortTaken, DiskFull: say what to do.
    """
    with exclusive(settings.paths.run):
        # Before the ports are chosen: what an ended stack has left running holds those of the last run.
        await asyncio.to_thread(end_leftovers, settings.paths.run)
        stack = await asyncio.to_thread(Stack, settings)
        supervisor = stack.supervisor(only, on_change)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, supervisor.stop)
        await supervisor.hold_up()


def main(only: Sequence[str]) -> int:
    """What `weir up` starts in the background; the last line of its output is its error."""
    try:
        asyncio.run(hold_up(StackSettings.load(), only))
    except WeirError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
