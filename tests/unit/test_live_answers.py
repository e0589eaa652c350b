"""Who watches an answer sees each sentence once, in order, and never one that does not stand."""

import asyncio
import random

import pytest

from services.chat.domain import Origin, Sentence
from services.chat.streaming.live import (
    Finished,
    LiveAnswers,
    NotWatchable,
    Outcome,
    Shown,
    TakenBack,
    TooManyWatchers,
)
from tests.support.pauses import until
from weir.errors import AccessDenied


def says(text: str) -> Sentence:
    return Sentence(text, Origin.PASSAGE, ("fees/1",))


def answers(now=lambda: 0.0, **options) -> LiveAnswers:
    return LiveAnswers(now, **options)


async def seen(live: LiveAnswers, event_id: str = "e", customer: str = "c", wait_s: float = 5.0) -> list:
    return [event async for event in live.watch(event_id, customer, wait_s=wait_s)]


async def test_who_comes_before_during_or_after_sees_the_same():
    live = answers()
    early = asyncio.create_task(seen(live))
    await until(lambda: live.watcher_count == 1, "it watches")
    writing = live.begin("e", "c")
    writing.show(says("one"))
    middle = asyncio.create_task(seen(live))
    await until(lambda: live.watcher_count == 2, "it watches")
    writing.show(says("two"))
    writing.finish(Outcome.ANSWERED)
    whole = [Shown(0, says("one")), Shown(1, says("two")), Finished(Outcome.ANSWERED, 2)]
    assert await early == await middle == await seen(live) == whole
    assert live.watcher_count == 0


async def test_an_answer_that_was_begun_again_and_comes_out_the_same_is_not_shown_twice():
    live = answers()
    first = live.begin("e", "c")
    first.show(says("one"))
    watching = asyncio.create_task(seen(live))
    await until(lambda: live.watcher_count == 1, "it watches")
    again = live.begin("e", "c")
    again.show(says("one"))
    again.show(says("two"))
    again.finish(Outcome.ANSWERED)
    assert await watching == [
        Shown(0, says("one")),
        Shown(1, says("two")),
        Finished(Outcome.ANSWERED, 2),
    ]


async def test_what_comes_out_otherwise_is_taken_back_for_those_who_saw_it():
    live = answers()
    first = live.begin("e", "c")
    for text in ("one", "two", "three"):
        first.show(says(text))
    watcher = live.watch("e", "c")
    events = [await anext(watcher) for _ in range(3)]
    again = live.begin("e", "c")
    for text in ("one", "other"):
        again.show(says(text))
    again.finish(Outcome.HANDED_OVER)
    events += [event async for event in watcher]
    assert events[3:] == [TakenBack(1), Shown(1, says("other")), Finished(Outcome.HANDED_OVER, 2)]
    assert await seen(live) == [
        Shown(0, says("one")),
        Shown(1, says("other")),
        Finished(Outcome.HANDED_OVER, 2),
    ]


async def test_an_answer_that_becomes_shorter_takes_back_what_is_too_much():
    live = answers()
    first = live.begin("e", "c")
    first.show(says("one"))
    first.show(says("two"))
    watcher = live.watch("e", "c")
    assert [await anext(watcher), await anext(watcher)] == [Shown(0, says("one")), Shown(1, says("two"))]
    again = live.begin("e", "c")
    again.show(says("one"))
    again.finish(Outcome.REFUSED)
    assert [event async for event in watcher] == [TakenBack(1), Finished(Outcome.REFUSED, 1)]


async def test_nobody_watches_anothers_answer():
    live = answers()
    live.begin("e", "c").show(says("one"))
    with pytest.raises(AccessDenied):
        await seen(live, customer="d")
    assert live.watcher_count == 0


async def test_an_id_that_another_customer_uses_again_shows_him_nothing_of_the_first():
    live = answers()
    live.begin("e", "c").show(says("mine"))
    live.begin("e", "d").finish(Outcome.FAILED)
    assert await seen(live, customer="d") == [Finished(Outcome.FAILED, 0)]


async def test_an_answer_that_does_not_begin_and_one_watcher_too_many_are_told_so():
    live = answers(watchers_max=1)
    with pytest.raises(NotWatchable, match="Ask another worker"):
        await seen(live, wait_s=0.01)
    waiting = asyncio.create_task(seen(live))
    await until(lambda: live.watcher_count == 1, "it waits")
    with pytest.raises(TooManyWatchers):
        await seen(live)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert live.watcher_count == 0


async def test_finished_answers_go_by_age_and_by_number():
    now = [0.0]
    live = answers(lambda: now[0], kept_s=10, kept_max=2)
    for number in range(3):
        live.begin(str(number), "c").finish(Outcome.ANSWERED)
    with pytest.raises(NotWatchable):
        await seen(live, "0", wait_s=0.01)
    assert await seen(live, "2") == [Finished(Outcome.ANSWERED, 0)]
    now[0] = 11
    live.begin("x", "c")
    with pytest.raises(NotWatchable):
        await seen(live, "2", wait_s=0.01)


@pytest.mark.parametrize("seed", range(60))
async def test_whatever_happens_a_watcher_ends_with_the_sentences_that_stand(seed):
    """Attempts that are given up at any sentence, watchers that come at any time and read at any pace."""
    chance = random.Random(seed)
    live, views, tasks = answers(), [], []

    async def watch(view: list[Sentence]) -> None:
        async for event in live.watch("e", "c"):
            match event:
                case Shown(index, sentence):
                    assert index == len(view)
                    view.append(sentence)
                case TakenBack(index):
                    assert index < len(view)
                    del view[index:]
                case Finished(_, count):
                    assert count == len(view)
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)  # another pace for each

    last: list[Sentence] = []
    for attempt in range(chance.randrange(1, 6)):
        writing = live.begin("e", "c")
        last = [says(chance.choice("abc") + str(n)) for n in range(chance.randrange(5))]
        for sentence in last if attempt else last[:3]:
            if chance.randrange(3) == 0:
                views.append([])
                tasks.append(asyncio.create_task(watch(views[-1])))
            writing.show(sentence)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)  # let watchers see this attempt, or not
    last = [says("end")] * chance.randrange(3)
    writing = live.begin("e", "c")
    for sentence in last:
        writing.show(sentence)
    writing.finish(Outcome.ANSWERED)
    await asyncio.gather(*tasks)
    assert all(view == last for view in views)
