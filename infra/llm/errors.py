"""Why weights are not converted."""

from pathlib import Path

from weir.errors import IntegrityError, WeirError


class NotConvertible(WeirError):
    """The file is whole, but of a kind that is not known here."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path.name}: {why}. Llama and Qwen2 are converted, from GGUF or safetensors.")


class WeightsBroken(IntegrityError):
    """The file ends early, or is none."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path.name}: {why}. Get the file again, and compare its checksum.")


class NotEvaluated(WeirError):
    """The file is not what the evaluation with a language model printed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path.name}: no evaluation. Make one with `weir evaluate chat --generate --json`.")
