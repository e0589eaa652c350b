"""Who leaves an answer cancels no call that its server can end, and is kept by none that it cannot."""

import asyncio
from types import SimpleNamespace

import grpc
import pytest

from tests.support.pauses import until
from weir.config import TritonSettings
from weir.inference import _answer_stream
from weir.inference._answer_stream import AnswerStream
from weir.inference.errors import ModelUnavailable
from weir.inference.generation import Generation, Piece

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


class Closed(Call):
    """Its channel is closed while an answer is awaited: gRPC cancels the read."""

    async def read(self):
        raise asyncio.CancelledError


async def test_a_stream_that_is_cancelled_from_here_ends_for_its_reader():
    stream = stream_of(Closed())
    assert await stream.read() is None
    await stream.end(is_over=True)


def serving(*calls: Call, knows: bool = True) -> SimpleNamespace:
    """The server's stub: a call for each answer, and what the model takes."""

    async def about(request):
        asked.append(request.name)
        names = [server.input] if server.input else []
        return SimpleNamespace(inputs=[SimpleNamespace(name=name) for name in names])

    asked: list[str] = []
    server = SimpleNamespace(
        ModelStreamInfer=iter(calls).__next__,
        ModelMetadata=about,
        asked=asked,
        input="cancel" if knows else "",
    )
    return server


async def asking(monkeypatch, call):
    """A client whose question has gone out, and who waits for the first piece of its answer."""
    generation, stub = Generation(TritonSettings(endpoint="127.0.0.1:1"), "llm"), serving(call)
    monkeypatch.setattr(generation, "_stub", lambda: stub)
    reading = asyncio.create_task(anext(generation.pieces("hello", tokens_max=3)))
    await until(lambda: call.written, "the question is asked")
    return generation, reading


async def test_closing_tells_the_model_and_whoever_still_reads(monkeypatch):
    call = Call(answers=())
    generation, reading = await asking(monkeypatch, call)
    await generation.close()
    with pytest.raises(ModelUnavailable, match="the client was closed"):
        await reading
    assert len(call.written) == 3
    assert call.is_over
    assert not call.is_cancelled


async def test_closing_waits_for_no_server_that_hangs(monkeypatch):
    monkeypatch.setattr("weir.inference.generation._CLOSE_WITHIN_S", 0.05)
    call = Call(answers=(), ends=False)
    generation, reading = await asking(monkeypatch, call)
    await generation.close()
    assert call.is_cancelled
    with pytest.raises(ModelUnavailable, match="the client was closed"):
        await reading


async def test_a_closed_client_asks_nothing_more_and_opens_no_channel():
    generation = Generation(TritonSettings(endpoint="127.0.0.1:1"), "llm")
    await generation.close()
    with pytest.raises(ModelUnavailable, match="the client was closed"):
        await anext(generation.pieces("hello", tokens_max=3))
    with pytest.raises(ModelUnavailable, match="the client was closed"):
        generation._stub()


async def test_a_model_that_did_not_know_how_to_stop_is_asked_again(monkeypatch):
    calls = [Call(), Call(), Call()]
    stub = serving(*calls, knows=False)
    generation = Generation(TritonSettings(endpoint="127.0.0.1:1"), "llm")
    monkeypatch.setattr(generation, "_stub", lambda: stub)
    monkeypatch.setattr(generation, "_piece", lambda *_: (Piece("hello"), False))
    for number in range(3):
        pieces = generation.pieces("hello", tokens_max=3)
        await anext(pieces)
        await pieces.aclose()
        await asyncio.wait(generation._ending)
        stub.input = "cancel"
        assert calls[number].is_cancelled == (number == 0)
    # The third one knows it from the second.
    assert stub.asked == ["llm", "llm"]
