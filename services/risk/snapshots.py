"""The state on this worker's disk, as of a commit, so that a restart reads only what came after it.

Each file is of one commit, written while deciding goes on. The changelog is read on from an offset that was
its end before that commit: its rows are whole, so reading a few of them twice changes nothing.
"""

import asyncio
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from services.risk.changelog import Replica
from services.risk.positions import Positions
from services.risk.state import RiskState
from weir.config import KafkaSettings
from weir.errors import IntegrityError, MissingPart, WeirError
from weir.features.accounts import Accounts
from weir.features.terminals import Terminals
from weir.obs.log import get_logger
from weir.obs.stream_metrics import StreamMetrics
from weir.state.pin import SnapshotClosed, SnapshotGivenUp
from weir.streams import journal
from weir.streams.history import end_offsets
from weir.streams.journal import Mark

log = get_logger("weir.risk.snapshots")


class _Table(Protocol):
    """A table as of a commit, which any thread may write."""

    def write(self, path: Path, about: Mapping[str, Any] | None = None) -> int:
        """The bytes written."""


class Snapshots:
    """Writes and finds the snapshots of one worker.

    Args:
        folder: this worker's own; made when it is missing.
        changelog: the topic whose end is noted.
    """

    def __init__(
        self, folder: Path, kafka: KafkaSettings, changelog: str, *, client_id: str, metrics: StreamMetrics
    ) -> None:
        self._folder, self._kafka, self._changelog = folder, kafka, changelog
        self._client_id, self._metrics = client_id, metrics
        self._positions: dict[int, int] = {}

    def accounts_path(self, partition: int) -> Path:
        """Where a partition's accounts are."""
        return self._folder / f"accounts-{partition}.state"

    @property
    def terminals_path(self) -> Path:
        """Where the terminals are."""
        return self._folder / "terminals.state"

    def positions(self) -> dict[int, int]:
        """Of each partition that has a snapshot here, the input's offset that it stands for, roughly."""
        return dict(self._positions)

    async def write(self, state: RiskState) -> None:
        """Write all that is held, as of the last commit; a file that cannot be written stays as it was."""
        begun_s = time.monotonic()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._failed(self._folder, error)
            self._metrics.snapshot_failed()
            return
        ends = await end_offsets(self._kafka, self._changelog, self._client_id)
        positions = state.committed_positions.copy()
        failed = False
        with ExitStack() as pins:
            files: list[tuple[Path, _Table, dict[str, Any]]] = []
            for partition, accounts in state.accounts.items():
                if partition in positions.inputs:
                    mark = journal.encode(state.mark(partition, positions))
                    about = {"mark": mark.hex(), "changelog_offset": ends[partition]}
                    files.append((self.accounts_path(partition), pins.enter_context(accounts.pin()), about))
            terminals = pins.enter_context(state.terminals.pin())
            files.append((self.terminals_path, terminals, {"positions": _as_dict(positions)}))
            for path, saving, about in files:
                try:
                    await asyncio.to_thread(saving.write, path, about)
                except (OSError, SnapshotGivenUp, SnapshotClosed) as error:
                    failed = True
                    self._failed(path, error)
        if failed:
            self._metrics.snapshot_failed()
            return
        self._positions = dict(positions.inputs)
        self._metrics.snapshot_written(time.time())
        log.debug("snapshots_written", files=len(files), duration_s=round(time.monotonic() - begun_s, 3))

    def _failed(self, path: Path, error: OSError | WeirError) -> None:
        said = error.strerror if isinstance(error, OSError) else None
        log.error("snapshot_not_written", file=path.name, error=said or str(error))

    def load_accounts(self, state: RiskState, partition: int, since: int = 0) -> tuple[Replica, int]:
        """The partition's accounts of the last snapshot, and where the changelog goes on.

        Without one, or with one that is damaged: none, and the changelog's beginning.

        Args:
            since: where the changelog begins, as far as is known; a snapshot of before is none.
        Raises:
            StateFull: the snapshot holds more than the worker may.
        """
        path = self.accounts_path(partition)
        try:
            accounts, header = Accounts.load(path, state.spec, rows_max=state.accounts_max)
            mark = journal.decode(bytes.fromhex(header["mark"]), Mark, str(path))
            if mark.since >= since:
                return Replica.of_snapshot(accounts, mark), int(header["changelog_offset"])
        except MissingPart:
            pass  # the changelog alone will do
        except IntegrityError as error:
            self._damaged(error)
        return Replica(state.new_accounts(), since=since), since

    def load_terminals(self, state: RiskState) -> bool:
        """Give the state the terminals of the last snapshot, and its positions; whether there was one."""
        try:
            terminals, header = Terminals.load(
                self.terminals_path, state.spec, rows_max=state.terminals.rows.row_max
            )
        except MissingPart:
            return False
        except IntegrityError as error:
            self._damaged(error)
            return False
        state.terminals = terminals
        state.positions = positions_of(header)
        return True

    def _damaged(self, error: IntegrityError) -> None:
        self._metrics.damaged("snapshot")
        log.error("snapshot_damaged", error=str(error))


def _as_dict(positions: Positions) -> dict[str, dict[str, int]]:
    return {
        name: {str(number): offset for number, offset in getattr(positions, name).items()}
        for name in ("seen", "journal", "labels")
    }


def positions_of(header: Mapping[str, Any]) -> Positions:
    """What the terminals in a snapshot stand for, by the file's header."""
    kept: dict[str, dict[str, int]] = header["positions"]
    seen, read, labels = (
        {int(number): offset for number, offset in kept[name].items()}
        for name in ("seen", "journal", "labels")
    )
    return Positions(seen=seen, journal=read, labels=labels)
