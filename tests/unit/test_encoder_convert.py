"""A tiny random BERT gives the same vectors as ONNX and as plain numpy."""

from math import erf
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from infra.encoder import EncoderNotConvertible, convert
from tests.support.tiny_bert import EPSILON, HEADS, LAYERS, D, Floats, weights, write


def _expected(w: dict[str, Floats], ids: list[int]) -> Floats:
    def dense(x: Floats, name: str) -> Floats:
        out: Floats = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        return out

    def norm(x: Floats, name: str) -> Floats:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
        out: Floats = x * w[f"{name}.weight"] + w[f"{name}.bias"]
        return out

    x: Floats = (
        w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
    )
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        mixed: list[Floats] = []
        q, k, v = (dense(x, f"{at}.attention.self.{part}") for part in ("query", "key", "value"))
        for h in range(HEADS):
            part = slice(h * D // HEADS, (h + 1) * D // HEADS)
            e = np.exp(q[:, part] @ k[:, part].T / np.sqrt(D // HEADS))
            mixed.append(e / e.sum(-1, keepdims=True) @ v[:, part])
        x = norm(
            x + dense(np.hstack(mixed), f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        inner = dense(x, f"{at}.intermediate.dense")
        inner = inner * (1 + np.vectorize(erf)(inner / np.sqrt(2))) / 2
        x = norm(x + dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    mean = x.mean(0)
    unit: Floats = mean / np.linalg.norm(mean)
    return unit


def test_vectors_are_those_of_plain_numpy_whatever_the_padding(tmp_path: Path) -> None:
    tensors = weights()
    write(tmp_path, tensors)
    convert(tmp_path, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.array([[1, 5, 9, 2, 3], [1, 7, 2, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    (got,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    wanted = np.stack([_expected(tensors, [1, 5, 9, 2, 3]), _expected(tensors, [1, 7, 2])])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    tensors = weights()
    del tensors["encoder.layer.1.output.dense.bias"]
    write(tmp_path, tensors)
    with pytest.raises(EncoderNotConvertible, match=r"layer\.1\.output\.dense\.bias"):
        convert(tmp_path, tmp_path / "model.onnx")


def test_another_kind_of_model_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, weights(), hidden_act="relu")
    with pytest.raises(EncoderNotConvertible, match="another kind"):
        convert(tmp_path, tmp_path / "model.onnx")
    write(tmp_path, weights())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(EncoderNotConvertible, match="not whole"):
        convert(tmp_path, tmp_path / "model.onnx")
