"""Scores of a batch from Triton, in time or not at all.

One gRPC call for a batch, split to the model's maximum with the parts in parallel; one deadline over all of
it, retries within a budget, a circuit breaker in front. The channel is grpc.aio and the messages are
tritonclient's; the tensors bypass protobuf (`_wire.py`).
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from weir.config import TritonSettings
from weir.grpc_words import cause as in_words
from weir.inference._breaker import Breaker, Circuit
from weir.inference._channel import credentials, open_channel
from weir.inference._retry import Deadline, RetryBudget, backoff_s
from weir.inference._wire import Malformed, RequestWriter, read_response
from weir.inference.errors import CircuitOpen, ModelRejected, ModelUnavailable
from weir.obs.log import get_logger
from weir.obs.metrics import ModelMetrics

_log = get_logger(__name__)

_INFER = "/inference.GRPCInferenceService/ModelInfer"
_ATTEMPTS_MAX = 3
_HEALTH_DEADLINE_S = 2.0

# The server's word that this request, sent again, fares no better. Everything else counts as "no answer".
_REJECTIONS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the server declares it; -1 in `shape` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What the server says of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ModelClient:
    """Asks one version of one model, within one event loop. Close it, or use it as a context."""

    def __init__(
        self,
        settings: TritonSettings,
        model: str,
        version: str,
        *,
        outputs: Sequence[str],
        rows_max: int,
        deadline_s: float,
        row_multiple: int = 1,
        input_name: str = "features",
        retry_budget: RetryBudget | None = None,
        breaker: Breaker | None = None,
        metrics: ModelMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is sent yet.

        Args:
            settings: where Triton is, and the certificates.
            model, version: what is asked; an answer of another version is refused.
            outputs: the tensors to ask for, each (n, ...).
            rows_max: the model's largest batch; a larger one is split evenly.
            deadline_s: for one `score` with all its parts and retries.
            row_multiple: every call has a multiple of so many rows, filled up with zeros that nobody sees;
                `rows_max` must be one too. Vectorised loops treat a batch's odd last rows differently.
            input_name: the model's one input, FP32 (n, F).
            retry_budget, breaker: with their defaults when None.
            metrics: none are kept when None.
            clock: seconds, monotonic.
            jitter: 0 to 1, spreads retries.

        Raises:
            ConfigError, MissingPart: the certificates' settings or files.
        """
        if rows_max < 1 or deadline_s <= 0 or not outputs:
            raise ValueError("rows_max, deadline_s and outputs must not be empty")
        if row_multiple < 1 or rows_max % row_multiple:
            raise ValueError(f"rows_max must be a multiple of row_multiple, and {rows_max} is not one")
        self.model, self.version, self.endpoint = model, version, settings.endpoint
        self._outputs, self._rows_max, self._deadline_s = tuple(outputs), rows_max, deadline_s
        self._row_multiple = row_multiple
        self._writer = RequestWriter(model, version, input_name, outputs)
        self._input_name = input_name
        self._budget = retry_budget if retry_budget is not None else RetryBudget()
        self._breaker = breaker if breaker is not None else Breaker()
        self._metrics, self._clock, self._jitter = metrics, clock, jitter
        self._credentials = credentials(settings)
        self._tails: dict[str, tuple[int, ...]] = dict.fromkeys(self._outputs, (1,))
        self._channel: grpc.aio.Channel | None = None
        self._infer: Any = None

    async def score(self, features: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """The model's outputs for each row, by name; all rows or none.

        Args:
            features: (n, F) float32. No rows: empty outputs, and no call.
        Returns:
            read-only arrays (n, ...), finite.
        Raises:
            ModelUnavailable: no answer before the deadline; CircuitOpen: not asked, at once.
            ModelRejected: the server's or our refusal: another version, name, shape or type, or not a number.
            ValueError: not (n, F).
        """
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f"features must be (n, F), not {features.shape}")
        if not len(features):
            return {name: np.empty((0, *tail), np.float32) for name, tail in self._tails.items()}
        if not self._breaker.admit(self._clock()):
            if self._metrics:
                self._metrics.failed("circuit_open")
            raise CircuitOpen(self.model, self.endpoint)
        settled = False
        try:
            scores = await self._score_parts(np.ascontiguousarray(features, np.float32))
            settled = True
            self._answered()
        except ModelRejected:
            # It answered: the circuit is fine, the request or the model is not.
            settled = True
            self._answered()
            if self._metrics:
                self._metrics.failed("rejected")
            raise
        except ModelUnavailable as error:
            settled = True
            self._unanswered(error)
            raise
        finally:
            if not settled:
                self._breaker.abandoned(self._clock())
        return scores

    async def ready(self) -> bool:
        """Whether the server answers and says that this version is ready."""
        request = pb.ModelReadyRequest(name=self.model, version=self.version)
        try:
            answer = await self._stub().ModelReady(request, timeout=_HEALTH_DEADLINE_S)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.ready)

    async def metadata(self) -> ModelMetadata:
        """What the server declares of this version.

        Raises:
            ModelUnavailable, ModelRejected: no answer; no such model or version.
        """
        deadline = Deadline(_HEALTH_DEADLINE_S, self._clock)
        request = pb.ModelMetadataRequest(name=self.model, version=self.version)
        try:
            answer = await self._stub().ModelMetadata(request, timeout=_HEALTH_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise self._error(error, deadline) from error
        return ModelMetadata(
            answer.name,
            tuple(answer.versions),
            answer.platform,
            tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in answer.inputs),
            tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in answer.outputs),
        )

    async def check(self, feature_count: int) -> ModelMetadata:
        """The metadata, when the model takes our features and gives our outputs; for the start.

        Raises:
            ModelUnavailable: no answer.
            ModelRejected: no such version, or other names, types or sizes than ours; says which.
        """
        found = await self.metadata()
        inputs = {spec.name: spec for spec in found.inputs}
        ours = inputs.get(self._input_name)
        if ours is None or len(inputs) != 1:
            raise self._rejected(f"its inputs are {sorted(inputs)}, not [{self._input_name!r}]")
        if ours.datatype != "FP32" or len(ours.shape) != 2 or ours.shape[1] not in (-1, feature_count):
            raise self._rejected(
                f"its input is {ours.datatype} {list(ours.shape)}, features are FP32 [-1, {feature_count}]"
            )
        missing = sorted(set(self._outputs) - {spec.name for spec in found.outputs})
        if missing:
            raise self._rejected(f"it has no output {', '.join(missing)}")
        return found

    async def close(self) -> None:
        """Drops the connection; calls under way end as unavailable."""
        if self._channel is not None:
            channel, self._channel, self._infer = self._channel, None, None
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _score_parts(self, features: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        deadline = Deadline(self._deadline_s, self._clock)
        if len(features) <= self._rows_max:
            return await self._score_part(features, deadline)
        part_count = -(-len(features) // self._rows_max)
        # Even parts: four of 1,025 rows keep the server's threads busier than one full and one tiny.
        parts = np.array_split(features, part_count)
        tasks = [asyncio.ensure_future(self._score_part(part, deadline)) for part in parts]
        try:
            scored = await asyncio.gather(*tasks)
        finally:
            # One part's failure fails the batch; what the others still cost is saved.
            for task in tasks:
                task.cancel()
        return {name: np.concatenate([part[name] for part in scored]) for name in self._outputs}

    async def _score_part(self, features: NDArray[np.float32], deadline: Deadline) -> dict[str, NDArray[Any]]:
        row_count = len(features)
        if odd := row_count % self._row_multiple:
            # Not np.pad: for a few rows its checks cost many times the copy.
            filled = np.zeros((row_count + self._row_multiple - odd, features.shape[1]), np.float32)
            filled[:row_count] = features
            features = filled
        request = self._writer.write(features)
        attempt_index = 0
        while True:
            left_s = deadline.left_s()
            if left_s <= 0:
                raise ModelUnavailable(self.model, self.endpoint, deadline.waited_s(), "deadline")
            begun_s = self._clock()
            try:
                answer = await self._call()(request, timeout=left_s)
            except grpc.aio.AioRpcError as error:
                failure = self._error(error, deadline)
                if isinstance(failure, ModelRejected) or not self._may_retry(attempt_index, error):
                    raise failure from error
                wait_s = backoff_s(attempt_index, self._jitter)
                if wait_s >= deadline.left_s():
                    raise failure from error
                attempt_index += 1
                await asyncio.sleep(wait_s)
                continue
            self._budget.answered()
            if self._metrics:
                self._metrics.answered(self._clock() - begun_s)
            return {name: rows[:row_count] for name, rows in self._checked(answer, len(features)).items()}

    def _may_retry(self, attempt_index: int, error: grpc.aio.AioRpcError) -> bool:
        """After a deadline nothing is left to retry in; else as long as attempts and budget last."""
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or attempt_index + 1 >= _ATTEMPTS_MAX:
            return False
        granted = self._budget.take()
        if granted and self._metrics:
            self._metrics.retried()
        return granted

    def _checked(self, answer: bytes, row_count: int) -> dict[str, NDArray[Any]]:
        try:
            version, tensors = read_response(answer)
        except Malformed as error:
            raise self._rejected(f"the answer cannot be read: {error}") from error
        if version != self.version:
            raise self._rejected(f"version {version} answered, but {self.version} is pinned")
        scores = {}
        for name in self._outputs:
            tensor = tensors.get(name)
            if tensor is None:
                raise self._rejected(f"the answer has no output {name}")
            if not tensor.ndim or len(tensor) != row_count:
                raise self._rejected(f"output {name} has shape {list(tensor.shape)} for {row_count} rows")
            if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
                raise self._rejected(f"output {name} holds values that are not finite")
            self._tails[name] = tensor.shape[1:]
            scores[name] = tensor
        return scores

    def _answered(self) -> None:
        before = self._breaker.state
        self._breaker.succeeded()
        if before is not Circuit.CLOSED:
            _log.info("model_circuit_closed", model=self.model, endpoint=self.endpoint)
            self._show_circuit()

    def _unanswered(self, error: ModelUnavailable) -> None:
        before = self._breaker.state
        self._breaker.failed(self._clock())
        if self._metrics:
            self._metrics.failed("unavailable")
        if before is Circuit.CLOSED and self._breaker.state is Circuit.OPEN:
            _log.warning("model_circuit_opened", model=self.model, endpoint=self.endpoint, cause=error.cause)
        self._show_circuit()

    def _show_circuit(self) -> None:
        if self._metrics:
            self._metrics.circuit(int(self._breaker.state))

    def _error(self, error: grpc.aio.AioRpcError, deadline: Deadline) -> ModelRejected | ModelUnavailable:
        cause = f"{error.code().name.lower()}: {in_words(error.details())}"
        if error.code() in _REJECTIONS:
            return self._rejected(cause)
        return ModelUnavailable(self.model, self.endpoint, deadline.waited_s(), cause)

    def _rejected(self, text: str) -> ModelRejected:
        return ModelRejected(
            self.model, self.endpoint, f"{text}. Check the model's version and `weir models verify`."
        )

    def _call(self) -> Any:
        if self._infer is None:
            self._infer = self._open_channel().unary_unary(_INFER)
        return self._infer

    def _stub(self) -> Any:
        return service_pb2_grpc.GRPCInferenceServiceStub(self._open_channel())

    def _open_channel(self) -> grpc.aio.Channel:
        # Not in the constructor: a grpc.aio channel binds to the event loop that runs when it is made.
        if self._channel is None:
            self._channel = open_channel(self.endpoint, self._credentials)
        return self._channel
