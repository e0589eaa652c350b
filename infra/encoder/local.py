"""A converted encoder in this process, for what is made at set-up, before any server runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

_ROWS = 16


class LocalEncoder:
    """The model in a repository's entry, as `infra.encoder.repository` writes it.

    Args:
        tokens_max: as of the client that asks it later.
    """

    def __init__(self, model: Path, *, tokens_max: int = 128, threads: int = 2) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.enable_truncation(tokens_max)
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(model / "1" / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) float32, each of length 1."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=True)
        # Alike in length together: what is padded is computed too.
        order = sorted(range(len(texts)), key=lambda row: sum(encoded[row].attention_mask))
        vectors: dict[int, NDArray[np.float32]] = {}
        for at in range(0, len(order), _ROWS):
            rows = order[at : at + _ROWS]
            length = max(sum(encoded[row].attention_mask) for row in rows)
            ids = np.array([encoded[row].ids[:length] for row in rows], np.int64)
            mask = np.array([encoded[row].attention_mask[:length] for row in rows], np.int64)
            (found,) = self._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
            vectors.update(zip(rows, found, strict=True))
        return np.stack([vectors[row] for row in range(len(texts))]).astype(np.float32)
