"""Where a replay begins: with nothing, or with a worker's snapshot of one commit."""

import re
from dataclasses import dataclass
from pathlib import Path

from services.risk.positions import Positions
from services.risk.snapshots import positions_of
from services.risk.state import RiskState, StateTopics
from weir.errors import IntegrityError, MissingPart
from weir.features.accounts import Accounts
from weir.features.terminals import Terminals
from weir.streams import journal
from weir.streams.journal import Mark

_ACCOUNTS_FILE = re.compile(r"accounts-(\d+)\.state")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The most rows that the tables may have."""

    accounts_max: int
    terminals_max: int


def new_state(topics: StateTopics, sizes: Sizes) -> RiskState:
    """A state that knows nothing; what it would write goes nowhere."""
    return RiskState(
        topics, accounts_max=sizes.accounts_max, terminals_max=sizes.terminals_max, owner="replay"
    )


def from_nothing(partition: int, topics: StateTopics, sizes: Sizes) -> RiskState:
    """The state of a partition before its first payment."""
    state = new_state(topics, sizes)
    state.attach(partition, state.new_accounts(), 0, {})
    return state


def partitions_in(folder: Path) -> list[int]:
    """The partitions that have a snapshot of accounts in the folder.

    Raises:
        MissingPart: none has.
    """
    found = [match for path in folder.glob("accounts-*.state") if (match := _ACCOUNTS_FILE.match(path.name))]
    if not found:
        raise MissingPart(
            f"{folder}: no snapshot there. Name the folder `state` in a worker's data_dir, or a copy of it."
        )
    return sorted(int(match[1]) for match in found)


def from_snapshot(folder: Path, partition: int, topics: StateTopics, sizes: Sizes) -> RiskState:
    """The state of a partition as a worker saved it, with the positions that it stands for.

    Raises:
        MissingPart: the partition, or the terminals, have no snapshot there.
        IntegrityError: a file is damaged, of another feature spec, or the two are not of one commit.
    """
    state = new_state(topics, sizes)
    path = folder / f"accounts-{partition}.state"
    state.terminals, header = Terminals.load(
        folder / "terminals.state", state.spec, rows_max=sizes.terminals_max
    )
    state.positions = positions_of(header)
    accounts, about = Accounts.load(path, state.spec, rows_max=sizes.accounts_max)
    mark = journal.decode(bytes.fromhex(about["mark"]), Mark, str(path))
    if not _of_one_commit(mark, state.positions):
        raise IntegrityError(
            f"{folder}: the accounts of partition {partition} and the terminals are not of one commit: "
            "they were copied while a snapshot was written. Copy the folder again, or leave it out."
        )
    state.attach(partition, accounts, mark.next_offset, mark.labels)
    return state


def _of_one_commit(mark: Mark, positions: Positions) -> bool:
    """Accounts may have learnt labels that the terminals have yet to learn, but not the other way round."""
    ahead = all(mark.labels.get(number, 0) >= offset for number, offset in positions.labels.items())
    return ahead and mark.seen == positions.seen
