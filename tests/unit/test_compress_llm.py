"""A language model made smaller: what is left out is left out of the formulas, what is lost is told."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType

from infra.compress import llm
from infra.compress.decoder import VARIANTS, Smaller, Use, Variant, kept_layers, use_of
from infra.compress.errors import CannotCompress
from infra.compress.quality import Quality
from infra.compress.report import unbeaten
from infra.compress.windows import Reader, Said, windows_of
from infra.llm.convert import convert, need_of, opened, write_converted
from infra.llm.errors import WeightsBroken
from infra.llm.weights import GgufWeights
from infra.triton.python_llm.engine import Engine
from infra.weights.prune import pruned
from infra.weights.quantise import to_int4, to_int4_offset
from tests.support.tiny_llm import TinyLlm
from tests.unit.test_training_pipeline import call
from weir.errors import MissingPart

MODEL = TinyLlm(layers=4, seed=11)
QUICK = ("--tokens", "256", "--rounds", "1", "--context", "160", "--answers", "0")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return MODEL.write(tmp_path_factory.mktemp("source") / "model.gguf")


@pytest.fixture(scope="module")
def use(source, tmp_path_factory) -> Use:
    home = tmp_path_factory.mktemp("float")
    convert(source, home / "out", context=64, quantisation="float32")
    return use_of(home / "out", [tokens(seed, 40) for seed in range(3)])


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, MODEL.vocabulary, count).tolist()


def smaller(source: Path, use: Use, variant: Variant, home: Path) -> tuple[Smaller, Engine]:
    weights, tokenizer = opened(source)
    made = Smaller(weights, variant, use)
    write_converted(made, tokenizer, home / "out", context=64, quantisation=variant.quantisation)
    return made, Engine(home / "out", rows_max=2)


def by_formulas(made: Smaller) -> TinyLlm:
    """The tiny model of what `Smaller` says that the weights are."""
    model = TinyLlm(layers=made.shape.layer_count, feed_forward=made.shape.feed_forward, seed=1)
    for name, values in model.tensors.items():
        model.tensors[name] = made.vector(name) if values.ndim == 1 else made.matrix(name)
    return model


def last_logits(engine: Engine, said: list[int]) -> np.ndarray:
    row = engine.join()
    found = engine.feed(row, said)
    engine.leave(row)
    return found


def test_of_each_row_the_least_weights_go_and_the_others_stay():
    matrix = np.random.default_rng(3).standard_normal((5, 40)).astype(np.float32)
    made = pruned(matrix, 0.3)
    assert ((made == 0).sum(axis=1) == 12).all()
    stays = made != 0
    np.testing.assert_array_equal(made[stays], matrix[stays])
    largest_gone = np.where(stays, 0, np.abs(matrix)).max(axis=1)
    assert (largest_gone <= np.where(stays, np.abs(matrix), np.inf).min(axis=1)).all()


def test_a_weight_that_is_used_much_stays_though_it_is_small():
    matrix = np.array([[0.1, 1.0, 2.0, 3.0]], np.float32)
    made = pruned(matrix, 0.25, np.array([100, 1, 1, 1], np.float32))
    np.testing.assert_array_equal(made, [[np.float32(0.1), 0, 2, 3]])


def test_blocks_that_were_of_four_bits_with_a_minimum_stay_what_they_were(tmp_path):
    stored = GgufWeights(MODEL.write(tmp_path / "q4.gguf", GGMLQuantizationType.Q4_1))
    matrix = stored.matrix("blk.1.ffn_up.weight")
    np.testing.assert_allclose(to_int4_offset(matrix).dense(), matrix, atol=1e-3)
    assert np.abs(to_int4(matrix).dense() - matrix).max() > 1e-2


def test_a_cut_range_is_never_worse_than_the_whole_one():
    matrix = np.random.default_rng(5).standard_t(2, (20, 64)).astype(np.float32)
    blocks = matrix.reshape(20, 2, 32)
    scale = (np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)) / 15
    zero = np.rint(-np.minimum(blocks.min(-1), 0) / scale)
    whole = (np.clip(np.rint(blocks / scale[..., None]) + zero[..., None], 0, 15) - zero[..., None]) * scale[
        ..., None
    ]
    mine = to_int4(matrix).dense().reshape(blocks.shape)
    assert (((mine - blocks) ** 2).sum(-1) <= ((whole - blocks) ** 2).sum(-1) + 1e-5).all()
    assert ((mine - blocks) ** 2).sum() < 0.95 * ((whole - blocks) ** 2).sum()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantisation", ["int4", "int4-small"])
def test_four_bits_compute_what_their_blocks_say(tmp_path, quantisation, tied):
    model = TinyLlm(tied=tied, seed=12)
    convert(model.write(tmp_path / "m.gguf"), tmp_path / "out", context=64, quantisation=quantisation)
    made = TinyLlm(tied=tied, seed=12)
    layers = to_int4_offset if quantisation == "int4" else to_int4
    for name, values in made.tensors.items():
        if values.ndim == 2 and name.startswith("blk."):
            made.tensors[name] = layers(values).dense()
        elif values.ndim == 2 and quantisation == "int4-small":
            made.tensors[name] = to_int4(values).dense()
    engine = Engine(tmp_path / "out", rows_max=1)
    said = tokens(4, 20)
    found, expected = last_logits(engine, said), made.logits(said)[-1]
    assert np.corrcoef(found, expected)[0, 1] > 0.995


def test_four_bits_take_what_was_said_before(source, tmp_path):
    shape = opened(source)[0].shape
    for quantisation in ("int8", "int4", "int4-small"):
        convert(source, tmp_path / quantisation, context=16, quantisation=quantisation)
        need = need_of(shape, quantisation, context=16, conversations=1)
        data = (tmp_path / quantisation / "model.onnx.data").stat().st_size
        # Each array begins at a page; a tiny model is mostly that.
        assert need.disk < data + 4096 * 60
    assert (
        need_of(shape, "int4-small", context=16, conversations=1).disk
        < need_of(shape, "int4", context=16, conversations=1).disk
        < need_of(shape, "int8", context=16, conversations=1).disk
    )


def test_layers_and_units_that_are_left_out_are_left_out_of_the_formulas(source, use, tmp_path):
    variant = Variant("both", "float32", layers_out=1, units_out=0.34)
    made, engine = smaller(source, use, variant, tmp_path)
    assert (made.shape.layer_count, made.shape.feed_forward) == (3, 64)
    said = tokens(6, 18)
    expected = by_formulas(made).logits(said)[-1]
    np.testing.assert_allclose(last_logits(engine, said), expected, atol=2e-3, rtol=1e-3)


def test_the_first_and_the_last_layer_stay_and_of_the_others_those_that_turn_most():
    influence = np.array([0.0, 0.3, 0.1, 0.2, 0.0])
    assert kept_layers(influence, 1) == [0, 1, 3, 4]
    assert kept_layers(influence, 3) == [0, 4]
    with pytest.raises(ValueError, match="4 of 5"):
        kept_layers(influence, 4)


def test_what_a_layer_does_is_measured_as_the_formulas_have_it(use):
    assert use.influence.shape == (4,)
    assert ((use.influence > 0) & (use.influence < 2)).all()
    said = [tokens(seed, 40) for seed in range(3)]
    normed = []
    for each in said:
        hidden = MODEL.tensors["token_embd.weight"][each].astype(np.float64)
        weight = MODEL.tensors["blk.0.attn_norm.weight"]
        normed.append(hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + MODEL.epsilon) * weight)
    expected = np.sqrt((np.concatenate(normed) ** 2).mean(0))
    np.testing.assert_allclose(use.norms[0, "attention_in"], expected, rtol=1e-3)


def test_pruned_weights_are_zero_in_what_is_served_and_embeddings_are_not(source, use):
    variant = next(each for each in VARIANTS if each.name == "pruned-50-by-use")
    made = Smaller(opened(source)[0], variant, use)
    assert (made.matrix("blk.2.ffn_down.weight") == 0).mean() == 0.5
    assert (made.matrix("token_embd.weight") != 0).all()


def test_a_reader_says_at_every_place_what_the_formulas_say(source, tmp_path):
    convert(source, tmp_path / "out", context=64, quantisation="float32")
    said = tokens(8, 30)
    found = Reader(tmp_path / "out")(said)
    logits = MODEL.logits(said)[:-1]
    chances = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    np.testing.assert_allclose(found.nats, chances - logits[np.arange(29), said[1:]], atol=2e-3)
    np.testing.assert_array_equal(found.best, logits.argmax(-1))


def test_windows_are_whole_spread_over_the_text_and_no_more_than_asked_for():
    assert [each[0] for each in windows_of(range(100), 10, 4)] == [0, 30, 60, 90]
    assert windows_of(range(7), 10, 4) == [range(7)]
    assert windows_of([3], 10, 4) == []


def test_a_model_compared_with_itself_has_lost_nothing_and_another_has():
    draw = np.random.default_rng(2)
    said = [Said(draw.uniform(1, 3, 50), draw.integers(0, 9, 50)) for _ in range(8)]
    same = Quality.of(said, said)
    assert (same.to_reference.value, same.agreement.value, same.tokens) == (1.0, 1.0, 400)
    worse = Quality.of([replace(each, nats=each.nats + np.log(2)) for each in said], said)
    assert worse.to_reference.low == pytest.approx(2.0)
    assert worse.to_reference.high == pytest.approx(2.0)


def test_who_is_larger_and_no_better_is_beaten():
    assert unbeaten([(1.0, 0.5), (2.0, 0.9), (3.0, 0.9), (1.0, 0.4)]) == [True, True, False, False]


def test_the_command_tells_what_each_variant_costs_and_keeps_the_chosen_one(source, tmp_path):
    out, home = tmp_path / "out", tmp_path / "triton" / "repository"
    words = ("compress", "llm", "--source", source, "--out", out, *QUICK)
    said = call(*words, "--keep", "layers-1-int8", "--repository", home, "--json")
    about = json.loads(said[said.index("{") :])
    names = [each["name"] for each in about["variants"]]
    # A model of four layers cannot lose three of them.
    assert names == [each.name for each in VARIANTS if each.layers_out < 3]
    sizes = {each["name"]: each["size"] for each in about["variants"]}
    assert sizes["int4-small"] < sizes["int4"] < sizes["int8"] < sizes["float32"]
    whole = about["variants"][0]
    assert whole["quality"]["en"]["agreement"]["value"] == 1.0
    assert all(each["speed"]["one"] > 0 for each in about["variants"])
    # Nothing stands there that was only planned.
    assert whole.keys() == {"name", "size", "parameters", "speed", "quality", "grounded"}
    assert {"compress.json", "compress.md", "pareto.svg", "pareto-speed.svg"} <= {
        path.name for path in out.iterdir()
    }
    assert {path.parent.name for path in out.glob("models/*/config.pbtxt")} == {
        f"llm-{name}" for name in names
    }
    kept = json.loads((home.parent / "llm-converted" / "llm.json").read_text())
    assert kept["compressed"] == "layers-1-int8"
    assert kept["shape"]["layer_count"] == 3
    assert (home / "llm" / "config.pbtxt").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--variant", "int3"), "There is no variant 'int3'"),
        (("--keep", "smaller"), "There is no variant 'smaller'"),
        (("--variant", "layers-6-int8"), "The model has 4 layers, 6 of them cannot go"),
        (("--keep", "layers-3-int8"), "The model has 4 layers, 3 of them cannot go"),
    ],
)
def test_what_there_is_not_is_told_in_a_line_before_anything_is_written(source, tmp_path, words, said):
    with pytest.raises(CannotCompress, match=said):
        call("compress", "llm", "--source", source, "--out", tmp_path / "out", *QUICK, *words)
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_no_model_or_ends_early_is_told_in_a_line(source, tmp_path):
    def run(path: Path) -> None:
        call("compress", "llm", "--source", path, "--out", tmp_path / "out", *QUICK)

    with pytest.raises(MissingPart, match="is not there"):
        run(tmp_path / "nothing.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(b"words")
    with pytest.raises(WeightsBroken, match="not a GGUF file"):
        run(other)
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(source.read_bytes()[:3000])
    with pytest.raises(WeightsBroken, match="ends early"):
        run(torn)
    (tmp_path / "folder").mkdir()
    with pytest.raises(WeightsBroken, match="missing"):
        run(tmp_path / "folder")
    assert not (tmp_path / "out").exists()


def test_too_little_disk_or_memory_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    plan, whole = llm.Plan(context=160), llm.Source(source)
    disk, memory = llm.needs(whole.weights.shape, plan)
    assert disk > 0
    assert memory > 0
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory - 1))
    with pytest.raises(MissingPart, match="of memory"):
        llm.compress(whole, tmp_path / "out", plan, print)
    monkeypatch.setattr("infra.llm.convert.shutil.disk_usage", lambda path: SimpleNamespace(free=disk - 1))
    with pytest.raises(MissingPart, match="Make room"):
        llm.compress(whole, tmp_path / "out", plan, print)
    assert not (tmp_path / "out").exists()
