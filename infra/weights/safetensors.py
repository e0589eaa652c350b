"""Tensors in safetensors files, read where they lie, as numpy arrays.

Own code, not the library of that name: under numpy it refuses BF16, in which language models are published.
Source of the layout: the format's description (8 bytes of header length, JSON, data).
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weir.errors import IntegrityError

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
}
_HEADER_BYTES_MAX = 100_000_000


class SafetensorsBroken(IntegrityError):
    """The file ends early, is none, or holds a type that is not read."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            f"{path.name}: {why}, not whole safetensors of 32- or 16-bit floats. Get the file again."
        )


class Safetensors(Mapping[str, NDArray[Any]]):
    """The tensors of one file or of several together; each is read when it is asked for.

    Floats of 16 bits come as float32, integers as int64.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        """Read the heads.

        Raises:
            SafetensorsBroken: see there.
        """
        self._entries: dict[str, tuple[NDArray[np.uint8], str, tuple[int, ...]]] = {}
        for path in paths:
            try:
                self._entries |= _entries(path)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise SafetensorsBroken(path, "damaged") from error

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor by its name.

        Raises:
            KeyError: there is none.
        """
        data, kind, shape = self._entries[name]
        values: NDArray[Any] = data.view(_DTYPES[kind]).reshape(shape)
        if kind == "BF16":
            # The upper half of a 32-bit float.
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32) if kind == "F16" else values

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many tensors."""
        return len(self._entries)

    def kinds(self) -> dict[str, int]:
        """How many tensors are stored as which type."""
        found: dict[str, int] = {}
        for _, kind, _ in self._entries.values():
            found[kind] = found.get(kind, 0) + 1
        return found


def _entries(path: Path) -> dict[str, tuple[NDArray[np.uint8], str, tuple[int, ...]]]:
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(_HEADER_BYTES_MAX, data.size - 8):
        raise ValueError("no header")
    header = json.loads(data[8 : 8 + length].tobytes())
    found: dict[str, tuple[NDArray[np.uint8], str, tuple[int, ...]]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        kind, shape = str(entry["dtype"]), tuple(int(size) for size in entry["shape"])
        start, end = (8 + length + int(offset) for offset in entry["data_offsets"])
        count = int(np.prod(shape, dtype=np.int64))
        if not 8 + length <= start <= end <= data.size or end - start != count * _DTYPES[kind].itemsize:
            raise ValueError(name)
        found[name] = (data[start:end], kind, shape)
    return found
