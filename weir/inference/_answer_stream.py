"""One answer's stream to Triton: whoever reads it may leave at any moment, and the call ends by itself.

Triton 2.51.0 can die of a stream that its client cancels while an answer is being sent (its issue 8034). So
nothing here cancels a call that the server can end: leaving asks the model to stop, by a second request of
the same stream, and a task of its own reads on until the stream is over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

# A model looks between two steps whether its reader has left; a step may be the part of a long prompt.
_LEAVE_WITHIN_S = 30.0


class AnswerStream:
    """Sends `request`, and gives back what the server answers.

    Args:
        call: a `ModelStreamInfer` that has just been opened.
        leaving: the request that asks the model to stop. knows_leaving: whether this model takes it.
    """

    def __init__(
        self, call: Any, request: Any, leaving: Any, knows_leaving: Callable[[], Awaitable[bool]]
    ) -> None:
        self._call, self._request, self._leaving = call, request, leaving
        self._knows_leaving = knows_leaving
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._asked = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def read(self) -> Any:
        """The next answer; None once the stream has ended, be it by the server or by `end`.

        Raises:
            grpc.aio.AioRpcError: the stream broke.
        """
        answer = await self._answers.get()
        if isinstance(answer, grpc.aio.AioRpcError):
            raise answer
        return answer

    async def end(self, *, is_over: bool) -> None:
        """Return once the call is over: the model is asked to stop unless its answer `is_over`.

        A model that knows no such request, or is too long at a step, gets the call cancelled.
        """
        try:
            async with asyncio.timeout(_LEAVE_WITHIN_S):
                await self._asked.wait()
                if not is_over:
                    if not await self._knows_leaving():
                        return
                    await self._call.write(self._leaving)
                await self._call.done_writing()
                await asyncio.wait({self._reading})
        except (TimeoutError, grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
            pass  # it is over, or hangs
        finally:
            # Of a call that is over it does nothing.
            self._call.cancel()
            self._reading.cancel()

    async def _read(self) -> None:
        ending: grpc.aio.AioRpcError | None = None
        try:
            try:
                await self._call.write(self._request)
            finally:
                self._asked.set()
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                self._answers.put_nowait(answer)
        except grpc.aio.AioRpcError as error:
            ending = error
        except (grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError):
            pass  # the call or its channel was closed from here
        finally:
            # Whatever has ended it, a reader must not wait for what cannot come.
            self._answers.put_nowait(ending)
