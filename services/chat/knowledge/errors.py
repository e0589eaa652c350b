"""What can go wrong with the bank's knowledge."""

from collections.abc import Sequence
from pathlib import Path

from weir.errors import IntegrityError, MissingPart, NeighbourUnavailable, WeirError


class ImportRefused(WeirError):
    """A folder was not taken in; the knowledge in use stays as it was.

    problems: one line for each document that is wrong.
    """

    def __init__(self, folder: Path, problems: Sequence[str]) -> None:
        self.folder, self.problems = folder, tuple(problems)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{folder}: nothing was imported: {problems[0]}{more}. Correct it and import again.")


class DocumentRefused(WeirError):
    """One document can't be read, or says something about itself that can't be."""

    def __init__(self, document: str, finding: str) -> None:
        self.document, self.finding = document, finding
        super().__init__(f"{document}: {finding}")


class KnowledgeMissing(MissingPart):
    """There is no knowledge, or no such version of it."""


class KnowledgeBroken(IntegrityError):
    """A version's parts are not what its manifest says; it is not searched."""

    def __init__(self, where: Path | str, finding: str) -> None:
        self.where, self.finding = where, finding
        super().__init__(
            f"{where}: {finding}. Restore it from a copy, or `weir knowledge use` another version."
        )


class KnowledgeStoreAway(NeighbourUnavailable):
    """The database of the knowledge gave no answer, or refused; what was loaded before is still searched."""

    degraded_reason = "knowledge_store_unavailable"

    def __init__(self, where: str, cause: str) -> None:
        self.where, self.cause = where, cause
        super().__init__(
            f"{where}: the knowledge's database gave no answer ({cause}). Check that it runs, and its rights."
        )
