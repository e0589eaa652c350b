"""What can go wrong when a model is made, measured or checked."""

from pathlib import Path

from weir.errors import IntegrityError, MissingPart, WeirError


class TrainingError(WeirError):
    """The data or the request cannot give a model or a figure; nothing was written."""


class DataMissing(MissingPart):
    """There is no data where the caller pointed."""


class ModelMissing(MissingPart):
    """The model repository holds no such model or version."""

    def __init__(self, name: str, version: str, repository: Path) -> None:
        self.name, self.version, self.repository = name, version, repository
        super().__init__(f"{repository}: no version {version} of {name}. Try `weir models list`.")


class ModelBroken(IntegrityError):
    """A model's files do not agree with each other, or are damaged; do not serve it."""

    def __init__(self, folder: Path, finding: str) -> None:
        self.folder, self.finding = folder, finding
        super().__init__(f"{folder}: {finding}. Train it again, or restore the folder.")
