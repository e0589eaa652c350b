"""The embedded stack for one bench: its own folder and ports, a filled topic, workers that come and go."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from infra.local.state import read_state
from weir.cli.topics import wanted
from weir.config import TopicSettings

ROOT = Path(__file__).resolve().parents[1]
STOP_DEADLINE_S = 20.0
READY_DEADLINE_S = 90.0
PARTS = ("kafka", "topics", "keys", "triton")


class WorkerFailed(SystemExit):
    """A worker ended or did not become ready; its log's end is the text."""

    def __init__(self, name: str, log: Path) -> None:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        super().__init__(f"{name} failed:\n{tail}")


def run(*arguments: str, env: Mapping[str, str]) -> None:
    """One command of the project's own, its output kept for the case that it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], env=env, capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


@dataclass(frozen=True)
class Stage:
    """A running stack; `env` is what its processes and commands get."""

    home: Path
    env: Mapping[str, str]
    config: Mapping[str, Any]
    topics: TopicSettings

    @property
    def servers(self) -> str:
        """host:port of the broker."""
        return str(self.config["kafka"]["bootstrap_servers"])

    def simulate(self, *options: str) -> None:
        """`weir simulate` with these options, to its end."""
        run("weir", "simulate", *options, env=self.env)

    @property
    def model_pids(self) -> list[int]:
        """Triton's process and those that it started: what a decision costs beside the worker."""
        state = read_state(self.home / "run")
        found = [part.process for part in state.parts if part.name == "triton"] if state else []
        return [
            each.pid
            for ref in found
            if ref is not None and psutil.pid_exists(ref.pid)
            for each in (psutil.Process(ref.pid), *psutil.Process(ref.pid).children(recursive=True))
        ]

    def reset(self) -> None:
        """Every topic that Weir writes, empty again; the bank's own stay as they are."""
        self.delete_topics(set(wanted(self.topics)) - {self.topics.transactions, self.topics.labels})
        run("weir", "topics", "create", env=self.env)
        asyncio.run(self._wait_for(wanted(self.topics)))

    def delete_topics(self, names: Collection[str] = (), *, prefix: str | None = None) -> None:
        """Those topics, and every topic whose name begins with `prefix`; all that they held is gone."""
        asyncio.run(self._delete(names, prefix))

    async def _delete(self, names: Collection[str], prefix: str | None) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            known = await admin.list_topics()
            doomed = [name for name in known if name in names or (prefix and name.startswith(prefix))]
            if doomed:
                await admin.delete_topics(sorted(doomed))
        finally:
            await admin.close()

    async def _wait_for(self, names: Collection[str]) -> None:
        """Until every partition has a leader, of which a client may hear later than of the topic."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            ends = time.monotonic() + READY_DEADLINE_S
            while time.monotonic() < ends:
                found = await admin.describe_topics(list(names))
                parts = [part for topic in found for part in topic["partitions"]]
                if all(topic["partitions"] for topic in found) and all(p["leader"] >= 0 for p in parts):
                    return
                await asyncio.sleep(0.05)
        finally:
            await admin.close()
        raise SystemExit(f"no leader for {', '.join(names)} after {READY_DEADLINE_S:.0f} s")

    def make_topics(self, names: Sequence[str], partitions: int) -> None:
        """New topics of one replica."""
        asyncio.run(self._make_topics(names, partitions))

    async def _make_topics(self, names: Sequence[str], partitions: int) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, partitions, 1) for name in names])
        finally:
            await admin.close()

    @contextmanager
    def process(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> Iterator["Process"]:
        """A worker in the background; it is gone when the block ends."""
        log = self.home / f"{name}.log"
        with log.open("ab") as out:
            popen = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=ROOT)
        worker = Process(name, popen, log)
        try:
            yield worker
        finally:
            popen.terminate()
            try:
                popen.wait(STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()


@dataclass(frozen=True)
class Process:
    """A worker that runs."""

    name: str
    popen: "subprocess.Popen[bytes]"
    log: Path

    @property
    def pid(self) -> int:
        """Of the process itself; the workers have no children."""
        return self.popen.pid

    def check(self) -> None:
        """Nothing while it runs.

        Raises:
            WorkerFailed: it has ended.
        """
        if self.popen.poll() is not None:
            raise WorkerFailed(self.name, self.log)

    def wait_ready(self, port: int) -> None:
        """Until /healthz says so.

        Raises:
            WorkerFailed: it ended first, or took too long.
        """
        ends = time.monotonic() + READY_DEADLINE_S
        while time.monotonic() < ends:
            self.check()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.05)
        raise WorkerFailed(self.name, self.log)


@contextmanager
def stage(*, partitions: int = 4, parts: Sequence[str] = PARTS, keep: bool = False) -> Iterator[Stage]:
    """A stack of its own for the block; its folder is removed afterwards unless `keep`."""
    home = Path(tempfile.mkdtemp(prefix="weir-bench-"))
    foreign = [name for name in os.environ if name.startswith("WEIR_") and not name.startswith("WEIR_STACK_")]
    env = {name: value for name, value in os.environ.items() if name not in foreign}
    env |= {
        "WEIR_STACK_HOME": str(home),
        "WEIR_TOPICS_PARTITIONS": str(partitions),
        # A bank's broker has run for months: what it still has to compile is not what is measured.
        "WEIR_STACK_KAFKA_LONG_RUN": "true",
    }
    try:
        run("weir", "up", *parts, env=env)
        try:
            path = home / "run" / "weir.toml"
            config = tomllib.loads(path.read_text(encoding="utf-8"))
            topics = TopicSettings(**{**config.get("topics", {}), "partitions": partitions})
            yield Stage(home, {**env, "WEIR_CONFIG": str(path)}, config, topics)
        finally:
            run("weir", "down", env=env)
    finally:
        if keep:
            print(f"logs: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
