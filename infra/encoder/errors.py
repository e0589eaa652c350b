"""Why an encoder is not converted."""

from pathlib import Path

from weir.errors import WeirError


class EncoderNotConvertible(WeirError):
    """The weights are broken, or of a kind that is not known here."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            f"{path.name}: {why}. BERT encoders with GELU are converted, from safetensors or a packed E5."
        )
