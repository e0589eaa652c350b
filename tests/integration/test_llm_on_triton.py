"""A language model on a real Triton: many answers at once, each as if it were alone."""

import asyncio
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.llm.cli import app
from infra.llm.convert import convert
from infra.llm.repository import Serving, write_embedded
from infra.local.triton import TritonServer
from tests.support.pauses import until
from tests.support.tiny_llm import TinyLlm
from weir.config import TritonSettings
from weir.inference.errors import ModelRejected, ModelUnavailable
from weir.inference.generation import Generation, Sampling

# Random weights: what it says means nothing, and it seldom ends by itself.
MODEL = TinyLlm(layers=2, vocabulary=31, seed=11)
CANCELLED = 'weir_llm_requests_total{model="llm",reason="cancelled"'
PROMPTS = ["hello there", "abcabc", "what is a card", "zzz", "a", "the quick brown fox"]


@pytest.fixture(scope="module")
def served(start_triton, tmp_path_factory) -> TritonServer:
    """A model with three places, and six chairs."""
    folder = tmp_path_factory.mktemp("llm")
    convert(MODEL.write(folder / "model.gguf"), folder / "converted", context=192)
    serving = Serving(conversations_max=3, waiting_max=6)
    write_embedded(folder / "converted", folder / "repository", "llm", serving)
    return start_triton(folder / "repository")


@pytest.fixture
async def ask(served):
    async with Generation(TritonSettings(endpoint=served.endpoint), "llm") as generation:
        yield generation


async def said(generation: Generation, prompt: str, tokens_max: int = 40, **options) -> str:
    return "".join([piece async for piece in generation(prompt, tokens_max=tokens_max, **options)])


def metric(served: TritonServer, name: str) -> float:
    import httpx

    lines = httpx.get(served.metrics_url).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def test_answers_side_by_side_are_those_that_each_gets_alone(ask):
    alone = [await said(ask, prompt) for prompt in PROMPTS]
    assert all(alone)
    assert len(set(alone)) > 1
    assert await asyncio.gather(*(said(ask, prompt) for prompt in PROMPTS)) == alone


