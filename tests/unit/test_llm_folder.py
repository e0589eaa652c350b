"""A folder of published weights becomes the same model as its GGUF file; what is amiss is told in a line."""

import json
from dataclasses import replace

import numpy as np
import pytest

from infra.llm.convert import ABOUT, convert, need_of, open_weights
from infra.llm.errors import NotConvertible, WeightsBroken
from infra.llm.weights import GgufWeights
from infra.triton.python_llm.engine import Engine
from tests.support.tiny_llm import BEGIN, END, TinyLlm

LLAMA, QWEN = TinyLlm(), TinyLlm("qwen2", tied=False, heads=2, kv_heads=1, head_dim=32, seed=6)
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("model", [LLAMA, QWEN], ids=["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_folder_gives_the_matrices_of_the_file(tmp_path, model, kind):
    folder = open_weights(model.write_folder(tmp_path / "folder", kind))
    file = GgufWeights(model.write(tmp_path / "model.gguf"))
    # GGUF keeps it in 32 bits.
    assert replace(folder.shape, norm_epsilon=file.shape.norm_epsilon) == file.shape
    assert folder.kinds() == {kind: len(model.tensors)}
    for name in ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.1.ffn_down.weight"):
        near = 0.01 * np.abs(model.tensors[name]).max()
        assert np.abs(folder.matrix(name) - file.matrix(name)).max() <= (near if kind != "F32" else 0)


@pytest.mark.parametrize("model", [LLAMA, QWEN], ids=["llama", "qwen2"])
def test_the_converted_folder_computes_the_formulas(tmp_path, model):
    source = model.write_folder(tmp_path / "folder")
    shape = convert(source, tmp_path / "out", context=64, quantisation="float32")
    engine = Engine(tmp_path / "out", rows_max=2)
    said = np.random.default_rng(7).integers(2, model.vocabulary, 20).tolist()
    np.testing.assert_allclose(engine.feed(engine.join(), said), model.logits(said)[-1], atol=2e-3, rtol=1e-3)
    about = json.loads((tmp_path / "out" / ABOUT).read_text())
    assert (about["begin"], about["ends"], about["chat_template"]) == (BEGIN, [END], "{{ x }}")
    assert set(about["source"]["sha256"]) == {"config.json", "model-0.safetensors", "model-1.safetensors"}
    assert need_of(shape, "int8", context=64, conversations=1).disk > 0


def test_frequencies_are_stretched_as_llama_3_does(tmp_path):
    model = TinyLlm(head_dim=16, rotary_base=10_000.0)
    folder = open_weights(model.write_folder(tmp_path / "folder", rope_scaling=LLAMA_3))
    factors = folder.rotary_factors()
    assert factors is not None
    assert factors.shape == (8,)
    # 64 tokens turn the first frequency ten times round, the last not once.
    assert factors[0] == 1
    assert factors[-1] == pytest.approx(8)
    assert (np.diff(factors) >= 0).all()
    # The second one turns 3.22 times: (3.22 - 1) / (4 - 1) of the way from 8 to 1, in frequency.
    turns = 64 / (2 * np.pi * 10_000 ** (1 / 8))
    assert factors[1] == pytest.approx(1 / ((1 - (turns - 1) / 3) / 8 + (turns - 1) / 3), rel=1e-5)
    # What is stretched by these factors is what the formulas say.
    model.rotary_factors, model.tensors["rope_freqs.weight"] = True, factors
    convert(folder.path, tmp_path / "out", context=64, quantisation="float32")
    engine = Engine(tmp_path / "out", rows_max=2)
    said = np.random.default_rng(8).integers(2, model.vocabulary, 20).tolist()
    np.testing.assert_allclose(engine.feed(engine.join(), said), model.logits(said)[-1], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gemma"}, "architecture 'gemma'"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"rope_scaling": {"type": "yarn"}}, "named 'yarn'"),
        ({"intermediate_size": None}, "lacks intermediate_size"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(tmp_path, config, why):
    source = LLAMA.write_folder(tmp_path / "folder", **config)
    with pytest.raises(NotConvertible, match=why) as refused:
        convert(source, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model-1.safetensors", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_file_that_is_missing_or_ends_early_is_named(tmp_path, file, how):
    source = LLAMA.write_folder(tmp_path / "folder")
    if how == "missing":
        (source / file).unlink()
    else:
        (source / file).write_bytes((source / file).read_bytes()[:-50])
    with pytest.raises(WeightsBroken) as refused:
        convert(source, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_lacks_and_an_end_that_nobody_names_are_told(tmp_path):
    with pytest.raises(NotConvertible, match=r"blk\.1\.attn_k\.weight lacks"):
        open_weights(LLAMA.write_folder(tmp_path / "one", leave_out="blk.1.attn_k.weight"))
    source = LLAMA.write_folder(tmp_path / "two", eos_token_id=None)
    tokenizer = (source / "tokenizer.json").read_text().replace("<|im_end|>", "<|other|>")
    (source / "tokenizer.json").write_text(tokenizer)
    with pytest.raises(NotConvertible, match="which token ends"):
        convert(source, tmp_path / "out")
