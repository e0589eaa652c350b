"""A folder that only one process uses at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weir.errors import WeirError


class FolderInUse(WeirError):
    """Another process holds the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"{folder} is in use by another worker. Give each worker a data_dir of its own, or end the other."
        )


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The folder, made when it is missing, for the length of the block; the kernel frees it after a kill.

    Raises:
        FolderInUse: another process has it.
        WeirError: it can be neither made nor written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a")
    except OSError as error:
        raise WeirError(f"{folder}: {error.strerror}. Correct data_dir, or its rights.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUse(folder) from error
        yield folder
