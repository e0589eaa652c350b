"""Snapshots: exactly a commit point while the table goes on, whole or not at all, damage refused."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.states import frauds_of, random_payments, whole
from weir.errors import IntegrityError, MissingPart
from weir.features.accounts import Accounts
from weir.features.spec import FeatureSpec
from weir.features.terminals import Terminals, observe
from weir.state import pin as pins
from weir.state.pin import SnapshotClosed, SnapshotGivenUp
from weir.state.rows import OutOfEpoch
from weir.state.table import StateFull

Tables = tuple[Accounts, Terminals]


def tables(count: int = 20_000, accounts: int = 4_000) -> Tables:
    pair = Accounts(rows_max=50_000, rows_start=1), Terminals(rows_max=5_000, rows_start=1)
    for each in pair:
        each.begin(1)
    step(pair, 1, count, accounts)
    for each in pair:
        each.release(1)
    return pair


def step(pair: Tables, number: int, count: int = 500, accounts: int = 6_000) -> None:
    """Payments of old and of new accounts, and what was learnt of some."""
    batch = random_payments(number, count, accounts=accounts, terminals=500, days=1, first_day=number / 10)
    observe(*pair, batch)
    for each in pair:
        each.learn(frauds_of(batch, 7))


def epoch(pair: Tables, number: int) -> None:
    for each in pair:
        each.begin(number)
    step(pair, number)


def load(kind: str, path: Path, spec: FeatureSpec | None = None) -> tuple[Accounts | Terminals, dict]:
    if kind == "accounts":
        return Accounts.load(path, spec or FeatureSpec(), rows_max=50_000)
    return Terminals.load(path, spec or FeatureSpec(), rows_max=50_000)


@pytest.fixture(params=["accounts", "terminals"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def of(pair: Tables, kind: str) -> Accounts | Terminals:
    return pair[0] if kind == "accounts" else pair[1]


def test_a_loaded_table_is_the_saved_one_and_goes_on_as_it(kind: str, tmp_path: Path) -> None:
    pair = tables()
    path = tmp_path / "state"
    written = of(pair, kind).save(path, {"offsets": {"3": 17}})
    assert path.stat().st_size == written
    loaded, about = load(kind, path)
    assert about == {"offsets": {"3": 17}}
    assert whole(loaded) == whole(of(pair, kind))
    other = (loaded, pair[1]) if kind == "accounts" else (pair[0], loaded)
    fresh = tables()
    batch = random_payments(99, 2_000, accounts=9_000, terminals=900, days=1, first_day=3)
    assert np.array_equal(observe(*other, batch), observe(*fresh, batch))
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


class Stepping:
    """Lets the table's thread go on between any two chunks that the writer reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, between: Callable[[int], None]) -> None:
        self.chunks = 0
        entries = pins.Pin._entries

        def hooked(pin: pins.Pin) -> list:
            # The chunk has been copied; what changes now must not show in it.
            self.chunks += 1
            between(self.chunks)
            return entries(pin)

        monkeypatch.setattr(pins.Pin, "_entries", hooked)


