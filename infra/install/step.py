"""What a step of the set-up is."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from infra.install import stamp
from infra.install.progress import Reporter
from infra.local import layout


class Step(ABC):
    """One part of the set-up; done when its stamp holds what it would be made from now."""

    name: ClassVar[str]
    what: ClassVar[str]
    needs_mb: ClassVar[int]
    optional: ClassVar[bool] = False

    @property
    def stamp_path(self) -> Path:
        """Where the stamp lies."""
        return layout.HOME / "stamps" / self.name

    @abstractmethod
    def made_from(self) -> str:
        """The fingerprint of all that this step depends on."""

    @abstractmethod
    def is_there(self) -> bool:
        """A quick look at whether the result still exists."""

    @abstractmethod
    def make(self, reporter: Reporter) -> str:
        """Do it; a few words on what came of it.

        Raises:
            WeirError: says why not, and what to do.
        """

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return stamp.is_current(self.stamp_path, self.made_from()) and self.is_there()
