"""A language model in Triton's Python backend: many conversations at once, vLLM's tensor names.

The same client talks to this on a CPU and to Triton's vLLM or TensorRT-LLM backend on a GPU. `execute` only
takes requests; a thread of its own computes, and sends each piece of text as it is made.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

# ONNX Runtime from 1.29 on reports to its maker unless this is set before it is first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# The stub embeds an interpreter of its own, which does not know the environment that holds onnxruntime.
sys.path[:0] = [path for path in os.environ.get("WEIR_TRITON_SITE_PACKAGES", "").split(os.pathsep) if path]
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402 - the paths come first
import triton_python_backend_utils as pb_utils  # noqa: E402 - the paths come first
from batching import Batcher, Busy, Refused, Request  # noqa: E402 - the paths come first
from engine import Engine  # noqa: E402 - the paths come first
from text import Sampling  # noqa: E402 - the paths come first
from tokenizers import Tokenizer  # noqa: E402 - the paths come first

_TOKENS_MAX_DEFAULT = 256
_KNOWN = {"max_tokens", "temperature", "top_p", "seed", "stop"}
_IDLE_S = 0.2


class _Measures:
    """Counters beside Triton's own, on its metrics port."""

    def __init__(self, model: str) -> None:
        self._model, self._metrics = model, {}
        for name, what in (
            ("requests_total", "Answers ended, by reason."),
            ("tokens_total", "Tokens generated."),
            ("prompt_tokens_total", "Tokens of prompts."),
            ("queue_seconds_total", "Time that requests waited for a place."),
            ("first_token_seconds_total", "Time from a request to its first piece of text."),
        ):
            self._metrics[name] = pb_utils.MetricFamily(
                name=f"weir_llm_{name}", description=what, kind=pb_utils.MetricFamily.COUNTER
            )
        self._metrics["conversations"] = pb_utils.MetricFamily(
            name="weir_llm_conversations",
            description="Answers under way.",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._open = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self._of(name, labels).increment(amount)

    def set(self, name: str, value: float) -> None:
        self._of(name, {}).set(value)

    def _of(self, name: str, labels: dict):
        key = (name, *sorted(labels.items()))
        if key not in self._open:
            self._open[key] = self._metrics[name].Metric(labels={"model": self._model, **labels})
        return self._open[key]


class TritonPythonModel:
    """One instance of one version of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model, take the buffers of all conversations, and begin to compute."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        folder = Path(parameters["folder"])
        self._engine = Engine(
            folder,
            rows_max=int(parameters.get("conversations_max", "8")),
            threads=int(parameters.get("intra_op_thread_count", "1")),
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._measures = _Measures(args["model_name"])
        # Answers under way, by the id of their request.
        self._answers: dict[str, _Answer] = {}
        self._batcher = Batcher(
            self._engine,
            self._tokenizer,
            waiting_max=int(parameters.get("waiting_max", "64")),
            measured=lambda queue_s: self._measures.add("queue_seconds_total", queue_s),
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def execute(self, requests: list) -> None:
        """Take the requests; their answers come from the thread."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                if _flag(request, "cancel"):
                    if (left := self._answers.get(request.request_id())) is not None:
                        left.is_left = True
                    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                else:
                    self._take(request, sender)
            except Busy as error:
                _send(sender, error=f"busy: {error}")
            except (Refused, ValueError, TypeError, OverflowError) as error:
                _send(sender, error=f"refused: {error}")
            except Exception as error:  # noqa: BLE001 - one request must not lose those behind it
                _send(sender, error=f"refused: {type(error).__name__} while reading the request")

    def _take(self, request, sender) -> None:
        """Hand a request on.

        Raises:
            Busy, Refused, ValueError, TypeError, OverflowError: it is not taken.
        """
        answer = _Answer(
            request.request_id(),
            sender,
            self._measures,
            streams=_flag(request, "stream"),
            ended=self._forget,
        )
        wanted = self._wanted(request, answer)
        if answer.request_id in self._answers:
            raise Refused("the answer to a request of the same id is under way")
        # First, for it may be over before `submit` returns.
        if answer.request_id:
            self._answers[answer.request_id] = answer
        try:
            self._batcher.submit(wanted)
        except (Busy, Refused):
            self._forget(answer)
            raise

    def _forget(self, answer) -> None:
        # Another one of the same id may have come since.
        if self._answers.get(answer.request_id) is answer:
            del self._answers[answer.request_id]

    def finalize(self) -> None:
        """End what is under way."""
        self._ending.set()
        self._batcher.arrived.set()
        self._thread.join()
        self._batcher.fail("the model is unloaded")

    def _compute(self) -> None:
        while not self._ending.is_set():
            if self._batcher.is_idle:
                self._measures.set("conversations", 0)
                self._batcher.arrived.wait(_IDLE_S)
                continue
            try:
                self._batcher.advance()
            except Exception as error:  # noqa: BLE001 - a broken step must end its answers, not hang them
                self._batcher.fail(f"{type(error).__name__} while computing")
            self._measures.set("conversations", self._engine.row_count)

    def _wanted(self, request, answer) -> Request:
        """What a request asks for.

        Raises:
            Refused, ValueError, TypeError, OverflowError: it is not understood.
        """
        prompt = _text(request, "text_input")
        if prompt is None:
            raise Refused("there is no text_input")
        asked = json.loads(_text(request, "sampling_parameters") or "{}")
        if not isinstance(asked, dict):
            raise Refused("sampling_parameters must be an object of JSON")
        if unknown := sorted(asked.keys() - _KNOWN):
            raise Refused(f"sampling parameter {unknown[0]} is not known here")
        stops = asked.get("stop") or []
        tokens = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        if self._engine.begin is not None:
            tokens = [self._engine.begin, *tokens]
        tokens_max = int(asked.get("max_tokens", _TOKENS_MAX_DEFAULT))
        if tokens_max < 1:
            raise Refused(f"max_tokens must be 1 or more, not {tokens_max}")
        self._measures.add("prompt_tokens_total", len(tokens))
        return Request(
            tokens,
            tokens_max,
            Sampling(
                float(asked.get("temperature", 0.0)),
                float(asked.get("top_p", 1.0)),
                int(asked.get("seed", 0)),
            ),
            [stops] if isinstance(stops, str) else [str(stop) for stop in stops],
            answer.show,
            answer.is_cancelled,
        )


class _Answer:
    """Sends one answer: piece by piece, or whole at its end.

    is_left: whether its reader has asked for its end.
    """

    def __init__(self, request_id: str, sender, measures: _Measures, *, streams: bool, ended) -> None:
        self.request_id = request_id
        self._sender, self._measures, self._streams, self._ended = sender, measures, streams, ended
        self.is_left = False
        self._began_s, self._whole, self._first = time.monotonic(), "", True

    def is_cancelled(self) -> bool:
        # A client that is gone has asked for nothing.
        return self.is_left or self._sender.is_cancelled()

    def show(self, piece: str, reason: str | None) -> None:
        if self._first and piece:
            self._first = False
            self._measures.add("first_token_seconds_total", time.monotonic() - self._began_s)
        if reason is None:
            self._measures.add("tokens_total")
            if self._streams:
                _send(self._sender, piece, final=False)
            else:
                self._whole += piece
            return
        self._ended(self)
        self._measures.add("requests_total", reason=reason.partition(":")[0])
        if reason.startswith("error"):
            _send(self._sender, error=reason)
        else:
            _send(self._sender, self._whole + piece, reason)


def _send(sender, piece: str = "", reason: str = "", *, error: str = "", final: bool = True) -> None:
    if error:
        response = pb_utils.InferenceResponse(error=pb_utils.TritonError(error))
    else:
        response = pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("text_output", np.array([piece.encode()], dtype=object)),
                pb_utils.Tensor("finish_reason", np.array([reason.encode()], dtype=object)),
            ]
        )
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)


def _text(request, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0].decode("utf-8")


def _flag(request, name: str) -> bool:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return tensor is not None and bool(tensor.as_numpy().reshape(-1)[0])
