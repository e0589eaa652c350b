"""A converted model computes what the formulas say, whatever its architecture and quantisation."""

import json
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from infra.llm.convert import ABOUT, convert, need_of
from infra.llm.errors import NotConvertible, WeightsBroken
from infra.llm.weights import GgufWeights
from infra.triton.python_llm.engine import Engine
from infra.weights.quantise import to_int8
from tests.support.tiny_llm import END, TinyLlm
from weir.errors import MissingPart

MODELS = {
    "llama": TinyLlm(),
    "llama, output of its own": TinyLlm(tied=False, seed=2),
    "llama 3's factors": TinyLlm(rotary_factors=True, rotary_base=500_000.0, seed=3),
    "llama, as many keys as heads": TinyLlm(kv_heads=4, seed=4),
    "qwen2": TinyLlm("qwen2", epsilon=1e-6, seed=5),
    "qwen2, output of its own": TinyLlm("qwen2", tied=False, heads=2, kv_heads=1, head_dim=32, seed=6),
}


def converted(model: TinyLlm, tmp_path: Path, **options) -> Engine:
    convert(model.write(tmp_path / "model.gguf"), tmp_path / "out", context=64, **options)
    return Engine(tmp_path / "out", rows_max=4)


def tokens(seed: int, count: int, model: TinyLlm) -> list[int]:
    return np.random.default_rng(seed).integers(2, model.vocabulary, count).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_computes_the_formulas(tmp_path, name):
    model = MODELS[name]
    engine = converted(model, tmp_path, quantisation="float32")
    said = tokens(7, 20, model)
    expected = model.logits(said)
    row = engine.join()
    np.testing.assert_allclose(engine.feed(row, said[:12]), expected[11], atol=2e-3, rtol=1e-3)
    for at in range(12, 20):
        np.testing.assert_allclose(engine.step([said[at]])[0], expected[at], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_choose_mostly_the_same_token(tmp_path, name):
    model = MODELS[name]
    engine = converted(model, tmp_path)
    same = near = 0
    for seed in range(40):
        said = tokens(seed, 16, model)
        expected = model.logits(said)[-1]
        row = engine.join()
        found = engine.feed(row, said)
        engine.leave(row)
        same += int(found.argmax() == expected.argmax())
        near += int(np.corrcoef(found, expected)[0, 1] > 0.99)
    assert same >= 36
    assert near >= 36


def test_conversations_that_join_and_leave_compute_what_each_computes_alone(tmp_path):
    model = MODELS["llama"]
    engine = converted(model, tmp_path, quantisation="float32")
    texts = [tokens(seed, 30, model) for seed in range(4)]
    alone = [model.logits(text) for text in texts]
    at = {}  # row to text and position
    for number, first in enumerate((5, 9, 3)):
        row = engine.join()
        np.testing.assert_allclose(
            engine.feed(row, texts[number][:first]), alone[number][first - 1], atol=2e-3
        )
        at[row] = [number, first]
    for _ in range(6):
        logits = engine.step([texts[number][position] for number, position in at.values()])
        for row, (number, position) in at.items():
            np.testing.assert_allclose(logits[row], alone[number][position], atol=2e-3)
            at[row][1] += 1
    engine.leave(0)
    at = {0: at[2], 1: at[1]}
    row = engine.join()
    # A prompt in parts, while others are stepped between.
    engine.feed(row, texts[3][:4])
    logits = engine.step([texts[number][position] for number, position in at.values()])
    for each, (number, position) in at.items():
        np.testing.assert_allclose(logits[each], alone[number][position], atol=2e-3)
    np.testing.assert_allclose(engine.feed(row, texts[3][4:11]), alone[3][10], atol=2e-3)


def test_a_beginning_in_common_is_not_computed_again(tmp_path):
    model = MODELS["qwen2"]
    engine = converted(model, tmp_path, quantisation="float32")
    first, second = tokens(1, 24, model), tokens(2, 24, model)
    second[:16] = first[:16]
    row = engine.join()
    engine.feed(row, first)
    engine.remember(row, first[:16])
    engine.leave(row)
    row = engine.join()
    assert engine.recall(row, second) == 16
    np.testing.assert_allclose(engine.feed(row, second[16:]), model.logits(second)[-1], atol=2e-3)
    engine.leave(row)
    row = engine.join()
    # Its own last token is always fed, and another beginning is none.
    assert engine.recall(row, first[:16]) == 0
    assert engine.recall(row, [*first[:15], 95, 95]) == 0


@pytest.mark.parametrize(
    "kind",
    [
        GGMLQuantizationType.Q4_0,
        GGMLQuantizationType.Q4_1,
        GGMLQuantizationType.Q5_1,
        GGMLQuantizationType.Q8_0,
        GGMLQuantizationType.F16,
        GGMLQuantizationType.BF16,
    ],
)
def test_every_quantisation_of_the_source_is_read(tmp_path, kind):
    model = MODELS["llama"]
    weights = GgufWeights(model.write(tmp_path / "model.gguf", kind))
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight", "blk.0.ffn_down.weight"):
        error = np.abs(weights.matrix(name) - model.tensors[name]).max()
        assert error < 0.2 * np.abs(model.tensors[name]).max(), name


def test_eight_bit_blocks_are_as_near_as_their_step():
    matrix = np.random.default_rng(1).standard_normal((64, 96)).astype(np.float32)
    matrix[3] = 0
    blocks = to_int8(matrix)
    step = np.repeat(blocks.scale, 32, axis=1)
    assert (np.abs(blocks.dense() - matrix) <= step * 0.51).all()
    assert (blocks.dense()[3] == 0).all()
    with pytest.raises(ValueError, match="multiple of 32"):
        to_int8(matrix[:, :40])


def test_what_is_converted_says_what_it_is(tmp_path):
    model = MODELS["llama"]
    source = model.write(tmp_path / "model.gguf", GGMLQuantizationType.Q8_0)
    shape = convert(source, tmp_path / "out", context=128)
    about = json.loads((tmp_path / "out" / ABOUT).read_text())
    assert about["context"] == 128
    assert about["ends"] == [END]
    assert about["quantisation"] == "int8"
    assert len(about["sha256"]) == 3
    assert shape.parameter_count == sum(
        values.size for name, values in model.tensors.items() if values.ndim == 2
    )
    need = need_of(shape, "int8", context=128, conversations=8)
    stored = sum(path.stat().st_size for path in (tmp_path / "out").glob("model.onnx.data"))
    assert need.disk == pytest.approx(stored, rel=0.5)
    assert need.cache == 8 * 128 * 2 * 4 * model.layers * model.kv_heads * model.head_dim


def test_a_conversion_takes_the_place_of_an_older_one_or_nothing_changes(tmp_path):
    out = tmp_path / "out"
    convert(MODELS["llama"].write(tmp_path / "one.gguf"), out, context=64)
    before = (out / ABOUT).read_text()
    with pytest.raises(NotConvertible):
        convert(MODELS["llama"].write(tmp_path / "two.gguf", cut="gpt-9"), out, context=64)
    assert (out / ABOUT).read_text() == before
    convert(MODELS["qwen2"].write(tmp_path / "three.gguf"), out, context=64)
    assert "qwen2" in (out / ABOUT).read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.gguf", "out", "three.gguf", "two.gguf"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"leave_out": "blk.1.attn_k.weight"}, "blk.1.attn_k.weight lacks"),
        ({"cut": "gpt-9"}, "cut in a way named 'gpt-9'"),
        ({"kind": "llama"}, "tokeniser of kind 'llama'"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(tmp_path, options, why):
    source = MODELS["llama"].write(tmp_path / "model.gguf", **options)
    with pytest.raises(NotConvertible, match=why) as refused:
        convert(source, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_another_architecture_a_context_too_long_and_a_full_disk_are_refused(tmp_path, monkeypatch):
    source = MODELS["llama"].write(tmp_path / "model.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(source.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(NotConvertible, match="gemma"):
        convert(other, tmp_path / "out")
    with pytest.raises(NotConvertible, match="made for 256 tokens, 300 are asked for"):
        convert(source, tmp_path / "out", context=300)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(MissingPart, match="Make room"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.5, 0.95])
def test_a_file_that_ends_early_is_broken(tmp_path, share):
    whole = MODELS["llama"].write(tmp_path / "model.gguf").read_bytes()
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((WeightsBroken, NotConvertible)) as refused:
        convert(torn, tmp_path / "out", context=64)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_gguf_is_broken(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(WeightsBroken, match="not a GGUF file"):
        convert(tmp_path / "x.gguf", tmp_path / "out")
