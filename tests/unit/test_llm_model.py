"""The model that Triton's stub runs: a request that is refused touches no other of its id or its batch."""

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from infra.llm.convert import convert
from infra.local import layout
from tests.support.tiny_llm import TinyLlm

FINAL = 1
SHORT = '{"max_tokens": 9}'


class Sender:
    """Keeps what is sent to one client."""

    def __init__(self) -> None:
        self.error, self.is_over = "", False

    def is_cancelled(self) -> bool:
        return False

    def send(self, response=None, flags: int = 0) -> None:
        assert not self.is_over
        self.is_over = flags == FINAL
        self.error = getattr(response, "error", "") or self.error


class Asked:
    """One request."""

    def __init__(self, request_id: str = "", **tensors: str | bool) -> None:
        self.id, self.sender = request_id, Sender()
        self.tensors = {
            name: np.array([value.encode() if isinstance(value, str) else value], object)
            for name, value in tensors.items()
        }

    def request_id(self) -> str:
        return self.id

    def get_response_sender(self) -> Sender:
        return self.sender


def _utils() -> ModuleType:
    """Of `triton_python_backend_utils` what the model uses."""
    made = ModuleType("triton_python_backend_utils")
    series = SimpleNamespace(increment=lambda amount: None, set=lambda value: None)

    class MetricFamily:
        COUNTER, GAUGE = 0, 1

        def __init__(self, **about) -> None:
            pass

        def Metric(self, labels):
            return series

    def tensor_of(request, name):
        values = request.tensors.get(name)
        return None if values is None else SimpleNamespace(as_numpy=lambda: values)

    made.MetricFamily = MetricFamily
    made.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    made.TritonError = str
    made.Tensor = lambda name, values: (name, values)
    made.InferenceResponse = lambda tensors=(), error="": SimpleNamespace(tensors=tensors, error=error)
    made.get_input_tensor_by_name = tensor_of
    return made


@pytest.fixture
def model(monkeypatch, tmp_path) -> Iterator:
    """The model with a tiny network, at rest: a test computes the steps itself."""
    convert(TinyLlm(vocabulary=31, seed=11).write(tmp_path / "m.gguf"), tmp_path / "out", context=192)
    monkeypatch.syspath_prepend(str(layout.ROOT / "infra" / "triton" / "python_llm"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", _utils())
    served = importlib.import_module("model").TritonPythonModel()
    config = {"parameters": {"folder": {"string_value": str(tmp_path / "out")}}}
    served.initialize({"model_config": json.dumps(config), "model_name": "llm"})
    served._ending.set()
    served._batcher.arrived.set()
    served._thread.join()
    yield served
    served.finalize()
    for name in ("model", "batching", "engine", "text"):
        sys.modules.pop(name, None)


def answered(model, *asked: Asked) -> None:
    """Compute until all of these are over."""
    while not all(each.sender.is_over for each in asked):
        assert not model._batcher.is_idle
        model._batcher.advance()


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        ("[]", "must be an object of JSON"),
        ("7", "must be an object of JSON"),
        ('{"max_tokens": Infinity}', "cannot convert float infinity"),
        ('{"max_tokens": null}', "int"),
        ('{"max_tokens": 0}', "1 or more"),
        ('{"temperature": NaN}', "temperature must be"),
        ('{"temperature": 1, "seed": -1}', "seed must be 0 or more"),
        ('{"stop": 5}', "iterable"),
        ("{", "Expecting"),
        ("[" * 100_000, "RecursionError"),
    ],
)
def test_what_cannot_be_read_is_refused_and_those_behind_it_are_answered(model, sampling, why):
    bad = Asked("1", text_input="hello", sampling_parameters=sampling)
    behind = Asked("2", text_input="hello", sampling_parameters=SHORT)
    model.execute([bad, behind])
    assert bad.sender.error.startswith("refused: ")
    assert why in bad.sender.error
    answered(model, behind)
    assert not behind.sender.error
    assert not model._answers


def test_an_id_that_is_under_way_is_refused_and_the_answer_of_that_id_can_still_be_left(model):
    first, second = (Asked("same", text_input=text, sampling_parameters=SHORT) for text in ("hello", "abc"))
    model.execute([first, second])
    assert "same id is under way" in second.sender.error
    assert second.sender.is_over
    assert not first.sender.is_over
    model.execute([Asked("same", cancel=True)])
    assert model._answers["same"].is_left
    answered(model, first)
    again = Asked("same", text_input="abc", sampling_parameters=SHORT)
    model.execute([again])
    answered(model, again)
    assert not again.sender.error


def test_a_refused_request_takes_no_answer_of_its_id_away(model):
    first = Asked("same", text_input="hello", sampling_parameters=SHORT)
    model.execute([first])
    for refused in (
        Asked("same", text_input="hello", sampling_parameters="[]"),
        Asked("same", text_input="", sampling_parameters=SHORT),
        Asked("same"),
    ):
        model.execute([refused])
        assert refused.sender.error.startswith("refused: ")
    assert model._answers["same"].is_left is False
    too_long = Asked("other", text_input="a" * 300)
    model.execute([too_long])
    assert "more than the 192" in too_long.sender.error
    assert list(model._answers) == ["same"]


def test_requests_without_an_id_are_answered_side_by_side(model):
    asked = [Asked(text_input="hello", sampling_parameters=SHORT) for _ in range(3)]
    model.execute(asked)
    answered(model, *asked)
    assert not any(each.sender.error for each in asked)
