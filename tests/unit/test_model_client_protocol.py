"""The model client against an in-process server that speaks Triton's gRPC and can be told to misbehave."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2 as pb

from weir.config import TritonSettings
from weir.errors import ConfigError, MissingPart
from weir.inference import (
    Breaker,
    Circuit,
    CircuitOpen,
    ModelClient,
    ModelRejected,
    ModelUnavailable,
    RetryBudget,
)
from weir.obs.metrics import Metrics

F = 26
OUTPUTS = ("logit", "probability", "contributions")


class FakeTriton:
    """Answers like a linear model of weights 1/F; `fault` may answer or abort in its place."""

    def __init__(self) -> None:
        self.row_counts: list[int] = []
        self.versions: list[str] = []
        self.answer_version = "1"
        self.fault: Callable[[pb.ModelInferRequest, grpc.aio.ServicerContext], Awaitable[None]] | None = None
        self.inputs = [("features", "FP32", [-1, F])]

    async def infer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        rows, width = request.inputs[0].shape
        self.row_counts.append(rows)
        self.versions.append(request.model_version)
        if self.fault:
            await self.fault(request, context)
        x = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(rows, width)
        contributions = x / width
        logit = contributions.sum(axis=1, keepdims=True)
        tensors = {"logit": logit, "probability": 1 / (1 + np.exp(-logit)), "contributions": contributions}
        response = pb.ModelInferResponse(model_name=request.model_name, model_version=self.answer_version)
        for output in request.outputs:
            array = tensors[output.name].astype(np.float32)
            response.outputs.add(name=output.name, datatype="FP32", shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    async def ready(self, request: pb.ModelReadyRequest, _context: object) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=request.version == "1")

    async def metadata(
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        if request.name != "risk":
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}'")
        response = pb.ModelMetadataResponse(name="risk", versions=["1"], platform="python")
        for name, datatype, shape in self.inputs:
            response.inputs.add(name=name, datatype=datatype, shape=shape)
        for name in OUTPUTS:
            response.outputs.add(name=name, datatype="FP32", shape=[-1, 1])
        return response

    @asynccontextmanager
    async def serve(self, port: int = 0):
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            "ModelInfer": (self.infer, pb.ModelInferRequest, pb.ModelInferResponse),
            "ModelReady": (self.ready, pb.ModelReadyRequest, pb.ModelReadyResponse),
            "ModelMetadata": (self.metadata, pb.ModelMetadataRequest, pb.ModelMetadataResponse),
        }
        server.add_generic_rpc_handlers(
            [
                grpc.method_handlers_generic_handler(
                    "inference.GRPCInferenceService",
                    {
                        name: grpc.unary_unary_rpc_method_handler(
                            method, request.FromString, answer.SerializeToString
                        )
                        for name, (method, request, answer) in handlers.items()
                    },
                )
            ]
        )
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield bound
        finally:
            await server.stop(None)


def client(port: int, **options) -> ModelClient:
    options = {"outputs": OUTPUTS, "rows_max": 1024, "deadline_s": 2.0, "jitter": lambda: 0.5} | options
    settings = TritonSettings(endpoint=f"127.0.0.1:{port}")
    return ModelClient(settings, options.pop("model", "risk"), "1", **options)


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, F)).astype(np.float32)


def expect_scores(scores: dict[str, np.ndarray], x: np.ndarray) -> None:
    assert {name: array.shape for name, array in scores.items()} == {
        "logit": (len(x), 1),
        "probability": (len(x), 1),
        "contributions": (len(x), F),
    }
    np.testing.assert_allclose(scores["contributions"], x / F, rtol=1e-6)
    np.testing.assert_allclose(scores["contributions"].sum(axis=1), scores["logit"][:, 0], atol=1e-5)


async def test_a_batch_is_scored_in_one_call():
    triton, x = FakeTriton(), rows(1024)
    async with triton.serve() as port, client(port) as model:
        expect_scores(await model.score(x), x)
    assert (triton.row_counts, triton.versions) == ([1024], ["1"])


@pytest.mark.parametrize("count", [1025, 2048, 4096, 5000])
async def test_a_larger_batch_is_split_evenly_and_keeps_its_order(count):
    triton, x = FakeTriton(), rows(count)
    async with triton.serve() as port, client(port) as model:
        expect_scores(await model.score(x), x)
    assert sum(triton.row_counts) == count
    assert len(triton.row_counts) == -(-count // 1024)
    assert max(triton.row_counts) - min(triton.row_counts) <= 1


async def test_other_memory_layouts_give_the_same_scores():
    triton, x = FakeTriton(), rows(64)
    async with triton.serve() as port, client(port) as model:
        expect_scores(await model.score(np.asfortranarray(x)), x)
        expect_scores(await model.score(x[::2]), x[::2])


async def test_no_rows_need_no_call():
    triton = FakeTriton()
    async with triton.serve() as port, client(port) as model:
        await model.score(rows(3))
        scores = await model.score(rows(0))
    assert triton.row_counts == [3]
    assert scores["contributions"].shape == (0, F)


async def test_features_that_are_not_a_table_are_refused():
    async with client(1) as model:
        for wrong in (np.zeros(5, np.float32), np.zeros((5, 0), np.float32)):
            with pytest.raises(ValueError, match="features must be"):
                await model.score(wrong)


async def test_a_passing_failure_is_retried_within_the_same_deadline():
    triton, x = FakeTriton(), rows(8)

    async def once(_request, context):
        if len(triton.row_counts) == 1:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "model is being loaded")

    triton.fault = once
    registry = CollectorRegistry()
    async with triton.serve() as port, client(port, metrics=Metrics("risk", registry).model("risk")) as model:
        expect_scores(await model.score(x), x)
    assert len(triton.row_counts) == 2
    assert registry.get_sample_value("weir_model_retries_total", {"model": "risk"}) == 1
    assert registry.get_sample_value("weir_model_request_duration_seconds_count", {"model": "risk"}) == 1


async def test_retries_stop_when_the_budget_is_spent():
    triton = FakeTriton()

    async def always(_request, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "overloaded")

    triton.fault = always
    options = {"retry_budget": RetryBudget(tokens_max=3, refill=0), "breaker": Breaker(failures_to_open=100)}
    async with triton.serve() as port, client(port, **options) as model:
        for _ in range(20):
            with pytest.raises(ModelUnavailable, match="overloaded"):
                await model.score(rows(1))
    assert len(triton.row_counts) == 20 + 3


async def test_silence_ends_at_the_deadline():
    triton = FakeTriton()
    stuck = asyncio.Event()

    async def hang(_request, _context):
        await stuck.wait()

    triton.fault = hang
    async with triton.serve() as port, client(port, deadline_s=0.1) as model:
        with pytest.raises(ModelUnavailable) as caught:
            await model.score(rows(3000))
        stuck.set()
    assert 0.09 <= caught.value.waited_s < 0.6
    assert caught.value.retriable
    assert caught.value.degraded_reason == "model_unavailable"
    assert "\n" not in str(caught.value)


async def test_nobody_listening_is_unavailable_at_once():
    async with client(1, deadline_s=5.0) as model:
        with pytest.raises(ModelUnavailable) as caught:
            await model.score(rows(1))
        assert not await model.ready()
    assert caught.value.waited_s < 4.0


async def test_a_refusal_is_not_retried_and_does_not_open_the_circuit():
    triton = FakeTriton()

    async def refuse(_request, context):
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'features'\nmore")

    triton.fault = refuse
    breaker = Breaker(failures_to_open=1)
    async with triton.serve() as port, client(port, breaker=breaker) as model:
        with pytest.raises(ModelRejected, match="unexpected shape for input 'features'") as caught:
            await model.score(rows(2))
    assert not caught.value.retriable
    assert len(triton.row_counts) == 1
    assert breaker.state is Circuit.CLOSED


async def test_an_answer_of_another_version_is_refused():
    triton = FakeTriton()
    triton.answer_version = "2"
    async with triton.serve() as port, client(port) as model:
        with pytest.raises(ModelRejected, match="version 2 answered, but 1 is pinned"):
            await model.score(rows(2))


async def test_scores_that_are_not_numbers_are_refused():
    async with FakeTriton().serve() as port, client(port) as model:
        x = rows(4)
        x[2, 5] = np.nan
        with pytest.raises(ModelRejected, match="not finite"):
            await model.score(x)


async def test_the_circuit_opens_and_then_closes_when_the_server_is_back():
    now_s = [100.0]
    registry = CollectorRegistry()
    options = {
        "breaker": Breaker(failures_to_open=2, open_s=1.0),
        "clock": lambda: now_s[0],
        "metrics": Metrics("risk", registry).model("risk"),
        "retry_budget": RetryBudget(tokens_max=0),
    }
    triton, x = FakeTriton(), rows(8)

    async def away(_request, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

    def circuit() -> float | None:
        return registry.get_sample_value("weir_model_circuit_state", {"model": "risk"})

    async with triton.serve() as port, client(port, **options) as model:
        triton.fault = away
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="away"):
                await model.score(x)
        assert circuit() == 2
        with pytest.raises(CircuitOpen, match="circuit open"):
            await model.score(x)
        assert len(triton.row_counts) == 2
        triton.fault = None
        now_s[0] += 1.0
        expect_scores(await model.score(x), x)
        assert circuit() == 0
    errors = {
        kind: registry.get_sample_value("weir_model_errors_total", {"model": "risk", "kind": kind})
        for kind in ("unavailable", "circuit_open")
    }
    assert errors == {"unavailable": 2, "circuit_open": 1}


async def test_a_caller_that_gives_up_does_not_block_the_probe():
    now_s = [0.0]
    breaker = Breaker(failures_to_open=1, open_s=1.0)
    breaker.failed(0.0)
    triton, entered, stuck = FakeTriton(), asyncio.Event(), asyncio.Event()

    async def hang(_request, _context):
        entered.set()
        await stuck.wait()

    triton.fault = hang
    async with triton.serve() as port, client(port, breaker=breaker, clock=lambda: now_s[0]) as model:
        now_s[0] = 1.0
        probe = asyncio.ensure_future(model.score(rows(1)))
        await asyncio.wait_for(entered.wait(), 5)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        triton.fault = None
        stuck.set()
        await model.score(rows(1))
    assert breaker.state is Circuit.CLOSED


async def test_the_start_check_says_what_does_not_fit():
    triton = FakeTriton()
    async with triton.serve() as port, client(port) as model:
        assert await model.ready()
        assert (await model.check(F)).outputs[0].name == "logit"
        with pytest.raises(ModelRejected, match=r"is FP32 \[-1, 26\], features are FP32 \[-1, 25\]"):
            await model.check(25)
        triton.inputs = [("x", "FP32", [-1, F])]
        with pytest.raises(ModelRejected, match="its inputs are"):
            await model.check(F)
        async with client(port, outputs=("logit", "anomaly")) as other:
            triton.inputs = [("features", "FP32", [-1, F])]
            with pytest.raises(ModelRejected, match="no output anomaly"):
                await other.check(F)
        async with client(port, model="nobody") as other:
            with pytest.raises(ModelRejected, match="unknown model"):
                await other.check(F)


def test_certificates_are_checked_before_anything_is_sent(tmp_path):
    for error, settings in (
        (ConfigError, TritonSettings(ssl_ca=tmp_path / "ca.pem")),
        (ConfigError, TritonSettings(tls=True, ssl_certificate=tmp_path / "c.pem")),
        (MissingPart, TritonSettings(tls=True, ssl_ca=tmp_path / "absent.pem")),
    ):
        with pytest.raises(error, match=r"\[triton\]"):
            ModelClient(settings, "risk", "1", outputs=OUTPUTS, rows_max=1, deadline_s=1)
