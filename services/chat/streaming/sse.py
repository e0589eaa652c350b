"""An answer as server-sent events over HTTP, for the bank's app.

    GET /v1/answers/{event_id}        X-Weir-Customer: the customer whom the app has signed in

    event: sentence    {"index": 0, "text": "…", "origin": "passage", "sources": ["fees/1"]}
    event: taken_back  {"index": 1}      sentences from there on do not stand; the answer was begun again
    event: finished    {"outcome": "answered", "sentence_count": 2}

An app that lost the connection asks again: it is told everything from the beginning, which costs little
and is never wrong. Source of the format: WHATWG HTML, server-sent events.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from aiohttp import web

from services.chat.streaming.live import Event, Finished, LiveAnswers, Shown, TakenBack
from weir.errors import AccessDenied, NeighbourUnavailable, WeirError

CUSTOMER_HEADER = "X-Weir-Customer"
# Proxies close a connection that says nothing for a minute or less.
_ALIVE_S = 15.0
_EVENT_ID_CHARS_MAX = 200

Reveal = Callable[[str, str], str]


def application(
    answers: LiveAnswers, pseudonym: Callable[[str], str], reveal: Reveal, *, wait_s: float = 10.0
) -> web.Application:
    """The pages of one worker.

    Args:
        pseudonym: of a customer's id, as the answers know it.
        reveal: of an event's id and a text: the text with the customer's own data put back.
        wait_s: how long an answer may take to begin.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        event_id, customer = request.match_info["event_id"], request.headers.get(CUSTOMER_HEADER, "")
        if not customer or len(event_id) > _EVENT_ID_CHARS_MAX:
            return _refused(400, f"Name the customer in {CUSTOMER_HEADER}, and an event by its id.")
        async with aclosing(answers.watch(event_id, pseudonym(customer), wait_s=wait_s)) as events:
            try:
                first = await anext(events)
            except WeirError as error:
                return _refused(_status(error), str(error))
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            with suppress(ConnectionResetError):  # whoever has left is owed nothing
                await response.prepare(request)
                await _write_all(response, first, events, lambda text: reveal(event_id, text))
            return response

    app = web.Application()
    app.router.add_get("/v1/answers/{event_id}", answer)
    return app


async def _write_all(
    response: web.StreamResponse,
    first: Event,
    events: AsyncGenerator[Event, None],
    reveal: Callable[[str], str],
) -> None:
    """Each event as it comes, and a comment when none does for a while."""
    await response.write(encode(first, reveal))
    ended = isinstance(first, Finished)
    while not ended:
        coming = asyncio.ensure_future(anext(events))
        try:
            while not (await asyncio.wait([coming], timeout=_ALIVE_S))[0]:
                await response.write(b":\n\n")
            event = coming.result()
        finally:
            coming.cancel()
            await asyncio.wait([coming])
        await response.write(encode(event, reveal))
        ended = isinstance(event, Finished)


def encode(event: Event, reveal: Callable[[str], str]) -> bytes:
    """One event in the format of server-sent events."""
    kind: str
    data: dict[str, Any]
    match event:
        case Shown(index, sentence):
            kind = "sentence"
            data = {
                "index": index,
                "text": reveal(sentence.text),
                "origin": sentence.origin.value,
                "sources": list(sentence.sources),
            }
        case TakenBack(index):
            kind, data = "taken_back", {"index": index}
        case Finished(outcome, count):
            kind, data = "finished", {"outcome": outcome.value, "sentence_count": count}
    # JSON has no line break of its own, which would end the event.
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _status(error: WeirError) -> int:
    match error:
        case AccessDenied():
            return 403
        case NeighbourUnavailable():
            return 404
        case _:
            return 429 if error.retriable else 500


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status, headers={"Cache-Control": "no-store"})
