"""The shipped model through a real Triton answers as its file does, with reasons that add up."""

import numpy as np
import tritonclient.grpc

from infra.local import layout
from services.training.repository import ModelRepository
from weir.features.payments import FEATURES


def test_triton_serves_the_shipped_model_and_its_reasons_add_up(triton):
    served = ModelRepository(layout.MODEL_SOURCES).open("risk", "1", features=FEATURES)
    random = np.random.default_rng(11)
    x = random.lognormal(0, 2, (4096, len(FEATURES))).astype(np.float32)
    x[random.random(x.shape) < 0.4] = 0
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}")
    try:
        features = tritonclient.grpc.InferInput("features", x.shape, "FP32")
        features.set_data_from_numpy(x)
        answer = client.infer("risk", [features], model_version="1")
    finally:
        client.close()
    for name, expected in served.run(x).items():
        # Threads may add the trees in another order: the last bits differ.
        np.testing.assert_allclose(answer.as_numpy(name), expected, atol=1e-5, err_msg=name)
    total = served.about["base_logit"] + answer.as_numpy("contributions").sum(axis=1, dtype=np.float64)
    np.testing.assert_allclose(answer.as_numpy("logit").ravel(), total, atol=1e-4)
