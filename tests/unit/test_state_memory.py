"""Memory: what the process may have, and the refusal before anything starts."""

from pathlib import Path

import numpy as np
import pytest

from weir.errors import ConfigError
from weir.features.accounts import Accounts
from weir.features.terminals import Terminals
from weir.state.memory import GIB, Need, NotEnoughMemory, Region, memory_limit, require_memory


def group(root: Path, lines: str, limits: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)
    for name, text in limits.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_tightest_limit_above_the_process_counts(tmp_path: Path) -> None:
    """Version 2: its own group has no limit, its parent has."""
    root = group(
        tmp_path,
        "0::/pods/worker\n",
        {"sys/fs/cgroup/pods/memory.max": "734003200\n", "sys/fs/cgroup/pods/worker/memory.max": "max\n"},
    )
    assert memory_limit(root) == 734_003_200


def test_a_container_sees_its_limit_at_the_mount(tmp_path: Path) -> None:
    """The group's path is the host's; inside, the files lie at the root."""
    root = group(tmp_path, "0::/kubepods/abc\n", {"sys/fs/cgroup/memory.max": "1073741824"})
    assert memory_limit(root) == GIB


def test_version_1_is_read_and_its_word_for_none_is_known(tmp_path: Path) -> None:
    lines = "9:cpu:/x\n4:memory:/x\n"
    name = "sys/fs/cgroup/memory/x/memory.limit_in_bytes"
    limited = group(tmp_path / "a", lines, {name: "536870912\n"})
    assert memory_limit(limited) == 536_870_912
    unlimited = group(tmp_path / "b", lines, {name: "9223372036854771712\n"})
    assert memory_limit(unlimited) == memory_limit(tmp_path / "nothing") > GIB // 4


def test_ten_million_accounts_fit_a_machine_of_24_gib() -> None:
    """In 4 and in 8 partitions, with two million terminals; half of the machine is left for the rest."""
    for partitions in (4, 8):
        needs = [
            *(Need("accounts", "risk.accounts_max", Accounts.bytes_max(10_000_000 // partitions)),)
            * partitions,
            Need("terminals", "risk.terminals_max", Terminals.bytes_max(2_000_000)),
        ]
        assert require_memory(needs, limit_bytes=24 * GIB) > 12 * GIB


def test_a_state_that_cannot_fit_is_refused_in_one_line_that_names_the_settings() -> None:
    needs = [
        Need("terminals", "risk.terminals_max", 2 * GIB),
        Need("accounts", "risk.accounts_max", 30 * GIB),
    ]
    with pytest.raises(NotEnoughMemory) as caught:
        require_memory(needs, limit_bytes=24 * GIB)
    assert isinstance(caught.value, ConfigError)
    assert str(caught.value) == (
        "The state may grow to 33.0 GiB (accounts 30.0, terminals 2.0, the rest 1.0), but this process may "
        "have 24.0 GiB. Lower risk.accounts_max or risk.terminals_max, or give it more memory."
    )


def test_a_region_is_zero_and_zero_again_where_it_was_cleared() -> None:
    region = Region(20 << 20)
    assert not region.bytes[:: 1 << 12].any()
    region.bytes[:] = 7
    region.clear(5_000_001, 13_000_001)
    assert (region.bytes[:5_000_001] == 7).all()
    assert not region.bytes[5_000_001:13_000_001].any()
    assert (region.bytes[13_000_001:] == 7).all()


def test_growth_moves_no_row() -> None:
    """The views that kernels hold stay those of the same memory."""
    accounts = Accounts(rows_max=100_000, rows_start=1)
    at = accounts.rows.table.u8.ctypes.data
    accounts.rows.put(np.ones((1, 512), np.uint8), 0)
    accounts.rows.reserve(100_000)
    assert accounts.rows.table.u8.ctypes.data == at
    assert accounts.rows.find(np.array([0x0101010101010101], np.uint64)).tolist() == [0]
