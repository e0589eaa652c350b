"""Text from a language model on Triton, piece by piece as it is made.

The tensors are those of Triton's vLLM backend, which the embedded model takes too. Each answer is a stream of
its own: who closes it leaves at once, and the model gives the place to another within a step.
"""

import asyncio
import json
import time
import uuid
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
from weir.inference._answer_stream import AnswerStream
from weir.inference._channel import credentials, open_channel
from weir.inference.errors import ModelRejected, ModelUnavailable

_LENGTH_BYTES = 4
# The input by which `infra/triton/python_llm` is asked to end the answer to the request of the same id.
_CANCEL = "cancel"
_CLOSED = "the client was closed"
# For the answers that are under way when the client is closed.
_CLOSE_WITHIN_S = 5.0


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
        self._is_closed = False
        self._open: set[AnswerStream] = set()
        # Streams whose readers have gone, until they are over.
        self._ending: set[asyncio.Task[None]] = set()
        # Whether the model can be asked to stop. A no is asked again: the next version may know how.
        self._can_be_left = False

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
        if self._is_closed:
            raise self._unavailable(began_s, _CLOSED)
        request_id = uuid.uuid4().hex
        stream = AnswerStream(
            self._stub().ModelStreamInfer(),
            self._asking(request_id, prompt, tokens_max, stop),
            _leaving(self.model, request_id),
            self._knows_leaving,
        )
        self._open.add(stream)
        ended, deadline_s = False, self._first_deadline_s
        try:
            while True:
                async with asyncio.timeout(deadline_s):
                    answer = await stream.read()
                if self._is_closed:
                    raise self._unavailable(began_s, _CLOSED)
                if answer is None:
                    ended = True
                    raise self._unavailable(began_s, "the server ended the stream")
                # An error is the last of its answer too.
                ended = bool(answer.error_message)
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
            self._end(stream, is_over=ended)

    def _end(self, stream: AnswerStream, *, is_over: bool) -> None:
        """Beside whoever has read it, who waits for nothing; once for each."""
        if stream not in self._open:
            return
        self._open.remove(stream)
        ending = asyncio.create_task(stream.end(is_over=is_over))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Disconnect for good; answers under way break off, once the model has been told.

        A model that does not take it within 5 s gets the calls cancelled.
        """
        self._is_closed = True
        for stream in tuple(self._open):
            self._end(stream, is_over=False)
        if self._ending:
            _, late = await asyncio.wait(self._ending, timeout=_CLOSE_WITHIN_S)
            for ending in late:
                ending.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _knows_leaving(self) -> bool:
        """Whether the model has the input by which it is asked to stop.

        Raises:
            grpc.aio.AioRpcError: no answer.
        """
        if not self._can_be_left:
            about = await self._stub().ModelMetadata(pb.ModelMetadataRequest(name=self.model))
            self._can_be_left = any(each.name == _CANCEL for each in about.inputs)
        return self._can_be_left

    def _asking(self, request_id: str, prompt: str, tokens_max: int, stop: Sequence[str]) -> Any:
        sampling: dict[str, Any] = {"max_tokens": tokens_max, "temperature": self._sampling.temperature}
        if self._sampling.temperature:
            sampling["top_p"] = self._sampling.top_p
            if self._sampling.seed is not None:
                sampling["seed"] = self._sampling.seed
        if stop:
            sampling["stop"] = list(stop)
        request = pb.ModelInferRequest(model_name=self.model, id=request_id)
        # Without it a server that has sent its last piece already does not say that it was the last.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        _add(request, "text_input", "BYTES", _sized(prompt.encode()))
        _add(request, "stream", "BOOL", b"\x01")
        _add(request, "sampling_parameters", "BYTES", _sized(json.dumps(sampling).encode()))
        _add(request, "exclude_input_in_output", "BOOL", b"\x01")
        return request

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
            if self._is_closed:
                raise self._unavailable(self._clock(), _CLOSED)
            self._channel = open_channel(self.endpoint, self._credentials)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


def _leaving(model: str, request_id: str) -> Any:
    """Asks the model to end the answer to the request of that id."""
    request = pb.ModelInferRequest(model_name=model, id=request_id)
    _add(request, "text_input", "BYTES", _sized(b""))
    _add(request, _CANCEL, "BOOL", b"\x01")
    return request


def _add(request: Any, name: str, datatype: str, raw: bytes) -> None:
    tensor = request.inputs.add(name=name, datatype=datatype)
    tensor.shape.append(1)
    request.raw_input_contents.append(raw)


def _sized(raw: bytes) -> bytes:
    """A text element of a BYTES tensor: its length, then itself."""
    return len(raw).to_bytes(_LENGTH_BYTES, "little") + raw


def _unsized(raw: bytes) -> bytes:
    return bytes(raw[_LENGTH_BYTES:])
