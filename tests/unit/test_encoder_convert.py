"""A tiny random BERT gives the same vectors as ONNX and as plain numpy, of floats and of 4-bit blocks."""

from collections.abc import Mapping
from math import erf
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from infra.encoder import BertShape, EncoderNotConvertible, convert, read_folder, read_packed
from infra.encoder.local import LocalEncoder
from infra.encoder.repository import write_encoder
from infra.weights.safetensors import Safetensors, SafetensorsBroken
from services.chat.knowledge.encoding import marked
from tests.support import tiny_bert, tiny_e5
from tests.support.tiny_bert import write, write_tokenizer
from weir.errors import ConfigError

Arrays = Mapping[str, NDArray[Any]]
SMALL = BertShape(tiny_bert.LAYERS, tiny_bert.HEADS, tiny_bert.D, tiny_bert.EPSILON)
PACKED = BertShape(tiny_e5.LAYERS, tiny_e5.HEADS, tiny_e5.HIDDEN, tiny_e5.EPSILON)


def _expected(w: Arrays, shape: BertShape, ids: list[int]) -> NDArray[Any]:
    def dense(x: NDArray[Any], name: str) -> NDArray[Any]:
        out: NDArray[Any] = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return out

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + shape.epsilon)
        out: NDArray[Any] = x * w[f"{name}.weight"] + w[f"{name}.bias"]
        return out

    size = shape.hidden // shape.head_count
    x: NDArray[Any] = (
        w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(shape.layer_count):
        at = f"encoder.layer.{i}"
        mixed: list[NDArray[Any]] = []
        q, k, v = (dense(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        for h in range(shape.head_count):
            part = slice(h * size, (h + 1) * size)
            e = np.exp(q[:, part] @ k[:, part].T / np.sqrt(size))
            mixed.append(e / e.sum(-1, keepdims=True) @ v[:, part])
        x = norm(
            x + dense(np.hstack(mixed), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = dense(x, f"{at}.intermediate.dense")
        inner = inner * (1 + np.vectorize(erf)(inner / np.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = x.mean(0)
    unit: NDArray[Any] = mean / np.linalg.norm(mean)
    return unit


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_vectors_are_those_of_plain_numpy_whatever_the_padding(tmp_path: Path) -> None:
    tensors = tiny_bert.weights()
    write(tmp_path, tensors)
    write_tokenizer(tmp_path)
    convert(read_folder(tmp_path), tmp_path, tmp_path / "model.onnx")
    ids = np.array([[1, 5, 9, 2, 3], [1, 7, 2, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    session = _session(tmp_path / "model.onnx")
    (got,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    wanted = np.stack([_expected(tensors, SMALL, [1, 5, 9, 2, 3]), _expected(tensors, SMALL, [1, 7, 2])])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_packed_e5_gives_the_vectors_of_its_blocks(tmp_path: Path) -> None:
    data, weights = tiny_e5.packed()
    (tmp_path / "e5.bin").write_bytes(data)
    model = write_encoder(tmp_path / "e5.bin", tmp_path / "repository")
    ids, mask = [[0, 5, 6, 8, 9, 2], [0, 16, 2, 1, 1, 1]], [[1] * 6, [1, 1, 1, 0, 0, 0]]
    inputs = {"input_ids": np.array(ids), "attention_mask": np.array(mask)}
    (got,) = _session(model / "1" / "model.onnx").run(["embedding"], inputs)
    wanted = np.stack([_expected(weights, PACKED, ids[0]), _expected(weights, PACKED, ids[1][:3])])
    # Products quantise what stands left of them to 8 bits.
    assert ((got * wanted).sum(axis=1) > 0.999).all()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    assert tokenizer.encode("query: ａ  b卡\x01").tokens == [
        "<s>",
        "▁query",
        ":",
        "▁a",
        "▁",
        "b",
        "卡",
        "</s>",
    ]


async def test_questions_and_passages_are_marked_as_the_encoder_was_trained(tmp_path: Path) -> None:
    (tmp_path / "e5.bin").write_bytes(tiny_e5.packed()[0])
    model = write_encoder(tmp_path / "e5.bin", tmp_path / "repository")
    local = LocalEncoder(model)
    both = marked(local, model / "tokenizer.json")
    assert np.allclose(await both.asked(["a b"]), await local(["query: a b"]))
    assert np.allclose(await both.passages(["a b"]), await local(["passage: a b"]))
    (model / "marks.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"marks\.json"):
        marked(local, model / "tokenizer.json")
    (model / "marks.json").unlink()
    plain = marked(local, model / "tokenizer.json")
    assert np.allclose(await plain.asked(["a b"]), await local(["a b"]))


@pytest.mark.parametrize("change", ["magic", "version", "torn", "empty"])
def test_a_packed_file_that_is_none_is_refused_in_one_line(tmp_path: Path, change: str) -> None:
    data = tiny_e5.packed()[0]
    torn = {"magic": b"GGUF" + data[4:], "version": data[:4] + b"\x09" + data[5:], "torn": data[:-40]}
    (tmp_path / "e5.bin").write_bytes(torn.get(change, b""))
    with pytest.raises(EncoderNotConvertible, match="not a whole packed E5"):
        read_packed(tmp_path / "e5.bin")


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    tensors = tiny_bert.weights()
    del tensors["encoder.layer.1.output.dense.bias"]
    write(tmp_path, tensors)
    write_tokenizer(tmp_path)
    with pytest.raises(EncoderNotConvertible, match=r"layer\.1\.output\.dense\.bias"):
        write_encoder(tmp_path, tmp_path / "repository")


def test_another_kind_of_model_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, tiny_bert.weights(), hidden_act="relu")
    with pytest.raises(EncoderNotConvertible, match="another kind"):
        write_encoder(tmp_path, tmp_path / "repository")
    write(tmp_path, tiny_bert.weights())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(EncoderNotConvertible, match="damaged"):
        write_encoder(tmp_path, tmp_path / "repository")


def test_floats_of_16_bits_come_whole_from_several_files(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [3.25, 0.0]], np.float32)
    halves = {
        "F16": values.astype("<f2").tobytes(),
        "BF16": (values.view(np.uint32) >> 16).astype("<u2").tobytes(),
    }
    for kind, data in halves.items():
        head = f'{{"{kind}": {{"dtype": "{kind}", "shape": [2, 2], "data_offsets": [0, 8]}}}}'.encode()
        (tmp_path / kind).write_bytes(len(head).to_bytes(8, "little") + head + data)
    found = Safetensors([tmp_path / kind for kind in halves])
    assert (set(found), found.kinds()) == (set(halves), {"F16": 1, "BF16": 1})
    for kind in halves:
        assert found[kind].dtype == np.float32
        np.testing.assert_array_equal(found[kind], values)


@pytest.mark.parametrize(
    "head", ['{"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}', "[", '{"a": 1}']
)
def test_a_head_that_says_something_else_is_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / "a").write_bytes(len(head).to_bytes(8, "little") + head.encode() + bytes(8))
    with pytest.raises(SafetensorsBroken, match="not whole safetensors"):
        Safetensors([tmp_path / "a"])
