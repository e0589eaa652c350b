"""A row's score is the same bit for bit, whatever other rows are scored with it."""

import numpy as np
import onnxruntime
import pytest

from services.risk.scoring import ROW_MULTIPLE, rows_max_of
from services.risk.settings import RiskSettings
from tests.support.scores import MODEL
from weir.config import TritonSettings
from weir.inference import ModelClient

OUTPUTS = ("logit", "probability", "contributions")


@pytest.fixture(scope="module")
def model():
    options = onnxruntime.SessionOptions()
    # As Triton serves it: with more threads, how a tree's sums are split depends on the number of rows.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL / "model.onnx", options)


def features(model, count):
    numbers = np.random.default_rng(7)
    width = model.get_inputs()[0].shape[1]
    drawn = np.abs(numbers.standard_normal((count, width))) * np.exp(2 * numbers.standard_normal(width))
    return np.where(numbers.random(drawn.shape) < 0.3, 0, drawn).astype(np.float32)


class Asked(ModelClient):
    """A client whose calls are answered in this process."""

    def __init__(self, model, **options):
        super().__init__(TritonSettings(), "risk", "1", outputs=OUTPUTS, deadline_s=1, **options)
        self.model, self.row_counts = model, []

    def _call(self):
        async def call(request, timeout):  # noqa: ASYNC109 - as gRPC calls it
            (head,) = (each for each in self._writer._heads.items() if request.startswith(each[1]))
            rows, width = head[0]
            self.row_counts.append(rows)
            return np.frombuffer(request[-4 * rows * width :], np.float32).reshape(rows, width)

        return call

    def _checked(self, answer, row_count):
        assert len(answer) == row_count
        return dict(zip(OUTPUTS, self.model.run(OUTPUTS, {"features": answer}), strict=True))


async def test_a_rows_score_does_not_depend_on_the_batch_it_comes_in(model):
    rows = features(model, 4096)
    client = Asked(model, rows_max=1024, row_multiple=ROW_MULTIPLE)
    whole = dict(zip(OUTPUTS, model.run(OUTPUTS, {"features": rows}), strict=True))
    numbers = np.random.default_rng(8)
    for _ in range(400):
        count = int(numbers.integers(1, 1500))
        first = int(numbers.integers(0, len(rows) - count))
        part = await client.score(rows[first : first + count])
        for name, found in part.items():
            assert found.tobytes() == whole[name][first : first + count].tobytes(), (name, count)
    assert all(count % ROW_MULTIPLE == 0 and count <= 1024 for count in client.row_counts)


@pytest.mark.parametrize(("asked", "given"), [(1, 16), (16, 16), (100, 96), (1024, 1024), (4096, 4096)])
def test_rows_of_a_call_are_whole_multiples_within_what_is_set(asked, given):
    assert rows_max_of(RiskSettings(model_rows_max=asked)) == given


def test_a_maximum_that_is_no_multiple_is_refused(model):
    with pytest.raises(ValueError, match="multiple"):
        Asked(model, rows_max=100, row_multiple=16)