def test_the_file_is_the_commit_point_whatever_happens_meanwhile(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs begin, are released and rolled back between chunks; two were open when the pin was set."""
    monkeypatch.setattr(pins, "CHUNK_ROWS", 37)
    pair = tables(accounts=900)
    for number in (2, 3):
        epoch(pair, number)
    held: dict[int, tuple] = {}
    for number in (4, 5):
        if number == 4:
            of(pair, kind).release(3)
            other = pair[1] if kind == "accounts" else pair[0]
            other.release(3)
            held[3] = whole(of(pair, kind))
        epoch(pair, number)
    saving = of(pair, kind).pin()
    number = 5

    def between(chunk: int) -> None:
        nonlocal number
        action = chunk % 5
        if action == 0:
            for each in pair:
                each.roll_back(number)
            number -= 1
        elif action < 4:
            number += 1
            epoch(pair, number)
        else:
            for each in pair:
                each.release(number - 1)

    stepping = Stepping(monkeypatch, between)
    path = tmp_path / "state"
    saving.write(path, {"epoch": 3})
    saving.close()
    assert stepping.chunks > 10
    loaded, about = load(kind, path)
    assert about == {"epoch": 3}
    assert whole(loaded)[0] == held[3][0]
    assert whole(loaded)[2] == held[3][2]
    assert whole(of(pair, kind)) != whole(loaded)


def test_what_the_writer_reads_is_not_written_over(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roll-back and new epochs come after the writer was given the copies, before it uses them."""
    pair = tables(accounts=900)
    held = whole(of(pair, kind))
    epoch(pair, 2)
    epoch(pair, 3)
    saving = of(pair, kind).pin()
    real, patches = pins.patch, 0

    def late(chunk: np.ndarray, first: int, rows: np.ndarray, words: np.ndarray) -> None:
        nonlocal patches
        patches += 1
        for number in (2, 3) if patches % 2 else (3,):
            if number == (2 if patches % 2 else 3):
                for each in pair:
                    each.roll_back(number)
            for each in pair:
                each.begin(number)
            step(pair, 50 + patches + number)
        real(chunk, first, rows, words)

    monkeypatch.setattr(pins, "patch", late)
    monkeypatch.setattr(pins, "CHUNK_ROWS", 100)
    path = tmp_path / "state"
    saving.write(path)
    saving.close()
    assert patches > 3
    loaded, _ = load(kind, path)
    assert whole(loaded)[0] == held[0]
    assert whole(loaded)[2] == held[2]


def test_a_snapshot_that_nobody_waits_for_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pin is closed under the writer, as when the one who ordered it is cancelled."""
    pair = tables()
    path = tmp_path / "state"
    pair[0].save(path, {"which": "old"})
    old = path.read_bytes()
    monkeypatch.setattr(pins, "CHUNK_ROWS", 100)
    saving = pair[0].pin()

    def between(chunk: int) -> None:
        if chunk == 3:
            saving.close()

    Stepping(monkeypatch, between)
    with pytest.raises(SnapshotClosed, match="closed while it was written"):
        saving.write(path, {"which": "new"})
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_snapshot_by_a_thread_while_deciding_goes_on(tmp_path: Path) -> None:
    """Real threads, no steps: the writer reads as fast as it can, the table changes as fast as it can."""
    pair = tables(60_000, accounts=30_000)
    held = whole(pair[0]), whole(pair[1])
    savings = [each.pin() for each in pair]
    failures: list[BaseException] = []
    done = threading.Event()

    def write() -> None:
        try:
            for number in range(3):
                for saving, name in zip(savings, ("accounts", "terminals"), strict=True):
                    saving.write(tmp_path / f"{name}{number}")
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    number = 1
    while not done.is_set() or number < 10:
        number += 1
        epoch(pair, number)
        if number % 3 == 0:
            for each in pair:
                each.roll_back(number)
            epoch(pair, number)
        for each in pair:
            each.release(number - 1)
    writer.join()
    assert not failures
    for saving in savings:
        saving.close()
    for number in range(3):
        for table, expected in zip(("accounts", "terminals"), held, strict=True):
            loaded, _ = load(table, tmp_path / f"{table}{number}")
            assert whole(loaded)[0] == expected[0]
            assert whole(loaded)[2] == expected[2]


def test_a_snapshot_that_would_keep_too_much_is_given_up_and_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tables()
    path = tmp_path / "state"
    pair[0].save(path, {"which": "old"})
    old = path.read_bytes()
    monkeypatch.setattr(pins, "CHUNK_ROWS", 100)
    saving = pair[0].pin(kept_rows_max=1_000)
    number = 1

    def between(chunk: int) -> None:
        nonlocal number
        number += 1
        epoch(pair, number)
        for each in pair:
            each.release(number)

    Stepping(monkeypatch, between)
    with pytest.raises(SnapshotGivenUp, match="over 1,000 rows changed"):
        saving.write(path, {"which": "new"})
    saving.close()
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    # Nothing is kept for it any more, and the next one may begin.
    assert not pair[0].rows.outstanding
    pair[0].pin().close()


def test_one_snapshot_of_a_table_at_a_time() -> None:
    accounts = Accounts(rows_max=10)
    with accounts.pin(), pytest.raises(OutOfEpoch, match="pinned already"):
        accounts.pin()
    accounts.pin().close()


def test_any_flipped_byte_is_refused(kind: str, tmp_path: Path) -> None:
    """A bit of many bytes, the first 600 and the last 40 among them; a file cut short, and one too long."""
    path, broken = tmp_path / "state", tmp_path / "broken"
    of(tables(2_000, 300), kind).save(path, {"offsets": [1, 2, 3]})
    data = path.read_bytes()
    places = {*range(0, 600, 7), *range(0, len(data), 4_973), *range(len(data) - 40, len(data))}
    for at in sorted(places):
        broken.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(IntegrityError):
            load(kind, broken)
    for size in (0, 5, 200, len(data) - 1):
        broken.write_bytes(data[:size])
        with pytest.raises(IntegrityError):
            load(kind, broken)
    broken.write_bytes(data + b"x")
    with pytest.raises(IntegrityError, match="checksum"):
        load(kind, broken)


def test_another_spec_another_table_or_no_file_are_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    of(tables(200, 30), kind).save(path)
    with pytest.raises(IntegrityError, match="feature spec"):
        load(kind, path, FeatureSpec(label_delay_days=3))
    with pytest.raises(IntegrityError, match="holds no"):
        load("terminals" if kind == "accounts" else "accounts", path)
    with pytest.raises(MissingPart):
        load(kind, tmp_path / "none")


def test_a_table_that_is_too_large_for_its_settings_says_so(tmp_path: Path) -> None:
    path = tmp_path / "state"
    tables(2_000, 300)[0].save(path)
    with pytest.raises(StateFull, match="all 100 rows for accounts"):
        Accounts.load(path, rows_max=100)


def test_an_empty_table_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    table = Accounts(rows_max=10) if kind == "accounts" else Terminals(rows_max=10)
    table.save(tmp_path / "state", {"offset": 0})
    loaded, about = load(kind, tmp_path / "state")
    assert (loaded.row_count, about) == (0, {"offset": 0})


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails half way: no file of ours is left, and the old one is whole."""
    pair = tables(2_000, 300)
    path = tmp_path / "state"
    pair[0].save(path)
    old = path.read_bytes()
    calls = 0

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(28, "No space left on device")
        return len(data)

    monkeypatch.setattr("weir.state.snapshot.os.write", full)
    with pytest.raises(OSError, match="No space"):
        pair[0].save(path)
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
