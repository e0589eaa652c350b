"""The budget ledger: what models have cost the people in a folder's events, and how much is left.

`privacy-ledger.jsonl` lies beside the events, one JSON object a line:

    {"kind": "budget", "fingerprint", "unit", "epsilon", "delta", "at", "previous"}
    {"kind": "spend", "fingerprint", "unit", "id", "mu", "at", "previous"}

`previous` is the SHA-256 of the line before, 64 zeros at the start: an edited line, and one cut out, break
the chain. A cut end leaves a whole chain, so `privacy-ledger.head` holds the last line's number and hash,
written after the line. A spend is on the disk before the run that it pays for computes anything; it stays
when the run fails. Damage is refused and never repaired by this program.

Who can write the folder can delete both files, or put old ones back. `spent` shows the head: noted elsewhere,
it shows that too.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.training.errors import TrainingError
from services.training.privacy.accountant import composed, epsilon_of, mu_of
from services.training.privacy.units import Unit
from weir.errors import IntegrityError
from weir.files import sync_folder

LEDGER, HEAD = "privacy-ledger.jsonl", "privacy-ledger.head"
_START = "0" * 64
_FIELDS = {
    "budget": {"kind": str, "fingerprint": str, "unit": str, "epsilon": float, "delta": float, "at": str},
    "spend": {"kind": str, "fingerprint": str, "unit": str, "id": str, "mu": float, "at": str},
}


class BudgetRefused(TrainingError):
    """No budget is set, or what is left of it does not pay for the run; nothing was spent."""


class LedgerDamaged(IntegrityError):
    """The ledger is not what was written: no run is allowed until a person has restored it."""

    def __init__(self, path: Path, finding: str) -> None:
        self.path, self.finding = path, finding
        super().__init__(
            f"{path}: {finding}. Nothing trains until it is restored from a copy; do not delete it."
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in all on these events: (epsilon, delta) for one unit."""

    unit: Unit
    epsilon: float
    delta: float

    @property
    def mu(self) -> float:
        """The same as Gaussian differential privacy."""
        return mu_of(self.epsilon, self.delta)


@dataclass(frozen=True, slots=True)
class Account:
    """Where a folder's events stand.

    spent: mu of each run, whatever the fingerprint it ran on. head: number of lines and the last one's hash.
    """

    budget: Budget | None
    spent: tuple[float, ...]
    lines: int
    head: str

    @property
    def mu(self) -> float:
        """Of all runs together."""
        return composed(self.spent)

    @property
    def mu_left(self) -> float:
        """What one more run may cost; 0 without a budget."""
        return 0.0 if self.budget is None else math.sqrt(max(self.budget.mu**2 - self.mu**2, 0.0))

    @property
    def epsilon_spent(self) -> float:
        """Of all runs together, at the budget's delta; nan without a budget."""
        return math.nan if self.budget is None else epsilon_of(self.mu, self.budget.delta)

    @property
    def epsilon_left(self) -> float:
        """The epsilon of the largest run that the budget still pays for, at its delta; 0 without a budget."""
        return 0.0 if self.budget is None else epsilon_of(self.mu_left, self.budget.delta)


