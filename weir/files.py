"""What is to be on the disk when a call returns."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Return once the folder's own entries are on the disk: a rename is lost with the power without it.

    Raises:
        OSError: the folder is gone, or its disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
