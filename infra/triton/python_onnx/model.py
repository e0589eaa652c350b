"""Serve a `model.onnx` from Triton's Python backend: the ONNX Runtime backend's part, without a GPU.

It takes the same tensors and the same parameters (`intra_op_thread_count`, `inter_op_thread_count`) as the
ONNX Runtime backend of Triton, so that one model repository serves both. Requests that the dynamic batcher
hands over together are run as one batch.
"""

import json
import os
import sys

# ONNX Runtime from 1.29 on reports to its maker unless this is set before it is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# The stub embeds an interpreter of its own, which does not know the environment that holds onnxruntime.
sys.path[:0] = [path for path in os.environ.get("WEIR_TRITON_SITE_PACKAGES", "").split(os.pathsep) if path]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

# The stub is built for numpy 1: with numpy 2 (Python 3.13) its arrays come out empty. There DLPack serves,
# which in turn crashes it with numpy 1. Text has no DLPack.
_BY_DLPACK = int(np.__version__.partition(".")[0]) >= 2


def _array(request, name: str, of_text: bool) -> np.ndarray:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return np.from_dlpack(tensor) if _BY_DLPACK and not of_text else tensor.as_numpy()


def _tensor(name: str, values: np.ndarray):
    values = np.ascontiguousarray(values)
    if _BY_DLPACK and not values.dtype.hasobject:
        return pb_utils.Tensor.from_dlpack(name, values)
    return pb_utils.Tensor(name, values)


class TritonPythonModel:
    """One instance of one version of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model that lies beside this file."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "1"))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "1"))
        # A thread that spins between two requests takes the core from the broker beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = {entry["name"]: entry["data_type"] == "TYPE_STRING" for entry in config["input"]}
        self._outputs = [entry["name"] for entry in config["output"]]
        self._batched = config.get("max_batch_size", 0) > 0

    def execute(self, requests: list) -> list:
        """Answer every request: all in one run where the model has a batch dimension."""
        if self._batched and len(requests) > 1:
            try:
                return self._together(requests)
            except Exception:  # noqa: BLE001, S110 - one bad request must not fail its neighbours: each runs alone
                pass
        return [self._alone(request) for request in requests]

    def _together(self, requests: list) -> list:
        columns = [
            [_array(request, name, of_text) for request in requests] for name, of_text in self._inputs.items()
        ]
        wanted = self._outputs
        values = self._session.run(
            wanted, {name: np.concatenate(column) for name, column in zip(self._inputs, columns, strict=True)}
        )
        ends = np.cumsum([len(rows) for rows in columns[0]])[:-1]
        parts = zip(*(np.split(value, ends) for value in values), strict=True)
        return [
            self._response(request, dict(zip(wanted, part, strict=True)))
            for request, part in zip(requests, parts, strict=True)
        ]

    def _alone(self, request):
        try:
            feed = {name: _array(request, name, of_text) for name, of_text in self._inputs.items()}
            return self._response(
                request, dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))
            )
        except Exception as error:  # noqa: BLE001 - the edge: Triton hands the text to the caller
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    @staticmethod
    def _response(request, values: dict):
        return pb_utils.InferenceResponse(
            [_tensor(name, values[name]) for name in request.requested_output_names()]
        )
