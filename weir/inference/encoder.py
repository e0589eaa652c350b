"""Vectors of texts from a sentence encoder on Triton.

Texts that are asked for while a request is on its way go into the next one together: many conversations cost
few calls. The model takes `input_ids` and `attention_mask`, INT64 (n, l), and gives `embedding`, FP32 (n, d),
of length 1; the words are cut into tokens here, by the tokenizer that belongs to the model.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from weir.config import TritonSettings
from weir.errors import MissingPart
from weir.grpc_words import cause as in_words
from weir.inference._channel import credentials, open_channel
from weir.inference.errors import ModelRejected, ModelUnavailable

_OUTPUT = "embedding"
_LENGTH_TOLERANCE = 1e-2
_REJECTIONS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)

Floats = NDArray[np.float32]


class TritonEncoder:
    """Asks one encoder, within one event loop. Close it, or use it as a context.

    Args:
        tokenizer: the model's tokenizer.json.
        tokens_max: of a text; what follows is not read.
        rows_max: texts of one call, at most.
        deadline_s: for one call.
        clock: seconds, monotonic.

    Raises:
        MissingPart: no tokenizer there. ConfigError, MissingPart: the certificates' settings or files.
    """

    def __init__(
        self,
        settings: TritonSettings,
        model: str,
        tokenizer: Path,
        *,
        tokens_max: int = 128,
        rows_max: int = 32,
        deadline_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not tokenizer.is_file():
            raise MissingPart(f"No tokenizer at {tokenizer}. Correct the path, or run `make setup`.")
        self.model, self.endpoint = model, settings.endpoint
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(tokens_max)
        self._tokenizer.enable_padding()
        self._rows_max, self._deadline_s, self._clock = rows_max, deadline_s, clock
        self._credentials = credentials(settings)
        self._channel: grpc.aio.Channel | None = None
        self._waiting: deque[tuple[str, asyncio.Future[Floats]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def __call__(self, texts: Sequence[str]) -> Floats:
        """(n, d) float32, each of length 1.

        Raises:
            ModelUnavailable: no answer in time. ModelRejected: the server's refusal, or an answer that is no
                vectors.
        """
        if not texts:
            return np.empty((0, 0), np.float32)
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in texts]
        self._waiting.extend(zip(texts, futures, strict=True))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send_all())
        return np.stack(await asyncio.gather(*futures))

    async def close(self) -> None:
        """Disconnect; calls under way break off."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send_all(self) -> None:
        while self._waiting:
            count = min(len(self._waiting), self._rows_max)
            taken = [self._waiting.popleft() for _ in range(count)]
            # Whoever has left while waiting costs nothing.
            taken = [(text, future) for text, future in taken if not future.done()]
            if not taken:
                continue
            try:
                vectors = await self._encoded([text for text, _ in taken])
            except (ModelUnavailable, ModelRejected) as error:
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            except asyncio.CancelledError:
                for _, future in (*taken, *self._waiting):
                    future.cancel()
                raise
            for (_, future), vector in zip(taken, vectors, strict=True):
                if not future.done():
                    future.set_result(vector)

    async def _encoded(self, texts: list[str]) -> Floats:
        encoded = self._tokenizer.encode_batch(texts)
        ids = np.array([each.ids for each in encoded], np.int64)
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        request = pb.ModelInferRequest(model_name=self.model)
        for name, tensor in (("input_ids", ids), ("attention_mask", mask)):
            entry = request.inputs.add(name=name, datatype="INT64")
            entry.shape.extend(tensor.shape)
            request.raw_input_contents.append(tensor.tobytes())
        request.outputs.add(name=_OUTPUT)
        began_s = self._clock()
        try:
            answer = await self._stub().ModelInfer(request, timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            cause = f"{error.code().name.lower()}: {in_words(error.details())}"
            if error.code() in _REJECTIONS:
                raise ModelRejected(self.model, self.endpoint, f"{cause}. Check the model.") from error
            raise ModelUnavailable(self.model, self.endpoint, self._clock() - began_s, cause) from error
        return self._checked(answer, len(texts))

    def _checked(self, answer: Any, count: int) -> Floats:
        names = [output.name for output in answer.outputs]
        if names != [_OUTPUT] or answer.outputs[0].datatype != "FP32" or not answer.raw_output_contents:
            raise ModelRejected(self.model, self.endpoint, f"gives no FP32 {_OUTPUT}. Check the model.")
        shape = tuple(answer.outputs[0].shape)
        vectors = np.frombuffer(answer.raw_output_contents[0], np.float32)
        if len(shape) != 2 or shape[0] != count or vectors.size != shape[0] * shape[1]:
            raise ModelRejected(
                self.model, self.endpoint, f"gives {shape} for {count} texts. Check the model."
            )
        vectors = vectors.reshape(shape)
        # Not a number fails this too.
        if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < _LENGTH_TOLERANCE):
            raise ModelRejected(self.model, self.endpoint, "gives vectors that are not of length 1.")
        return vectors

    def _stub(self) -> Any:
        # Not in the constructor: a grpc.aio channel binds to the event loop that runs when it is made.
        if self._channel is None:
            self._channel = open_channel(self.endpoint, self._credentials)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
