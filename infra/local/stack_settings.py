"""What the embedded stack can be told, where it keeps its things, and the ports it takes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from infra.local import layout
from infra.local.ports import PortTaken, free_ports, is_free
from weir.config import EMBEDDED_CONFIG, Port, WeirSettings, config_path, read_config

# How a settings file begins that a stack wrote.
WRITTEN = "# Written by `weir up`"
_CHOSEN = "0 keeps the last one, or chooses a free one"


class StackSettings(WeirSettings):
    """[stack] or WEIR_STACK_*: the embedded stack."""

    section: ClassVar[str] = "stack"

    home: Path = Field(layout.HOME, description="run state, logs, data, certificates and keys")
    models: Path = Field(layout.MODEL_SOURCES, description="the model repository that Triton and risk use")
    risk_workers: int = Field(1, ge=1, le=64, description="processes that share the partitions")
    chat: bool = Field(True, description="a worker that answers customers, with the starter knowledge")
    kafka_heap_mb: int = Field(384, ge=128, le=65_536, description="memory of the broker")
    kafka_long_run: bool = Field(False, description="a slower start for less CPU later")
    disk_free_mb_min: int = Field(500, ge=0, description="below this nothing is started")
    kafka_port: Port = Field(0, description=_CHOSEN)
    kafka_controller_port: Port = Field(0, description=_CHOSEN)
    triton_port: Port = Field(0, description="gRPC; " + _CHOSEN)
    triton_metrics_port: Port = Field(0, description=_CHOSEN)
    keys_port: Port = Field(0, description="gRPC; " + _CHOSEN)
    keys_metrics_port: Port = Field(0, description=_CHOSEN)
    ledger_metrics_port: Port = Field(0, description=_CHOSEN)
    chat_metrics_port: Port = Field(0, description=_CHOSEN)
    chat_stream_port: Port = Field(0, description="answers as they are written; " + _CHOSEN)
    chat_grpc_port: Port = Field(0, description="the same by gRPC; " + _CHOSEN)
    risk_metrics_port: Port = Field(0, description="of the first worker; the next ones are always chosen")

    @property
    def paths(self) -> "StackPaths":
        """Where everything of this stack lies."""
        return StackPaths(self.home.resolve())

    def wanted_ports(self) -> dict[str, int]:
        """Each port's name with its given number or 0, in the order of the parts."""
        named = {
            name.removesuffix("_port").replace("_", "-"): getattr(self, name)
            for name in type(self).model_fields
            if name.endswith("_port")
        }
        risk = named.pop("risk-metrics")
        return named | {
            f"{worker}-metrics": risk if index == 0 else 0 for index, worker in enumerate(self.workers())
        }

    def workers(self) -> Iterator[str]:
        """The names of the risk workers."""
        yield from (f"risk-{number}" for number in range(1, self.risk_workers + 1))


@dataclass(frozen=True, slots=True)
class StackPaths:
    """The folders and files below `home`."""

    home: Path

    @property
    def run(self) -> Path:
        """State, lock, ports and the settings that the stack writes."""
        return self.home / "run"

    @property
    def config(self) -> Path:
        """The settings by which every process and the command line reach this stack."""
        return self.run / EMBEDDED_CONFIG.name

    @property
    def prometheus(self) -> Path:
        """The scrape configuration with this stack's real ports."""
        return self.run / "prometheus.yml"

    @property
    def logs(self) -> Path:
        """One file a part."""
        return self.home / "logs"

    @property
    def knowledge(self) -> Path:
        """What chat answers from, where the person names no folder."""
        return self.home / "knowledge"

    @property
    def data(self) -> Path:
        """Kafka's log, the ledger, wrapped data keys, workers' folders."""
        return self.home / "data"

    @property
    def pki(self) -> Path:
        """The certificate authority of this stack, and a certificate a role."""
        return self.home / "pki"

    @property
    def keystore(self) -> Path:
        """Key-encryption keys."""
        return self.home / "keystore"

    @property
    def state_folders(self) -> tuple[Path, ...]:
        """What `weir down --wipe` removes; what was installed stays."""
        return self.data, self.keystore, self.pki, self.run, self.logs


def users_config() -> dict[str, Any]:
    """The tables of the person's own settings file; those that a stack wrote do not count.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = config_path()
    tables = read_config(path)
    return {} if path is None or path.read_text(encoding="utf-8").startswith(WRITTEN) else tables


def choose_ports(wanted: Mapping[str, int], kept_file: Path) -> dict[str, int]:
    """A port for each name: the given one, else the one of the last run if it is free, else a free one.

    The choice is written to `kept_file` for the next run.

    Raises:
        PortTaken: a given port is not free.
    """
    kept = _read_kept(kept_file)
    chosen: dict[str, int] = {}
    for name, given in wanted.items():
        if given:
            if not is_free(given):
                raise PortTaken(given, name)
            chosen[name] = given
    for name in wanted:
        last = kept.get(name, 0)
        if name not in chosen and last and last not in chosen.values() and is_free(last):
            chosen[name] = last
    missing = [name for name in wanted if name not in chosen]
    # More than needed, because a free one may be a given one that is not yet listened on.
    fresh = [port for port in free_ports(len(missing) + len(chosen)) if port not in chosen.values()]
    chosen |= dict(zip(missing, fresh, strict=False))
    kept_file.parent.mkdir(parents=True, exist_ok=True)
    kept_file.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    return {name: chosen[name] for name in wanted}


def _read_kept(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(port, int) for port in found.values()) else {}


def to_toml(tables: Mapping[str, Any]) -> str:
    """TOML of nested tables with strings, paths, numbers, booleans and lists; None is left out."""
    return "\n".join(_lines(tables, ())) + "\n"


def _lines(table: Mapping[str, Any], name: tuple[str, ...]) -> Iterator[str]:
    plain = {
        key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None
    }
    if name and (plain or not table):
        yield f"\n[{'.'.join(map(_key, name))}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*name, key))


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    # A JSON string is a TOML string, but for DEL, which no setting holds.
    return json.dumps(str(value), ensure_ascii=False)
