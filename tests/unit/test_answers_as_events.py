"""The bank's app sees an answer as it is written, and nothing is left behind when it leaves."""

import asyncio
import json

import pytest
from aiohttp.test_utils import TestClient, TestServer

from services.chat.domain import Origin, Sentence
from services.chat.streaming import sse
from services.chat.streaming.live import LiveAnswers, Outcome
from services.chat.streaming.sse import CUSTOMER_HEADER, application
from tests.support.pauses import until

MINE = {CUSTOMER_HEADER: "me"}


@pytest.fixture
async def live():
    return LiveAnswers(asyncio.get_running_loop().time, watchers_max=2)


@pytest.fixture
async def app(live):
    served = application(
        live,
        lambda customer: f"pseudonym of {customer}",
        lambda event_id, text: text.replace("[CARD_1]", f"your card of {event_id}"),
        wait_s=0.1,
    )
    async with TestClient(TestServer(served)) as client:
        yield client


def events(body: str) -> list[tuple[str, dict]]:
    found = []
    for block in body.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def says(text: str) -> Sentence:
    return Sentence(text, Origin.PASSAGE, ("cards/2",))


async def test_sentences_come_as_they_are_written_with_the_customers_own_data_put_back(live, app):
    writing = live.begin("e-1", "pseudonym of me")
    writing.show(says("[CARD_1] is frozen."))
    answer = await app.get("/v1/answers/e-1", headers=MINE)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-store"
    begun = (await answer.content.readuntil(b"\n\n")).decode()
    assert events(begun) == [
        (
            "sentence",
            {"index": 0, "text": "your card of e-1 is frozen.", "origin": "passage", "sources": ["cards/2"]},
        )
    ]
    writing.show(says("还有一句。\n第二行"))
    writing.finish(Outcome.ANSWERED)
    rest = events((await answer.content.read()).decode())
    assert rest[0][1]["text"] == "还有一句。\n第二行"
    assert rest[1] == ("finished", {"outcome": "answered", "sentence_count": 2})


async def test_who_leaves_frees_his_place(live, app):
    live.begin("e-1", "pseudonym of me").show(says("one"))
    for _ in range(5):
        answer = await app.get("/v1/answers/e-1", headers=MINE)
        await answer.content.readuntil(b"\n\n")
        answer.close()
        await until(lambda: live.watcher_count == 0, "the watcher is gone")


async def test_a_silent_stream_says_that_it_lives(live, app, monkeypatch):
    monkeypatch.setattr(sse, "_ALIVE_S", 0.01)
    writing = live.begin("e-1", "pseudonym of me")
    writing.show(says("one"))
    answer = await app.get("/v1/answers/e-1", headers=MINE)
    await answer.content.readuntil(b"\n\n")
    assert await answer.content.readuntil(b"\n\n") == b":\n\n"
    writing.finish(Outcome.HANDED_OVER)
    assert events((await answer.content.read()).decode())[-1][1]["outcome"] == "handed_over"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/answers/e-1", {}, 400),
        ("/v1/answers/" + "x" * 201, MINE, 400),
        ("/v1/answers/e-1", {CUSTOMER_HEADER: "you"}, 403),
        ("/v1/answers/e-2", MINE, 404),
        ("/v1/answers", MINE, 404),
    ],
)
async def test_what_cannot_be_shown_is_refused_in_one_line(live, app, path, headers, status):
    live.begin("e-1", "pseudonym of me").show(says("one"))
    answer = await app.get(path, headers=headers)
    assert answer.status == status
    assert "\n" not in (await answer.text()).strip()
    assert live.watcher_count == 0


async def test_more_watchers_than_there_are_places_are_told_to_come_again(live, app):
    live.begin("e-1", "pseudonym of me").show(says("one"))
    held = [await app.get("/v1/answers/e-1", headers=MINE) for _ in range(2)]
    assert (await app.get("/v1/answers/e-1", headers=MINE)).status == 429
    for answer in held:
        answer.close()