async def test_pieces_come_one_by_one_and_the_last_says_why(ask):
    pieces = [piece async for piece in ask.pieces("hello there", tokens_max=12)]
    assert len(pieces) > 3
    assert [piece.finish_reason for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert pieces[-1].finish_reason in ("length", "stop", "loop")


async def test_its_queue_its_first_tokens_and_its_tokens_are_counted(ask, served):
    names = ("queue_seconds_total", "first_token_seconds_total", "tokens_total", "prompt_tokens_total")
    before = [metric(served, f"weir_llm_{name}") for name in names]
    # One more than there are places: it waits.
    await asyncio.gather(*(said(ask, prompt, 100) for prompt in PROMPTS[:4]))
    for name, value in zip(names, before, strict=True):
        assert metric(served, f"weir_llm_{name}") > value, name


async def test_a_stop_string_ends_the_answer_before_it_and_no_part_of_it_is_shown(ask):
    whole = await said(ask, "hello there")
    stop = whole[5:9]
    assert await said(ask, "hello there", stop=[stop]) == whole[: whole.index(stop)]


async def test_the_same_seed_says_the_same_and_another_something_else(served):
    settings = TritonSettings(endpoint=served.endpoint)
    texts = []
    for seed in (1, 1, 2):
        async with Generation(settings, "llm", sampling=Sampling(1.0, 0.95, seed)) as drawn:
            texts.append(await said(drawn, "hello there"))
    assert texts[0] == texts[1] != texts[2]


async def leave(generation: Generation, prompt: str, after: int) -> None:
    """Read so many pieces, and go."""
    stream = generation.pieces(prompt, tokens_max=150)
    for _ in range(after):
        await anext(stream)
    await stream.aclose()


def test_the_smoke_test_says_what_the_model_said_and_how_fast(served, monkeypatch):
    monkeypatch.setenv("WEIR_TRITON_ENDPOINT", served.endpoint)
    told = CliRunner().invoke(
        app, ["smoke", "--template", "none", "--prompt", "hello there", "--tokens", "8"]
    )
    assert told.exit_code == 0, told.output
    assert re.search(r"first piece after \d+\.\d\d s, \d pieces in", told.output)
    monkeypatch.setenv("WEIR_TRITON_ENDPOINT", "127.0.0.1:1")
    away = CliRunner().invoke(app, ["smoke", "--template", "none"])
    assert isinstance(away.exception, ModelUnavailable)


async def test_who_leaves_frees_the_place(ask, served):
    before = metric(served, CANCELLED)
    for turn in range(20):
        await asyncio.gather(*(leave(ask, prompt, 1 + turn % 5) for prompt in PROMPTS))
        await until(lambda: metric(served, "weir_llm_conversations") == 0, "the places are free")
        assert served.pid is not None
    # One that had ended before its reader left was not cut off.
    assert metric(served, CANCELLED) - before > 20
    assert await said(ask, "hello there", 5)


async def test_whose_time_is_up_frees_the_place(ask, served):
    async def hold() -> None:
        async for _ in ask.pieces("hello there", tokens_max=150):
            reached.set()
            await asyncio.Event().wait()

    before = metric(served, CANCELLED)
    for _ in range(20):
        reached = asyncio.Event()
        turn = asyncio.create_task(hold())
        await reached.wait()
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
    await until(lambda: metric(served, "weir_llm_conversations") == 0, "the places are free")
    # One that had ended before its reader's time was up was not cut off.
    assert metric(served, CANCELLED) - before > 5
    assert await said(ask, "hello there", 5)


async def test_a_model_that_cannot_be_asked_to_stop_is_cut_off(start_triton, tmp_path: Path):
    # Its answer with this seed is long: it is not over before its reader has left.
    model = TinyLlm(layers=4, vocabulary=31, seed=11, context=4096)
    convert(model.write(tmp_path / "model.gguf"), tmp_path / "converted", context=4000)
    config = write_embedded(tmp_path / "converted", tmp_path / "repository", "llm") / "config.pbtxt"
    without = [line for line in config.read_text().splitlines() if '"cancel"' not in line]
    config.write_text("\n".join(without).replace("optional: true },\n]", "optional: true }\n]"))
    server = start_triton(tmp_path / "repository")
    drawn = Generation(TritonSettings(endpoint=server.endpoint), "llm", sampling=Sampling(1.0, 1.0, 1))
    async with drawn as generation:
        # On a busy machine an answer may be over before its reader has left.
        for _ in range(10):
            stream = generation.pieces("hello there", tokens_max=3900)
            await anext(stream)
            await stream.aclose()
            await until(lambda: metric(server, "weir_llm_conversations") == 0, "its place is free")
            if metric(server, CANCELLED):
                break
        assert metric(server, CANCELLED) >= 1
    server.stop()


async def test_for_more_than_there_are_places_and_chairs_the_model_is_unavailable(ask):
    answers = await asyncio.gather(
        *(said(ask, prompt, 150) for prompt in PROMPTS * 3), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    # Six chairs at least are taken, be it that nobody has been given a place yet.
    assert 1 <= len(refused) <= 12
    for error in refused:
        assert isinstance(error, ModelUnavailable)
        assert "wait already" in str(error)
    assert await said(ask, "hello there", 5)


@pytest.mark.parametrize(
    ("prompt", "tokens_max", "why"),
    [
        ("a" * 180, 40, "more than the 192"),
        ("", 10, "the prompt is empty"),
        ("hello", 0, "max_tokens must be 1 or more"),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_one_line(ask, prompt, tokens_max, why):
    with pytest.raises(ModelRejected, match=why) as refused:
        await said(ask, prompt, tokens_max)
    assert "\n" not in str(refused.value)
    assert not prompt or prompt not in str(refused.value)


async def test_a_model_that_is_not_there_is_refused(served):
    async with Generation(TritonSettings(endpoint=served.endpoint), "nobody") as nobody:
        with pytest.raises(ModelRejected, match="nobody"):
            await said(nobody, "hello")


async def test_a_server_that_dies_in_the_middle_of_an_answer_is_unavailable(start_triton, tmp_path: Path):
    convert(MODEL.write(tmp_path / "model.gguf"), tmp_path / "converted", context=192)
    write_embedded(tmp_path / "converted", tmp_path / "repository", "llm")
    server = start_triton(tmp_path / "repository")
    async with Generation(TritonSettings(endpoint=server.endpoint), "llm") as generation:
        stream = generation.pieces("hello there", tokens_max=150)
        await anext(stream)
        server.kill()
        with pytest.raises(ModelUnavailable):
            async for _ in stream:
                pass
        with pytest.raises(ModelUnavailable):
            await said(generation, "hello")


async def test_a_server_that_says_nothing_is_unavailable_after_the_deadline(served):
    settings = TritonSettings(endpoint=served.endpoint)
    async with Generation(settings, "llm", first_deadline_s=0.0001) as hasty:
        with pytest.raises(ModelUnavailable, match="deadline exceeded"):
            await said(hasty, "hello there")
