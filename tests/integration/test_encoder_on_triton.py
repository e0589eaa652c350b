"""A sentence encoder on a real Triton: the vectors of this process, and many conversations in few calls."""

import asyncio

import numpy as np
import pytest

from infra.encoder.local import LocalEncoder
from infra.encoder.repository import write_encoder
from tests.support import tiny_bert
from weir.config import TritonSettings
from weir.errors import MissingPart
from weir.inference.encoder import TritonEncoder
from weir.inference.errors import ModelRejected, ModelUnavailable

TEXTS = ["a b c", "d", "e f g h", "a b c d e f g h i", "", "zz ?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert.write(folder, tiny_bert.weights())
    tiny_bert.write_tokenizer(folder)
    return write_encoder(folder, folder / "repository")


@pytest.fixture(scope="module")
def served(start_triton, model):
    return start_triton(model.parent)


def encoder(endpoint, model, **options) -> TritonEncoder:
    settings = TritonSettings(endpoint=endpoint)
    return TritonEncoder(settings, "encoder", model / "tokenizer.json", tokens_max=12, **options)


async def test_the_vectors_are_those_of_the_model_in_this_process(served, model):
    here = await LocalEncoder(model, tokens_max=12)(TEXTS)
    async with encoder(served.endpoint, model) as ask:
        there = await ask(TEXTS)
    assert there.shape == (len(TEXTS), tiny_bert.D)
    assert np.abs(here - there).max() < 1e-3
    assert np.allclose(np.linalg.norm(there, axis=1), 1, atol=1e-3)


async def test_what_is_asked_at_once_goes_together_and_each_gets_its_own(served, model):
    async with encoder(served.endpoint, model, rows_max=4) as ask:
        alone = [await ask([text]) for text in TEXTS]
        together = await asyncio.gather(*(ask([text]) for text in TEXTS))
        assert (await ask([])).shape[0] == 0
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one - other).max() < 1e-3


async def test_one_who_leaves_takes_nobody_along(served, model):
    async with encoder(served.endpoint, model) as ask:
        leaving = asyncio.create_task(ask(["a b"]))
        staying = asyncio.create_task(ask(["c d"]))
        await asyncio.sleep(0)  # let both be asked
        leaving.cancel()
        assert (await staying).shape == (1, tiny_bert.D)


async def test_a_model_that_is_not_there_is_a_refusal(served, model):
    settings = TritonSettings(endpoint=served.endpoint)
    async with TritonEncoder(settings, "nobody", model / "tokenizer.json") as ask:
        with pytest.raises(ModelRejected, match="nobody"):
            await ask(["a"])


async def test_without_a_server_it_is_unavailable_and_says_so_in_one_line(model):
    async with encoder("127.0.0.1:1", model, deadline_s=0.5) as ask:
        with pytest.raises(ModelUnavailable) as error:
            await ask(["a", "b"])
    assert "\n" not in str(error.value)


def test_without_its_tokenizer_it_is_not_made(tmp_path):
    with pytest.raises(MissingPart, match="tokenizer"):
        TritonEncoder(TritonSettings(), "encoder", tmp_path / "tokenizer.json")
