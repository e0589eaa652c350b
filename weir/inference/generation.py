"""Text from a language model on Triton, piece by piece as it is made.

The tensors are those of Triton's vLLM backend, which the embedded model takes too. Each answer is a stream of
its own: closing it cancels the request, and the server gives the place to another.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from weir.config import TritonSettings
from weir.grpc_words import cause as in_words
from weir.inference._channel import credentials, open_channel
from weir.inference.errors import ModelRejected, ModelUnavailable

_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; at temperature 0 always the likeliest: the same prompt gives the same text."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    finish_reason: with the last piece, as the server says it: stop, length, loop; empty before, and of a
        server that does not say.
    """

    text: str
    finish_reason: str = ""


class Generation:
    """Asks one model, within one event loop. Close it, or use it as a context.

    Args:
        first_deadline_s: until the first piece, queue and prompt included.
        next_deadline_s: from one piece to the next.
        clock: seconds, monotonic.

    Raises:
        ConfigError, MissingPart: the certificates' settings or files.
    """

    def __init__(
        self,
        settings: TritonSettings,
        model: str,
        *,
        sampling: Sampling | None = None,
        first_deadline_s: float = 30.0,
        next_deadline_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model, self.endpoint = model, settings.endpoint
        self._sampling = sampling if sampling is not None else Sampling()
        self._first_deadline_s, self._next_deadline_s = first_deadline_s, next_deadline_s
        self._clock = clock
        self._credentials = credentials(settings)
        self._channel: grpc.aio.Channel | None = None

    async def __call__(
        self, prompt: str, *, tokens_max: int, stop: Sequence[str] = ()
    ) -> AsyncGenerator[str, None]:
        """The answer's text, piece by piece.

        Raises:
            ModelUnavailable: no answer, or it broke off. ModelRejected: the server refuses this prompt.
        """
        async with aclosing(self.pieces(prompt, tokens_max=tokens_max, stop=stop)) as pieces:
            async for piece in pieces:
                if piece.text:
                    yield piece.text

    async def pieces(
        self, prompt: str, *, tokens_max: int, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Piece, None]:
        """As a call, with the reason for the end.

        Raises:
            ModelUnavailable: no answer, or it broke off. ModelRejected: the server refuses this prompt.
        """
        began_s = self._clock()
        call = self._stub().ModelStreamInfer()
        try:
            await self._ask(call, prompt, tokens_max, stop)
            deadline_s = self._first_deadline_s
            while True:
                async with asyncio.timeout(deadline_s):
                    answer = await call.read()
                if answer is grpc.aio.EOF:
                    raise self._unavailable(began_s, "the server ended the stream")
                piece, ended = self._piece(answer, began_s)
                if piece.text or piece.finish_reason:
                    yield piece
                if ended:
                    return
                deadline_s = self._next_deadline_s
        except TimeoutError:
            raise self._unavailable(began_s, "deadline exceeded") from None
        except grpc.aio.AioRpcError as error:
            cause = f"{error.code().name.lower()}: {in_words(error.details())}"
            raise self._unavailable(began_s, cause) from error
        finally:
            # Whether it is over or the reader has left: the server frees the place.
            call.cancel()

    async def close(self) -> None:
        """Disconnect; answers under way break off."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, call: Any, prompt: str, tokens_max: int, stop: Sequence[str]) -> None:
        sampling: dict[str, Any] = {"max_tokens": tokens_max, "temperature": self._sampling.temperature}
        if self._sampling.temperature:
            sampling["top_p"] = self._sampling.top_p
            if self._sampling.seed is not None:
                sampling["seed"] = self._sampling.seed
        if stop:
            sampling["stop"] = list(stop)
        request = pb.ModelInferRequest(model_name=self.model)
        # Without it a server that has sent its last piece already does not say that it was the last.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        _add(request, "text_input", "BYTES", _sized(prompt.encode()))
        _add(request, "stream", "BOOL", b"\x01")
        _add(request, "sampling_parameters", "BYTES", _sized(json.dumps(sampling).encode()))
        _add(request, "exclude_input_in_output", "BOOL", b"\x01")
        await call.write(request)
        await call.done_writing()

    def _piece(self, answer: Any, began_s: float) -> tuple[Piece, bool]:
        """What an answer of the server holds, and whether it is the last."""
        if answer.error_message:
            text = str(answer.error_message).splitlines()[0][:200]
            if text.startswith("refused") or "not found" in text or "unknown model" in text:
                raise ModelRejected(self.model, self.endpoint, f"{text}. Check the model and its limits.")
            raise self._unavailable(began_s, text)
        response = answer.infer_response
        ended = response.parameters["triton_final_response"].bool_param
        found = {
            output.name: _unsized(raw)
            for output, raw in zip(response.outputs, response.raw_output_contents, strict=False)
        }
        text = found.get("text_output", b"").decode("utf-8", errors="replace")
        return Piece(text, found.get("finish_reason", b"").decode("utf-8", errors="replace")), ended

    def _unavailable(self, began_s: float, cause: str) -> ModelUnavailable:
        return ModelUnavailable(self.model, self.endpoint, self._clock() - began_s, cause)

    def _stub(self) -> Any:
        # Not in the constructor: a grpc.aio channel binds to the event loop that runs when it is made.
        if self._channel is None:
            self._channel = open_channel(self.endpoint, self._credentials)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


def _add(request: Any, name: str, datatype: str, raw: bytes) -> None:
    tensor = request.inputs.add(name=name, datatype=datatype)
    tensor.shape.append(1)
    request.raw_input_contents.append(raw)


def _sized(raw: bytes) -> bytes:
    """A text element of a BYTES tensor: its length, then itself."""
    return len(raw).to_bytes(_LENGTH_BYTES, "little") + raw


def _unsized(raw: bytes) -> bytes:
    return bytes(raw[_LENGTH_BYTES:])
