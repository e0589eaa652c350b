"""ModelInferRequest and ModelInferResponse with their tensors left where they are.

Protobuf copies each tensor two or three times on its way; here a request is one join, and a response's
tensors are views on the received bytes. The small rest (names, shapes) is still read and written by protobuf,
so only two field numbers are known here, and tests hold this file against protobuf's own reading.

Source: KServe v2 `grpc_service.proto` (raw_input_contents = 7, raw_output_contents = 6);
https://protobuf.dev/programming-guides/encoding/ (fields may come in any order).
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

_RAW_INPUT_TAG = bytes([7 << 3 | 2])
_RAW_OUTPUT_FIELD = 6
_LENGTH_DELIMITED = 2
_HEADS_MAX = 4096

# Triton's names of the types whose bytes numpy reads as they are.
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
}


class Malformed(ValueError):
    """The bytes are not a response with readable tensors."""


class RequestWriter:
    """Writes the requests of one model and version; what precedes the tensor is built once for each shape."""

    def __init__(self, model: str, version: str, input_name: str, outputs: Sequence[str]) -> None:
        self._model, self._version, self._input_name, self._outputs = (
            model,
            version,
            input_name,
            tuple(outputs),
        )
        self._heads: dict[tuple[int, int], bytes] = {}

    def write(self, features: NDArray[np.float32]) -> bytes:
        """The request for (n, F) float32, C order."""
        row_count, width = features.shape
        head = self._heads.get((row_count, width))
        if head is None:
            if len(self._heads) >= _HEADS_MAX:
                self._heads.clear()
            head = self._heads[row_count, width] = self._head(row_count, width)
        return b"".join((head, _varint(features.nbytes), features.data.cast("B")))

    def _head(self, row_count: int, width: int) -> bytes:
        request = pb.ModelInferRequest(model_name=self._model, model_version=self._version)
        request.inputs.add(name=self._input_name, datatype="FP32", shape=[row_count, width])
        for name in self._outputs:
            request.outputs.add(name=name)
        head: bytes = request.SerializeToString()
        return head + _RAW_INPUT_TAG


def read_response(data: bytes) -> tuple[str, dict[str, NDArray[Any]]]:
    """The model's version and its tensors by name, read-only views on `data`.

    Raises:
        Malformed: not a response, or a tensor without raw bytes, of a type that is not read here, or of
            another size than its shape says.
    """
    position, end = 0, len(data)
    rest: list[bytes] = []
    tensors: list[tuple[int, int]] = []
    while position < end:
        begun = position
        tag, position = _read_varint(data, position)
        if tag & 7 != _LENGTH_DELIMITED:
            raise Malformed("a field of an unknown wire type")
        length, position = _read_varint(data, position)
        if length > end - position:
            raise Malformed("it ends inside a field")
        if tag >> 3 == _RAW_OUTPUT_FIELD:
            tensors.append((position, length))
        else:
            rest.append(data[begun : position + length])
        position += length
    version, outputs = _described(b"".join(rest))
    if len(tensors) != len(outputs):
        raise Malformed(f"{len(outputs)} outputs, {len(tensors)} of them with raw bytes")
    return version, {
        name: _view(data, offset, length, name, datatype, shape)
        for (name, datatype, shape), (offset, length) in zip(outputs, tensors, strict=True)
    }


@lru_cache(maxsize=1024)
def _described(rest: bytes) -> tuple[str, tuple[tuple[str, str, tuple[int, ...]], ...]]:
    """The model's version, and each output's name, type and shape: the same bytes for as many rows."""
    try:
        response = pb.ModelInferResponse.FromString(rest)
    except ValueError as error:  # protobuf's DecodeError is one
        raise Malformed("its names and shapes cannot be read") from error
    return response.model_version, tuple(
        (output.name, output.datatype, tuple(output.shape)) for output in response.outputs
    )


def _view(
    data: bytes, offset: int, length: int, name: str, datatype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise Malformed(f"output {name} is {datatype}, which is not a plain number")
    count = 1
    for size in shape:
        count *= size
    if any(size < 0 for size in shape) or count * dtype.itemsize != length:
        raise Malformed(f"output {name} has {length} bytes for shape {list(shape)} of {datatype}")
    return np.frombuffer(data, dtype, count, offset).reshape(shape)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise Malformed("it ends inside a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
