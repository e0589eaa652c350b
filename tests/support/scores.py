"""What the shipped model says of payments, computed in this process: no Kafka, no Triton, no worker."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from infra.local import layout
from weir.codec.columns import StringColumn
from weir.features.payments import Payments, PaymentState
from weir.state.hashing import keyed_hash

MODEL = layout.MODEL_SOURCES / "risk" / "1"
Floats = NDArray[np.float32]


def model_card() -> dict[str, Any]:
    """The model's model.json."""
    return dict(json.loads((MODEL / "model.json").read_text()))


def scored_here(records: Sequence[dict[str, Any]]) -> tuple[Floats, Floats, Floats]:
    """Logit, probability and contributions of point-of-sale payments in euro that nothing came before."""
    state = PaymentState(accounts_max=10_000, terminals_max=10_000)
    features = state.observe(
        Payments(
            account=_hashes([each["account_id"] for each in records]),
            terminal=_hashes([each["terminal_id"] for each in records]),
            amount=np.array([int(each["amount"] * 10_000) for each in records], np.int64),
            event_ms=np.array([round(each["event_time"].timestamp() * 1000) for each in records], np.int64),
            channel=np.zeros(len(records), np.int8),
        )
    )
    session = onnxruntime.InferenceSession(MODEL / "model.onnx")
    logit, probability, contributions = session.run(
        ["logit", "probability", "contributions"], {"features": features}
    )
    return logit[:, 0], probability[:, 0], contributions


def _hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    return keyed_hash(StringColumn.from_list([text.encode() for text in texts]), b"any key of tests")
