"""A sentence encoder made smaller: its vectors are those of the weights that it is said to have."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer

from infra.compress.encoder import VARIANTS, Variant, made, variants_of, zeros_of
from infra.compress.encoder_quality import Kept, Task, found
from infra.compress.encoder_run import Plan, Source, compress
from infra.compress.errors import CannotCompress
from infra.compress.vocabulary import trimmed
from infra.encoder import EncoderNotConvertible, read_packed
from infra.encoder.local import LocalEncoder
from infra.encoder.repository import write_opened
from infra.encoder.weights import Encoder
from infra.weights.quantise import Blocks
from services.chat.domain import Encoders, Passage
from services.chat.evaluate.retrieval import Judged
from services.chat.knowledge.store import Content
from tests.support import tiny_bert, tiny_e5
from tests.unit.test_encoder_convert import PACKED, _expected
from tests.unit.test_training_pipeline import call
from weir.errors import BadInput, MissingPart

TEXTS = ("a b c", "卡 a", "passage: h", "")
QUICK = ("--rounds", "2")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("e5") / "e5.bin"
    path.write_bytes(tiny_e5.packed()[0])
    return path


@pytest.fixture(scope="module")
def encoder(source) -> Encoder:
    return read_packed(source)


def floats(weights: Mapping) -> dict[str, np.ndarray]:
    return {name: each.dense() if isinstance(each, Blocks) else each for name, each in weights.items()}


async def vectors(encoder: Encoder, home: Path) -> np.ndarray:
    return await LocalEncoder(write_opened(encoder, home, home / "repository"), tokens_max=16)(TEXTS)


@pytest.mark.parametrize("name", [each.name for each in VARIANTS])
async def test_each_variants_vectors_are_those_of_its_weights(encoder, tmp_path, name):
    smaller = made(encoder, next(each for each in VARIANTS if each.name == name))
    made_vectors = await vectors(smaller, tmp_path)
    tokenizer, weights = Tokenizer.from_str(smaller.tokenizer), floats(smaller.weights)
    for text, vector in zip(TEXTS, made_vectors, strict=True):
        expected = _expected(weights, PACKED, tokenizer.encode(text).ids)
        # In blocks the left side of a product is rounded to 8 bits too.
        assert float(vector @ expected) > (0.99999 if "int" not in name and "-" not in name else 0.995)


def test_blocks_of_four_bits_stay_as_they_are_where_four_bits_are_asked_for(encoder):
    smaller = made(encoder, Variant("int4", 4))
    for name, weight in encoder.weights.items():
        if isinstance(weight, Blocks):
            np.testing.assert_array_equal(smaller.weights[name].quanta, weight.quanta)


def test_a_pruned_block_keeps_its_other_weights_to_the_bit(encoder):
    name = "encoder.layer.1.intermediate.dense.weight"
    before = encoder.weights[name].dense()
    after = made(encoder, Variant("pruned", 4, 0.5)).weights[name].dense()
    assert (after == 0).mean() >= 0.5
    np.testing.assert_array_equal(after[after != 0], before[after != 0])
    np.testing.assert_array_equal(
        made(encoder, Variant("pruned", 4, 0.5)).weights["embeddings.word_embeddings.weight"].dense(),
        encoder.weights["embeddings.word_embeddings.weight"].dense(),
    )


def test_as_many_weights_are_zero_as_was_said(encoder):
    pruned = made(encoder, Variant("pruned", 32, 0.3))
    assert zeros_of(pruned.weights) >= 0.3
    assert zeros_of(pruned.weights) == pytest.approx(zeros_of(encoder.weights) + 0.3, abs=0.08)


async def test_texts_of_the_scripts_that_stay_keep_their_vectors(tmp_path, monkeypatch):
    # Greek and Arabic go; digits, signs and both scripts stay.
    monkeypatch.setattr(tiny_e5, "PIECES", [*tiny_e5.PIECES[:4], "β", "▁сb", *tiny_e5.PIECES[4:], "ع", "7"])
    path = tmp_path / "e5.bin"
    path.write_bytes(tiny_e5.packed()[0])
    said = read_packed(path)
    pieces = [piece for piece, _ in json.loads(said.tokenizer)["model"]["vocab"]]
    fewer = trimmed(said)
    left = [piece for piece, _ in json.loads(fewer.tokenizer)["model"]["vocab"]]
    assert left == [piece for piece in pieces if piece not in ("β", "▁сb", "ع")]
    assert fewer.weights["embeddings.word_embeddings.weight"].quanta.shape[0] == len(left)
    whole = await vectors(said, tmp_path / "whole")
    np.testing.assert_array_equal(await vectors(fewer, tmp_path / "fewer"), whole)


def test_a_tokenizer_of_another_kind_loses_no_scripts_and_odd_sizes_no_bits(tmp_path):
    tiny_bert.write(tmp_path, tiny_bert.weights())
    tiny_bert.write_tokenizer(tmp_path)
    whole = Source(tmp_path)
    assert {each.bits for each in variants_of(whole.encoder)} == {32}
    assert not any(each.scripts for each in whole.variants)
    with pytest.raises(ValueError, match="WordLevel"):
        trimmed(whole.encoder)


async def test_a_question_that_is_its_passage_is_found_and_recall_counts_the_others():
    """By an encoder of one axis a letter, with which every cosine can be told by hand."""
    letters = "abcdefgh"
    passages = [Passage(f"en/{each}@1#1", f"en/{each}", 1, "en", each, "") for each in letters]

    async def encode(texts):
        return np.eye(8, dtype=np.float32)[[letters.index(text[0]) for text in texts]]

    task = Task(
        "own",
        Content(passages, {}),
        [
            Judged("a", "en", frozenset({"en/a#1"})),
            Judged("b", "en", frozenset({"en/h#1"})),
            Judged("c", "en", frozenset({"en/c"})),
        ],
    )
    mine = await found(Encoders(encode, encode), task)
    assert mine.recall.value == pytest.approx(2 / 3)
    same = Kept.of(mine, mine)
    assert (same.cosine.value, same.top_same.value) == (1.0, 1.0)


def test_the_command_tells_what_each_variant_costs_and_keeps_the_chosen_one(source, tmp_path):
    out, home = tmp_path / "out", tmp_path / "repository"
    faq = tmp_path / "faq.jsonl"
    rows = [
        {"id": f"q{at}", "question": f"a {letter} b", "answer": letter} for at, letter in enumerate("cdef")
    ]
    faq.write_text("\n".join(json.dumps(row) for row in rows))
    words = ("compress", "encoder", "--source", source, "--out", out, *QUICK, "--faq", faq, "--faq-rows", 3)
    said = call(*words, "--keep", "int8", "--repository", home, "--json")
    about = json.loads(said[said.index("{") :])
    told = {each["name"]: each for each in about["variants"]}
    assert list(told) == [each.name for each in VARIANTS]
    assert told["float32"]["quality"]["starter_en"]["cosine"]["mean"] == pytest.approx(1.0, abs=1e-4)
    assert told["float32"]["quality"]["starter_zh"]["top_same"]["mean"] == 1.0
    assert told["int4"]["quality"]["faq"]["recall@5"]["count"] == 3
    assert all(each["speed"]["one_p99_us"] >= each["speed"]["one_p50_us"] > 0 for each in told.values())
    assert told["int4"]["speed"]["one_to_reference"] == 1.0
    assert {"compress.json", "compress.md", "pareto.svg", "pareto-speed.svg"} <= {
        path.name for path in out.iterdir()
    }
    assert {path.parent.name for path in out.glob("models/*/config.pbtxt")} == {
        f"encoder-{name}" for name in told
    }
    kept = (home / "encoder" / "1" / "model.onnx").read_bytes()
    assert kept == (out / "models" / "encoder-int8" / "1" / "model.onnx").read_bytes()


def test_bad_requests_are_told_in_a_line_before_anything_is_written(source, tmp_path):
    def run(path: Path, *words: object) -> None:
        call("compress", "encoder", "--source", path, "--out", tmp_path / "out", *QUICK, *words)

    with pytest.raises(MissingPart, match="is not there"):
        run(tmp_path / "nothing.bin")
    torn = tmp_path / "torn.bin"
    torn.write_bytes(source.read_bytes()[:400])
    with pytest.raises(EncoderNotConvertible, match="not a whole packed E5"):
        run(torn)
    with pytest.raises(CannotCompress, match="no variant 'int3'"):
        run(source, "--variant", "int3")
    with pytest.raises(CannotCompress, match="no variant 'small'"):
        run(source, "--keep", "small")
    torn.write_text("words")
    with pytest.raises(BadInput, match="no questions and answers"):
        run(source, "--faq", torn)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_damaged_tokenizer_is_told_in_a_line(tmp_path):
    tiny_bert.write(tmp_path, tiny_bert.weights())
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(EncoderNotConvertible, match="is damaged"):
        Source(tmp_path)


def test_too_little_disk_or_memory_is_told_before_anything_is_written(source, tmp_path, monkeypatch):
    whole = Source(source)
    disk, memory = whole.needs(())
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=memory - 1))
    with pytest.raises(MissingPart, match="of memory"):
        compress(whole, tmp_path / "out", Plan(), print)
    monkeypatch.setattr("infra.llm.convert.shutil.disk_usage", lambda path: SimpleNamespace(free=disk - 1))
    with pytest.raises(MissingPart, match="Make room"):
        compress(whole, tmp_path / "out", Plan(), print)
    assert not (tmp_path / "out").exists()
