"""The launchers of the embedded stack: each server is real, starts, serves and says clearly why it cannot."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from onnx import TensorProto, helper
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from infra.local import java, layout, triton
from infra.local.kafka import KafkaServer, brokers_known
from infra.local.mariadb import MariaDbServer
from infra.local.ports import LOOPBACK, PortTaken, free_port, is_free
from infra.local.server import LocalServer, ServerFailed
from infra.local.triton import TritonServer
from tests.support.servers import KafkaUnderTest, running_server
from weir.errors import ConfigError, MissingPart

ADDS_ITSELF = """
backend: "onnxruntime"
max_batch_size: 64
input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [3] }]
dynamic_batching { max_queue_delay_microseconds: 100 }
instance_group [{ kind: KIND_GPU count: 1 gpus: [0] }]
optimization { execution_accelerators { gpu_execution_accelerator: [{ name: "tensorrt" }] } }
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository as the stock GPU image takes it: one ONNX model, y = x + x."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "adds_itself",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    folder = tmp_path / "repository" / "adds_itself"
    (folder / "1").mkdir(parents=True)
    onnx.save(model, folder / "1" / "model.onnx")
    (folder / "config.pbtxt").write_text(ADDS_ITSELF)
    return folder.parent


async def test_the_broker_gives_back_what_was_produced(kafka: KafkaUnderTest) -> None:
    topic = kafka.make_topic("launchers", partitions=1)
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for number in range(100):
            await producer.send(topic, b"%d" % number, partition=0)
        await producer.flush()
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest", group_id=None
    )
    async with consumer, asyncio.timeout(30):
        seen = [(await consumer.getone()).value for _ in range(100)]
    assert seen == [b"%d" % number for number in range(100)]


@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "snappy", "zstd"])
def test_the_broker_takes_every_compression(kafka: KafkaUnderTest, compression: str) -> None:
    """A batch with more than one record: the broker must read into it to number them."""
    from confluent_kafka import Producer

    topic = kafka.make_topic("compressed", partitions=1)
    failed: list[object] = []
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "compression.type": compression,
            "linger.ms": 50,
            "message.timeout.ms": 20_000,
        }
    )
    for number in range(100):
        producer.produce(
            topic, b"%d " % number * 20, on_delivery=lambda error, _: failed.append(error) if error else None
        )
    assert producer.flush(30) == 0
    assert failed == []


def test_the_broker_keeps_its_log_through_kill_and_another_port(tmp_path: Path) -> None:
    """Kill -9, then start over the same folder on new ports: the topic is still there."""
    first = KafkaServer(tmp_path / "data", tmp_path / "first.log")
    first.start()
    first.wait_ready()
    topic = KafkaUnderTest(first).make_topic("kept", partitions=2)
    first.kill()
    with running_server(KafkaServer(tmp_path / "data", tmp_path / "second.log")) as second:
        from confluent_kafka.admin import AdminClient

        found = AdminClient({"bootstrap.servers": second.bootstrap_servers}).list_topics(timeout=30)
        assert len(found.topics[topic].partitions) == 2


def test_servers_listen_on_the_loopback_interface_alone(
    kafka: KafkaUnderTest, repository: Path, tmp_path: Path
) -> None:
    import psutil

    server = TritonServer(repository, tmp_path / "triton.log", staged=tmp_path / "staged")
    with running_server(server):
        for pid in (kafka.server.pid, server.pid):
            listening = [
                connection.laddr.ip
                for connection in psutil.Process(pid).net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            ]
            assert listening
            assert {ip.removeprefix("::ffff:") for ip in listening} == {LOOPBACK}


async def test_a_model_of_the_stock_image_is_served_on_a_cpu(repository: Path, tmp_path: Path) -> None:
    """Its configuration names GPUs and TensorRT; the answer comes from ONNX Runtime, batched."""
    from tritonclient.grpc.aio import InferenceServerClient, InferInput

    server = TritonServer(repository, tmp_path / "triton.log", staged=tmp_path / "staged")
    with running_server(server):
        client = InferenceServerClient(server.endpoint)

        async def ask(row: float, count: int) -> np.ndarray:
            request = InferInput("x", [count, 3], "FP32")
            request.set_data_from_numpy(np.full((count, 3), row, np.float32))
            return (await client.infer("adds_itself", [request])).as_numpy("y")

        answers = await asyncio.gather(*(ask(float(row), 1 + row % 5) for row in range(64)))
        config = await client.get_model_config("adds_itself")
        await client.close()
    for row, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, np.full((1 + row % 5, 3), 2.0 * row, np.float32))
    assert config.config.max_batch_size == 64
    assert config.config.HasField("dynamic_batching")


