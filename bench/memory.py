"""What an account and a terminal cost in memory, at a million of each."""

from dataclasses import dataclass

import numpy as np
import psutil

from weir.features.payments import Payments, PaymentState

_ROWS = 50_000
_START_MS = 1_760_000_000_000


@dataclass(frozen=True, slots=True)
class StateMemory:
    """Bytes for each entity: what the tables hold, growth room included, and what the process grew by."""

    count: int
    state_bytes: float
    resident_bytes: float


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _payments(account: np.ndarray, terminal: np.ndarray) -> Payments:
    n = len(account)
    return Payments(
        account.astype(np.uint64),
        terminal.astype(np.uint64),
        np.full(n, 125_000, np.int64),
        np.full(n, _START_MS, np.int64),
        np.zeros(n, np.int8),
    )


def of_state(count: int, *, accounts: bool) -> StateMemory:
    """Let `count` accounts (or terminals) pay once each, at one other side, and look."""
    state = PaymentState(
        accounts_max=count + 1 if accounts else 1000, terminals_max=1000 if accounts else count + 1
    )
    state.observe(_payments(np.array([1]), np.array([1])))
    empty, before = state.nbytes, _resident()
    # Spread over 64 bits as hashes are.
    ids = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    one = np.ones(_ROWS, np.uint64)
    for start in range(0, count, _ROWS):
        part = ids[start : start + _ROWS]
        other = one[: len(part)]
        state.observe(_payments(part, other) if accounts else _payments(other, part))
    held = state.account_count if accounts else state.terminal_count
    return StateMemory(held, (state.nbytes - empty) / held, (_resident() - before) / held)
