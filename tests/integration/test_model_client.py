"""The model client against a real Triton: scores, splits, a server killed, frozen, or behind mutual TLS."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from prometheus_client import CollectorRegistry

from infra.local.pki import ensure_pki
from infra.local.triton import TritonServer, TritonTls
from tests.support.servers import running_server
from weir.config import TritonSettings
from weir.inference import Breaker, Circuit, ModelClient, ModelRejected, ModelUnavailable
from weir.obs.metrics import Metrics

F, ROWS_MAX = 26, 1024
OUTPUTS = ("logit", "probability", "contributions")
BASE_LOGIT = -3.0
WEIGHTS = np.random.default_rng(5).normal(size=F).astype(np.float32)
CONFIG = """
backend: "onnxruntime"
max_batch_size: 1024
input [{ name: "features" data_type: TYPE_FP32 dims: [26] }]
output [
  { name: "logit" data_type: TYPE_FP32 dims: [1] },
  { name: "probability" data_type: TYPE_FP32 dims: [1] },
  { name: "contributions" data_type: TYPE_FP32 dims: [26] }
]
dynamic_batching {}
"""


def additive_model() -> bytes:
    """An ONNX graph with the risk model's tensors; contributions = tanh(features) * WEIGHTS."""
    shape: dict[str, list[str | int]] = {
        "logit": ["n", 1],
        "probability": ["n", 1],
        "contributions": ["n", F],
    }
    graph = helper.make_graph(
        [
            helper.make_node("Tanh", ["features"], ["bounded"]),
            helper.make_node("Mul", ["bounded", "weights"], ["contributions"]),
            helper.make_node("ReduceSum", ["contributions", "axes"], ["sum"], keepdims=1),
            helper.make_node("Add", ["sum", "base"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
        ],
        "risk",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", F])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[name]) for name in OUTPUTS],
        [
            numpy_helper.from_array(WEIGHTS, "weights"),
            numpy_helper.from_array(np.array([1], np.int64), "axes"),
            numpy_helper.from_array(np.array([BASE_LOGIT], np.float32), "base"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model.SerializeToString()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    version = folder / "risk" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(additive_model())
    (folder / "risk" / "config.pbtxt").write_text(CONFIG, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton-client")
    with running_server(TritonServer(repository, folder / "triton.log", staged=folder / "staged")) as running:
        yield running


def client(server: TritonServer, version: str = "1", **options) -> ModelClient:
    options = {"outputs": OUTPUTS, "rows_max": ROWS_MAX, "deadline_s": 10.0} | options
    return ModelClient(TritonSettings(endpoint=server.endpoint), "risk", version, **options)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, F)).astype(np.float32)


async def within(deadline_s: float, condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110 - another process changes it, no event of ours
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("count", [1, 1000, 1024, 1025, 5000])
async def test_scores_are_the_models_and_add_up(server, count):
    x = rows(count)
    async with client(server) as triton:
        scores = await triton.score(x)
    np.testing.assert_allclose(scores["contributions"], np.tanh(x) * WEIGHTS, atol=1e-5)
    total = BASE_LOGIT + scores["contributions"].sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(scores["logit"][:, 0], total, atol=1e-4)
    np.testing.assert_allclose(scores["probability"], 1 / (1 + np.exp(-scores["logit"])), atol=1e-5)


async def test_triton_says_that_the_model_fits(server):
    async with client(server) as triton:
        assert await triton.ready()
        assert (await triton.check(F)).versions == ("1",)
        with pytest.raises(ModelRejected, match="features are FP32"):
            await triton.check(F + 1)


@pytest.mark.parametrize(
    ("version", "width", "options", "says"),
    [
        ("7", F, {}, "version"),
        ("1", F - 1, {}, "shape"),
        ("1", F, {"outputs": ("logit", "anomaly")}, "anomaly"),
        ("1", F, {"input_name": "x"}, "x"),
        ("1", F, {"rows_max": 4096}, "batch-size"),
    ],
)
async def test_what_does_not_fit_is_rejected_with_tritons_word(server, version, width, options, says):
    async with client(server, version, **options) as triton:
        with pytest.raises(ModelRejected, match=says) as caught:
            await triton.score(np.zeros((2000, width), np.float32))
    assert not caught.value.retriable
    assert "\n" not in str(caught.value)


async def test_a_frozen_triton_is_unavailable_at_the_deadline_and_fine_when_it_thaws(server):
    x = rows(2000)
    async with client(server, deadline_s=0.3) as triton:
        await triton.score(x)
        os.killpg(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(ModelUnavailable) as caught:
                await triton.score(x)
        finally:
            os.killpg(server.pid, signal.SIGCONT)
        await within(30, triton.ready)
    async with client(server) as triton:
        assert len((await triton.score(x))["logit"]) == 2000
    assert 0.25 <= caught.value.waited_s < 2.0


async def test_a_triton_killed_mid_batch_opens_the_circuit_and_its_return_closes_it(server):
    """Kill -9 once the first part of a batch of 600 is answered; start it again on the same port."""
    registry = CollectorRegistry()
    breaker = Breaker(failures_to_open=2, open_s=0.05, open_s_max=0.2)

    async def first_part_answered() -> bool:
        name = "weir_model_request_duration_seconds_count"
        return (registry.get_sample_value(name, {"model": "risk"}) or 0) > 0

    metrics = Metrics("risk", registry).model("risk")
    async with client(server, breaker=breaker, metrics=metrics) as triton:
        batch = asyncio.ensure_future(triton.score(rows(600 * ROWS_MAX)))
        await within(10, first_part_answered)
        assert not batch.done()
        server.kill()
        with pytest.raises(ModelUnavailable) as caught:
            await batch
        assert caught.value.waited_s < 10
        with pytest.raises(ModelUnavailable):
            await triton.score(rows(1))
        assert breaker.state is Circuit.OPEN
        assert not await triton.ready()

        server.start()
        await asyncio.to_thread(server.wait_ready, 60)

        async def scored() -> bool:
            try:
                return len((await triton.score(rows(10)))["logit"]) == 10
            except ModelUnavailable:
                return False

        await within(30, scored)
        assert breaker.state is Circuit.CLOSED


async def test_mutual_tls_lets_in_whom_the_server_knows_and_nobody_else(repository, tmp_path):
    pki = ensure_pki(tmp_path / "pki", ("risk-worker",))
    ours, theirs = pki.roles["risk-worker"], pki.keys_server
    tls = TritonTls(theirs.certificate, theirs.key, pki.ca)
    server = TritonServer(repository, tmp_path / "triton.log", staged=tmp_path / "staged", tls=tls)
    server.start()
    known = TritonSettings(
        endpoint=server.endpoint, tls=True, ssl_ca=pki.ca, ssl_certificate=ours.certificate, ssl_key=ours.key
    )
    options = {"outputs": OUTPUTS, "rows_max": ROWS_MAX, "deadline_s": 5.0}
    try:
        async with ModelClient(known, "risk", "1", **options) as triton:
            await within(60, triton.ready)
            assert len((await triton.score(rows(50)))["logit"]) == 50
        unknown = known.model_copy(update={"ssl_certificate": None, "ssl_key": None})
        in_the_clear = TritonSettings(endpoint=server.endpoint)
        for settings in (unknown, in_the_clear):
            async with ModelClient(settings, "risk", "1", **options) as triton:
                with pytest.raises(ModelUnavailable):
                    await triton.score(rows(1))
    finally:
        server.stop()
