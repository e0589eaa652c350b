"""A folder that appears only once all of it is written."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.training.errors import TrainingError


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """Where to write; it becomes `target` at the end, and nothing is left of it when that fails.

    Raises:
        TrainingError: `target` exists. OSError: the disk is full or not writable.
    """
    if target.exists():
        raise TrainingError(f"{target} exists. Name another folder, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield fresh
        fresh.chmod(0o755)
        fresh.rename(target)
    except BaseException:  # told onwards: no half of a folder stays, whatever ended it
        shutil.rmtree(fresh, ignore_errors=True)
        raise
