"""The Triton client."""

from weir.inference._breaker import Breaker, Circuit
from weir.inference._retry import Deadline, RetryBudget
from weir.inference.client import ModelClient, ModelMetadata, TensorSpec
from weir.inference.errors import CircuitOpen, ModelError, ModelRejected, ModelUnavailable

__all__ = [
    "Breaker",
    "Circuit",
    "CircuitOpen",
    "Deadline",
    "ModelClient",
    "ModelError",
    "ModelMetadata",
    "ModelRejected",
    "ModelUnavailable",
    "RetryBudget",
    "TensorSpec",
]
