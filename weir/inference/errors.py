"""How a batch comes back without scores."""

from typing import ClassVar

from weir.errors import ExitCode, WeirError


class ModelError(WeirError):
    """Nothing of the batch was scored; `degraded_reason` is the word that its decisions carry."""

    degraded_reason: ClassVar[str] = "model_error"

    def __init__(self, model: str, endpoint: str, text: str) -> None:
        self.model, self.endpoint = model, endpoint
        super().__init__(f"{model} at {endpoint}: {text}")


class ModelUnavailable(ModelError):
    """Triton gave no answer before the deadline; the same batch may be scored later."""

    retriable = True
    exit_code = ExitCode.UNAVAILABLE
    degraded_reason = "model_unavailable"

    def __init__(self, model: str, endpoint: str, waited_s: float, cause: str = "") -> None:
        self.waited_s, self.cause = waited_s, cause
        why = f" ({cause})" if cause else ""
        super().__init__(model, endpoint, f"no answer in {waited_s:.3f} s{why}. Try `weir doctor triton`.")


class CircuitOpen(ModelUnavailable):
    """Not asked: the last batches got no answer, and it is not yet time to try again."""

    degraded_reason = "circuit_open"

    def __init__(self, model: str, endpoint: str) -> None:
        super().__init__(model, endpoint, 0.0, "circuit open")


class ModelRejected(ModelError):
    """Triton answered, but not with these scores: another model, shape, name or type, or not a number."""

    exit_code = ExitCode.CONFIG
    degraded_reason = "model_rejected"
