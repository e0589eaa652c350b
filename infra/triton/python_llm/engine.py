"""Continuous batching over ONNX Runtime: conversations join and leave while the others go on.

Row i of each buffer holds the keys and values of one conversation; rows 0 to n - 1 are in use. A step runs
rows at once, each at its own length. Whoever leaves is replaced by the last row, so that rows stay together.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

_PREFIXES_MAX = 4


class Engine:
    """One model and the buffers of its conversations; belongs to one thread.

    Args:
        folder: what `infra.llm.convert` wrote.
        rows_max: conversations at once; their buffers are taken now.
        threads: of ONNX Runtime.
    """

    def __init__(self, folder: Path, *, rows_max: int, threads: int = 1) -> None:
        about = json.loads((folder / "llm.json").read_text(encoding="utf-8"))
        shape = about["shape"]
        self.context: int = about["context"]
        self.ends: frozenset[int] = frozenset(about["ends"])
        self.begin: int | None = about["begin"]
        self.vocabulary: int = shape["vocabulary"]
        self.rows_max = rows_max
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # A thread that spins between two steps takes the core from whoever shares the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._sides = [
            f"{layer}.{side}" for layer in range(shape["layer_count"]) for side in ("key", "value")
        ]
        size = (rows_max, shape["kv_head_count"], self.context, shape["head_dim"])
        self._cache = [np.zeros(size, np.float32) for _ in self._sides]
        self.lengths: list[int] = []
        # Beginnings that prompts have in common, with their keys and values; the oldest goes first.
        self._prefixes: list[tuple[tuple[int, ...], list[np.ndarray]]] = []

    @property
    def row_count(self) -> int:
        """Conversations under way."""
        return len(self.lengths)

    def join(self) -> int:
        """A new row, without any token.

        Raises:
            RuntimeError: all rows are taken.
        """
        if self.row_count == self.rows_max:
            raise RuntimeError("all rows are taken")
        self.lengths.append(0)
        return self.row_count - 1

    def move(self, source: int, row: int) -> None:
        """Write one row over another."""
        length = self.lengths[source]
        for cache in self._cache:
            cache[row, :, :length] = cache[source, :, :length]
        self.lengths[row] = length

    def leave(self, row: int) -> None:
        """Give a row back; the last one takes its place."""
        if row != self.row_count - 1:
            self.move(self.row_count - 1, row)
        self.lengths.pop()

    def feed(self, row: int, tokens: Sequence[int]) -> np.ndarray:
        """(vocabulary,) float32: the logits after these tokens, which follow those that the row holds."""
        ids = np.array([tokens], np.int64)
        self.lengths[row] += len(tokens)
        return self._run(ids, [self.lengths[row]], row)[0]

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """(rows, vocabulary) float32: one token more for each of the first rows."""
        for row in range(len(tokens)):
            self.lengths[row] += 1
        return self._run(np.array(tokens, np.int64)[:, None], self.lengths[: len(tokens)], 0)

    def _run(self, ids: np.ndarray, lengths: Sequence[int], first: int) -> np.ndarray:
        count, longest = len(ids), max(lengths)
        mask = (np.arange(longest)[None] < np.array(lengths)[:, None]).astype(np.int64)
        logits = np.empty((count, 1, self.vocabulary), np.float32)
        binding = self._session.io_binding()
        for name, array in (("input_ids", ids), ("attention_mask", mask)):
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for side, cache in zip(self._sides, self._cache, strict=True):
            rows = cache[first : first + count]
            # The same memory in and out: what is there stays where it is, what is new is written behind it.
            binding.bind_input(f"past_key_values.{side}", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
            binding.bind_output(f"present.{side}", "cpu", 0, np.float32, rows.shape, rows.ctypes.data)
        self._session.run_with_iobinding(binding)
        return logits[:, 0]

    # -- beginnings in common ------------------------------------------------------------------------------

    def recall(self, row: int, tokens: Sequence[int]) -> int:
        """Put the longest known beginning of `tokens` into an empty row; how many tokens that is.

        At least the last token is left to be fed: its logits are what is wanted.
        """
        best, kept = 0, None
        for prefix, cache in self._prefixes:
            if best < len(prefix) < len(tokens) and tuple(tokens[: len(prefix)]) == prefix:
                best, kept = len(prefix), cache
        if kept is not None:
            for whole, part in zip(self._cache, kept, strict=True):
                whole[row, :, :best] = part
            self.lengths[row] = best
        return best

    def remember(self, row: int, prefix: Sequence[int]) -> None:
        """Keep the row's first keys and values for prompts that begin with the same tokens."""
        known = tuple(prefix)
        if not known or any(known == each for each, _ in self._prefixes):
            return
        kept = [cache[row, :, : len(known)].copy() for cache in self._cache]
        self._prefixes = [*self._prefixes, (known, kept)][-_PREFIXES_MAX:]
