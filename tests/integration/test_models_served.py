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
from tests.support.servers import running_server
from weir.config import TritonSettings
from weir.inference.encoder import TritonEncoder
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


async def test_the_encoder_puts_what_means_the_same_together(served):
    tokenizer = layout.ENCODER_MODELS / "encoder" / "tokenizer.json"
    texts = ["I have lost my card", "my debit card is missing", "the weather will be fine tomorrow"]
    async with TritonEncoder(TritonSettings(endpoint=served.endpoint), "encoder", tokenizer) as encode:
        lost, missing, weather = await encode(texts)
    assert np.linalg.norm(lost) == pytest.approx(1, abs=1e-3)
    assert lost @ missing > 0.5 > lost @ weather + 0.2
