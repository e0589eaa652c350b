"""The audit log's chain shows every change but a cut end, which a noted head shows."""

import errno
import json
import os
from datetime import UTC, datetime

import pytest

from services.keys.audit import AuditHead, AuditLog, AuditUnavailable, verify
from weir.errors import IntegrityError, MissingPart, NeighbourUnavailable

NOW = datetime(2026, 11, 2, tzinfo=UTC)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def write(path, count, *, start=0):
    log = AuditLog.open(path, now=NOW)
    heads = [log.append(now=NOW, event="handed_out", role="reader", n=start + i) for i in range(count)]
    log.close()
    return heads


def test_records_chain_over_restarts(path):
    write(path, 2)
    last = write(path, 2, start=2)[-1]
    assert verify(path) == last
    assert last.sequence == 4
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["sequence"] for r in records] == [1, 2, 3, 4]
    assert records[0]["previous"] == "0" * 64
    assert path.stat().st_mode & 0o777 == 0o600


def test_any_changed_byte_is_noticed_when_a_record_follows(path):
    """Every byte of every record but the last, whose digest only a noted head knows."""
    *_, noted = write(path, 3)
    good = path.read_bytes()
    last_line_at = good.rindex(b"\n", 0, -1) + 1
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(IntegrityError):
            verify(path, noted=noted)
        if at < last_line_at:
            with pytest.raises(IntegrityError):
                verify(path)


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_removed_or_repeated_record_is_noticed(path, removed):
    write(path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:removed] + lines[removed + 1 :]))
    with pytest.raises(IntegrityError, match=f"line {removed + 1}"):
        verify(path)
    path.write_bytes(b"".join(lines[: removed + 1] + lines[removed:]))
    with pytest.raises(IntegrityError, match=f"line {removed + 2}"):
        verify(path)
    with pytest.raises(IntegrityError):
        AuditLog.open(path, now=NOW)


def test_a_cut_end_is_noticed_against_a_noted_head(path):
    heads = write(path, 4)
    for noted in heads:
        assert verify(path, noted=AuditHead.parse(str(noted))) == heads[-1]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert verify(path) == heads[-2]
    with pytest.raises(IntegrityError, match="cut off"):
        verify(path, noted=heads[-1])


def test_a_torn_last_line_is_removed_at_the_next_start_and_told(path):
    write(path, 2)
    with path.open("ab") as file:
        file.write(b'{"sequence":3,"ti')
    assert verify(path).sequence == 2
    AuditLog.open(path, now=NOW).close()
    last = json.loads(path.read_text().splitlines()[-1])
    assert (last["event"], last["byte_count"]) == ("torn_record_removed", 17)
    assert verify(path).sequence == 3


def test_a_full_disk_leaves_the_log_as_it_was(path, monkeypatch):
    """The write stops half-way, as on a full disk; the next record follows the last whole one."""
    log = AuditLog.open(path, now=NOW)
    log.append(now=NOW, event="handed_out")
    before, write_for_good, calls = path.read_bytes(), os.write, []

    def full(descriptor, data):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_for_good(descriptor, bytes(data[:10]))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(AuditUnavailable, match="No space left on device"):
        log.append(now=NOW, event="handed_out")
    monkeypatch.undo()
    assert path.read_bytes() == before
    log.append(now=NOW, event="handed_out")
    log.close()
    assert verify(path).sequence == 2


def test_one_process_holds_the_log(path):
    log = AuditLog.open(path, now=NOW)
    with pytest.raises(NeighbourUnavailable, match="another key service"):
        AuditLog.open(path, now=NOW)
    log.close()
    AuditLog.open(path, now=NOW).close()


def test_odd_files_and_heads_are_refused(path):
    with pytest.raises(MissingPart):
        verify(path)
    for text in (b"[1]\n", b"\n", b"\xff\n", b'{"sequence":1}\n'):
        path.write_bytes(text)
        with pytest.raises(IntegrityError):
            verify(path)
    for text in ("", "1", "x:" + "0" * 64, "1:00"):
        with pytest.raises(ValueError, match="NUMBER"):
            AuditHead.parse(text)
