"""A tiny random BERT gives the same vectors as ONNX and as plain numpy."""

import json
from math import erf
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from infra.encoder import EncoderNotConvertible, convert

Floats = NDArray[np.floating]
D, HEADS, INNER, LAYERS, VOCABULARY = 8, 2, 16, 2, 20
EPSILON = 1e-12


def _weights() -> dict[str, Floats]:
    rng = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{k}_embeddings.weight": (n, D)
        for k, n in (("word", VOCABULARY), ("position", 12), ("token_type", 2))
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        sizes: dict[str, tuple[int, ...]] = {f"attention.self.{k}": (D, D) for k in ("query", "key", "value")}
        sizes |= {
            "attention.output.dense": (D, D),
            "intermediate.dense": (INNER, D),
            "output.dense": (D, INNER),
        }
        for name, size in sizes.items():
            shapes |= {f"{at}.{name}.weight": size, f"{at}.{name}.bias": size[:1]}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in shapes.items()}


def _write(folder: Path, weights: dict[str, Floats], **changed: object) -> None:
    header: dict[str, object] = {}
    data = b""
    for name, values in weights.items():
        start, data = len(data), data + values.tobytes()
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    config: dict[str, object] = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "num_hidden_layers": LAYERS,
        "hidden_size": D,
    }
    config |= {"num_attention_heads": HEADS, "layer_norm_eps": EPSILON} | changed
    (folder / "config.json").write_text(json.dumps(config))


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
    weights = _weights()
    _write(tmp_path, weights)
    convert(tmp_path, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.array([[1, 5, 9, 2, 3], [1, 7, 2, 0, 0]])
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    (got,) = session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
    wanted = np.stack([_expected(weights, [1, 5, 9, 2, 3]), _expected(weights, [1, 7, 2])])
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    weights = _weights()
    del weights["encoder.layer.1.output.dense.bias"]
    _write(tmp_path, weights)
    with pytest.raises(EncoderNotConvertible, match=r"layer\.1\.output\.dense\.bias"):
        convert(tmp_path, tmp_path / "model.onnx")


def test_another_kind_of_model_and_a_torn_file_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, _weights(), hidden_act="relu")
    with pytest.raises(EncoderNotConvertible, match="another kind"):
        convert(tmp_path, tmp_path / "model.onnx")
    _write(tmp_path, _weights())
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(EncoderNotConvertible, match="not whole"):
        convert(tmp_path, tmp_path / "model.onnx")
