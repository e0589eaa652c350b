"""Who leaves an answer cancels no call that its server can end, and is kept by none that it cannot."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from weir.config import TritonSettings
from weir.inference import _answer_stream
from weir.inference._answer_stream import AnswerStream
from weir.inference.errors import ModelUnavailable
from weir.inference.generation import Generation

ANSWER = SimpleNamespace(error_message="")


class Call:
    """A server's side of one stream: `answers` to the first request, then what leaving brings."""

    def __init__(
        self, answers=(ANSWER,), *, ends: bool = True, on_leaving=None, breaks: bool = False
    ) -> None:
        self.to_come = asyncio.Queue()
        for answer in answers:
            self.to_come.put_nowait(answer)
        self.ends, self.breaks = ends, breaks
        self.written, self.is_cancelled, self.is_over = [], False, False

    async def write(self, request) -> None:
        if self.breaks:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())
        self.written.append(request)

    async def read(self):
        answer = await self.to_come.get()
        self.is_over = self.is_over or answer is grpc.aio.EOF
        return answer

    async def done_writing(self) -> None:
        self.written.append("done")
        if self.ends:
            self.to_come.put_nowait(grpc.aio.EOF)

    def cancel(self) -> None:
        self.is_cancelled = self.is_cancelled or not self.is_over


def stream_of(call: Call, *, knows: bool = True) -> AnswerStream:
    async def knows_leaving() -> bool:
        return knows

    return AnswerStream(call, "ask", "leave", knows_leaving)


async def test_who_leaves_asks_the_model_to_stop_and_lets_the_server_end_the_call():
    call = Call()
    stream = stream_of(call)
    assert await stream.read() is ANSWER
    await stream.end(is_over=False)
    assert call.written == ["ask", "leave", "done"]
    assert not call.is_cancelled


async def test_an_answer_that_is_over_is_not_asked_to_stop():
    call = Call()
    stream = stream_of(call)
    await stream.read()
    await stream.end(is_over=True)
    assert call.written == ["ask", "done"]
    assert not call.is_cancelled


async def test_a_reader_who_is_torn_away_cancels_nothing():
    call = Call(answers=())
    stream = stream_of(call)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await stream.read()
    assert not call.is_cancelled
    await stream.end(is_over=False)
    assert not call.is_cancelled


async def test_a_model_that_does_not_know_how_to_stop_gets_the_call_cancelled_at_once():
    call = Call()
    stream = stream_of(call, knows=False)
    await stream.read()
    await stream.end(is_over=False)
    assert call.is_cancelled
    assert call.written == ["ask"]


async def test_a_server_that_hangs_gets_the_call_cancelled_after_the_deadline(monkeypatch):
    monkeypatch.setattr(_answer_stream, "_LEAVE_WITHIN_S", 0.05)
    call = Call(ends=False)
    stream = stream_of(call)
    await stream.read()
    await stream.end(is_over=False)
    assert call.is_cancelled


async def test_a_stream_that_breaks_is_told_to_its_reader_and_ends():
    stream = stream_of(Call(breaks=True))
    with pytest.raises(grpc.aio.AioRpcError):
        await stream.read()
    await stream.end(is_over=False)


async def test_the_server_that_ends_a_stream_early_is_told_so():
    call = Call(answers=(grpc.aio.EOF,))
    stream = stream_of(call)
    assert await stream.read() is None
    await stream.end(is_over=True)
    assert not call.is_cancelled


async def test_closing_waits_until_those_who_left_are_out(monkeypatch):
    busy = SimpleNamespace(error_message="busy: 1 requests wait already")
    calls = [Call(answers=(busy,)) for _ in range(3)]
    stub = SimpleNamespace(ModelStreamInfer=iter(calls).__next__)
    generation = Generation(TritonSettings(endpoint="127.0.0.1:1"), "llm")
    monkeypatch.setattr(generation, "_stub", lambda: stub)
    for _ in calls:
        with pytest.raises(ModelUnavailable, match="wait already"):
            await anext(generation.pieces("hello", tokens_max=3))
    await generation.close()
    assert all(call.is_over and not call.is_cancelled for call in calls)