def test_stopping_triton_leaves_no_stub_behind(repository: Path, tmp_path: Path) -> None:
    import psutil

    server = TritonServer(repository, tmp_path / "triton.log", staged=tmp_path / "staged")
    with running_server(server):
        children = psutil.Process(server.pid).children(recursive=True)
        assert children
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]


def test_a_backend_that_needs_a_gpu_is_refused_by_name(repository: Path, tmp_path: Path) -> None:
    (repository / "adds_itself" / "config.pbtxt").write_text('backend: "vllm"')
    with pytest.raises(ConfigError, match=r"adds_itself/config.pbtxt: backend 'vllm' does not run"):
        triton.stage(repository, target=tmp_path / "staged")


def test_a_broken_model_configuration_is_named_and_the_staged_models_stay(
    repository: Path, tmp_path: Path
) -> None:
    triton.stage(repository, target=tmp_path / "staged")
    (repository / "adds_itself" / "config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(ConfigError, match=r"adds_itself/config.pbtxt: .*Correct the model"):
        triton.stage(repository, target=tmp_path / "staged")
    assert (tmp_path / "staged" / "adds_itself" / "1" / "model.py").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".staged")] == []


async def test_mariadb_answers_with_its_version(mariadb: str) -> None:
    engine = create_async_engine(mariadb)
    async with engine.connect() as connection:
        version = (await connection.execute(text("SELECT VERSION()"))).scalar_one()
    await engine.dispose()
    assert "MariaDB" in version


def _launchers(port: int, tmp_path: Path) -> list[LocalServer]:
    log = tmp_path / "log"
    return [
        KafkaServer(tmp_path / "kafka", log, port=port),
        KafkaServer(tmp_path / "kafka", log, controller_port=port),
        TritonServer(layout.MODEL_SOURCES, log, staged=tmp_path / "staged", grpc_port=port),
        TritonServer(layout.MODEL_SOURCES, log, staged=tmp_path / "staged", metrics_port=port),
        MariaDbServer(tmp_path / "mariadb", log, port=port),
    ]


@pytest.mark.parametrize("which", range(5))
def test_a_taken_port_is_one_clear_line(which: int, tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        server = _launchers(port, tmp_path)[which]
        with pytest.raises(PortTaken) as refused:
            server.start()
    assert str(port) in str(refused.value)
    assert server.name in str(refused.value)
    assert "\n" not in str(refused.value)
    assert server.pid is None


def test_no_java_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java, "_BUNDLED", tmp_path / "java")
    with pytest.raises(java.NoJava, match=r"Kafka needs Java 17 or newer.*make setup") as refused:
        KafkaServer(tmp_path / "data", tmp_path / "log").start()
    assert "\n" not in str(refused.value)


def test_a_java_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_412\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(java, "_BUNDLED", tmp_path / "none")
    with pytest.raises(java.NoJava, match=r"found: .*java is version 8"):
        java.find_java()


def test_missing_jars_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(MissingPart, match="Run `make setup`"):
        KafkaServer(tmp_path / "data", tmp_path / "log", lib=tmp_path).start()


class _Fails(LocalServer):
    name = "fails"

    def prepare(self) -> None:
        pass

    def command(self) -> list[str]:
        return [sys.executable, "-c", "import sys; print('fatal: no disk'); sys.exit(7)"]

    def probe(self) -> str | None:
        return "not there"


def test_a_server_that_ends_while_starting_says_its_last_error(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match=r"fails ended with status 7 .*fatal: no disk") as failed:
        _Fails(tmp_path / "log").__enter__()
    assert "fatal: no disk" in failed.value.log


def test_servers_die_with_a_killed_parent(tmp_path: Path) -> None:
    """As when pytest gets kill -9: the kernel ends the broker."""
    import subprocess

    script = (
        "import pathlib, sys\n"
        "from infra.local.kafka import KafkaServer\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "server = KafkaServer(folder / 'data', folder / 'log')\n"
        "server.start(); server.wait_ready(90); print(server.pid, server.port, flush=True); input()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    _pid, port = map(int, parent.stdout.readline().split())
    assert len(brokers_known(port)) == 1
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 30
    while not is_free(port):
        assert time.monotonic() < deadline, "the broker outlived its parent"
        os.sched_yield()


def test_free_ports_are_free() -> None:
    assert is_free(free_port())
