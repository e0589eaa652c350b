"""The floor of the benchmark of reasons is the served model's own score, and every way says what it times."""

import numpy as np
import onnx

from bench.compress import rows_of
from bench.reasons import FLOOR, alone, booster, session, ways
from infra.local import layout
from services.training.imported import from_onnx
from weir.features.payments import FEATURES

PROTO = onnx.load(layout.MODEL_SOURCES / "risk" / "1" / "model.onnx")


def test_the_trees_with_one_output_say_the_served_logit():
    x = rows_of(from_onnx(PROTO), 500, 3)
    (logit,) = session(PROTO).run(["logit"], {"features": x})
    (bare,) = session(alone(PROTO)).run(None, {"features": x})
    assert np.abs(logit - bare).max() < 1e-4
    assert np.ptp(logit) > 1


def test_each_way_does_its_work():
    model = from_onnx(PROTO)
    x = rows_of(model, 400, 3)
    timed = ways(PROTO, x[:16], booster(x, model.probability(x)))
    assert timed[FLOOR]()[0].shape == (16, 1)
    assert [each.shape for each in timed["with reasons"]()] == [(16, 1), (16, 1), (16, len(FEATURES))]
    assert timed["TreeSHAP of a free booster"]().shape == (16, len(FEATURES) + 1)
    index, _ = timed["strongest four"]()
    assert (index[:, 0] >= 0).all()
    assert timed["written with reasons"]().length.sum() > timed["written without"]().length.sum()