class Ledger:
    """The ledger of one folder."""

    def __init__(self, folder: Path) -> None:
        self.path, self.head_path = folder / LEDGER, folder / HEAD

    @property
    def exists(self) -> bool:
        """Whether a budget was ever set here."""
        return self.path.exists() or self.head_path.exists()

    def account(self, fingerprint: str) -> Account:
        """Where the events of this fingerprint stand.

        Every run in this ledger counts, whatever its fingerprint: events that grew hold the earlier ones.

        Raises:
            LedgerDamaged: the chain is broken. OSError: the disk fails.
        """
        if not self.exists:
            return Account(None, (), 0, _START)
        with self._locked(create=False) as descriptor:
            return self._account(self._read(descriptor), fingerprint)

    def set_budget(self, fingerprint: str, budget: Budget, *, at: str) -> Account:
        """Write the total budget of these events, once.

        Args:
            at: the time, ISO 8601.
        Raises:
            BudgetRefused: there is one; runs before were of another unit; or they cost more already.
            TrainingError: epsilon or delta is out of range. LedgerDamaged. OSError.
        """
        ceiling = budget.mu
        with self._locked(create=True) as descriptor:
            entries = self._read(descriptor)
            before = self._account(entries, fingerprint)
            if before.budget is not None:
                raise BudgetRefused(
                    f"{self.path}: these events have a budget, epsilon {before.budget.epsilon:g}; "
                    "it is set once."
                )
            if any(entry["unit"] != budget.unit for entry, _ in entries):
                raise BudgetRefused(
                    f"{self.path}: earlier entries are of another unit, which does not add up with one "
                    f"{budget.unit}. Keep to that unit."
                )
            if before.mu > ceiling:
                raise BudgetRefused(
                    f"{self.path}: runs on earlier events here cost epsilon "
                    f"{epsilon_of(before.mu, budget.delta):.3f} already, more than {budget.epsilon:g}."
                )
            entry: dict[str, Any] = {"kind": "budget", "fingerprint": fingerprint, "unit": budget.unit.value}
            entry |= {"epsilon": float(budget.epsilon), "delta": float(budget.delta), "at": at}
            self._append(descriptor, entries, entry)
            return self._account(self._read(descriptor), fingerprint)

    def reserve(self, fingerprint: str, unit: Unit, mu: float, *, at: str) -> str:
        """The id of the spend, which is on the disk when this returns.

        Args:
            mu: what the run will cost one unit. at: the time, ISO 8601.
        Raises:
            BudgetRefused: no budget, another unit, or not enough left. LedgerDamaged. OSError.
        """
        with self._locked(create=False) as descriptor:
            entries = self._read(descriptor)
            account = self._account(entries, fingerprint)
            if account.budget is None:
                raise BudgetRefused(
                    f"{self.path}: no budget for these events as they are now. "
                    "Set one with `weir privacy budget DIR --epsilon E --delta D`."
                )
            if account.budget.unit is not unit:
                raise BudgetRefused(
                    f"{self.path}: the budget is of one {account.budget.unit}, the run of one {unit}: "
                    "they do not add up."
                )
            if not 0 < mu < math.inf or composed((*account.spent, mu)) > account.budget.mu * (1 + 1e-12):
                raise BudgetRefused(
                    f"{self.path}: the run asks for epsilon {epsilon_of(mu, account.budget.delta):.3f}; "
                    f"{account.epsilon_left:.3f} is left of {account.budget.epsilon:g} at delta "
                    f"{account.budget.delta:g}."
                )
            name = secrets.token_hex(8)
            entry = {
                "kind": "spend",
                "fingerprint": fingerprint,
                "unit": unit.value,
                "id": name,
                "mu": float(mu),
            }
            self._append(descriptor, entries, entry | {"at": at})
            return name

    @contextmanager
    def _locked(self, *, create: bool) -> Iterator[int]:
        """The ledger's descriptor while no other process has it."""
        if self.head_path.exists() and not self.path.exists():
            raise LedgerDamaged(self.path, "the ledger is gone and its head is there")
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError as error:
            raise BudgetRefused(
                f"{self.path} is not there: no budget is set. "
                "Set one with `weir privacy budget DIR --epsilon E --delta D`."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int) -> list[tuple[dict[str, Any], str]]:
        """Every entry with its line's hash, checked against the chain and the head."""
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            raw = file.read()
        if raw and not raw.endswith(b"\n"):
            raise LedgerDamaged(self.path, "the last line ends early")
        entries: list[tuple[dict[str, Any], str]] = []
        previous = _START
        for number, line in enumerate(raw.splitlines(), 1):
            entry = _entry(line)
            if entry is None:
                raise LedgerDamaged(self.path, f"line {number} is no entry")
            if entry["previous"] != previous:
                raise LedgerDamaged(self.path, f"line {number} does not follow the one before it")
            previous = hashlib.sha256(line).hexdigest()
            entries.append((entry, previous))
        self._check_head(entries)
        return entries

    def _check_head(self, entries: list[tuple[dict[str, Any], str]]) -> None:
        """The head may lag one line behind: the power went between the two writes."""
        lines = 0
        if self.head_path.exists():
            number, _, digest = (
                self.head_path.read_text(encoding="ascii", errors="replace").strip().partition(" ")
            )
            lines = int(number) if number.isdecimal() else 0
            if not 0 < lines <= len(entries) or entries[lines - 1][1] != digest:
                raise LedgerDamaged(self.path, "the last lines are not those that its head names")
        if len(entries) > lines + 1:
            raise LedgerDamaged(self.path, "its head is missing or old")

    def _append(
        self, descriptor: int, entries: list[tuple[dict[str, Any], str]], entry: dict[str, Any]
    ) -> None:
        """The entry's line, then the head, both on the disk; on failure the ledger is as it was."""
        last = entries[-1][1] if entries else _START
        if entries:
            self._write_head(len(entries), last)  # else a head one line behind would now be two behind
        line = json.dumps(entry | {"previous": last}, sort_keys=True, allow_nan=False).encode()
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line + b"\n") != len(line) + 1:
                raise OSError(errno.ENOSPC, "the disk is full")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise TrainingError(
                f"{self.path}: not written, so nothing is paid for: {error.strerror}."
            ) from error
        self._write_head(len(entries) + 1, hashlib.sha256(line).hexdigest())

    def _write_head(self, lines: int, digest: str) -> None:
        fresh = self.head_path.with_suffix(".head.new")
        with fresh.open("w", encoding="ascii") as file:
            file.write(f"{lines} {digest}\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.head_path)
        sync_folder(self.path.parent)

    def _account(self, entries: list[tuple[dict[str, Any], str]], fingerprint: str) -> Account:
        budgets = [
            Budget(Unit(entry["unit"]), entry["epsilon"], entry["delta"])
            for entry, _ in entries
            if entry["kind"] == "budget" and entry["fingerprint"] == fingerprint
        ]
        spent = tuple(entry["mu"] for entry, _ in entries if entry["kind"] == "spend")
        head = entries[-1][1] if entries else _START
        return Account(budgets[0] if budgets else None, spent, len(entries), head)


def _entry(line: bytes) -> dict[str, Any] | None:
    """The line's object, or None where a field is missing, of another type or out of range."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("previous"), str):
        return None
    fields = _FIELDS.get(str(entry.get("kind")))
    if fields is None or any(not isinstance(entry.get(name), kind) for name, kind in fields.items()):
        return None
    numbers = [entry[name] for name, kind in fields.items() if kind is float]
    known = entry["unit"] in set(Unit) and all(0 < number < math.inf for number in numbers)
    return entry if known else None
