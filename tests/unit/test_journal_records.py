"""What a worker writes of itself: every version is read, a changed bit is not; tables are named."""

import msgspec
import pytest

from services.risk.ports import Tables
from services.risk.replay.versions import other_tables
from services.risk.state import NO_CANARY, BatchTrace, RiskState, StateTopics
from services.risk.validate import Rates
from weir.errors import IntegrityError
from weir.kafka.records import rows_of
from weir.streams import journal
from weir.streams.journal import JournalRecord, Mark

# As version 1 was written, before rates and reasons were named.
JOURNAL_1 = bytes.fromhex("9b010709810003810104cf0000018bcfe56800a16da170a0a46d652f31c4020102af67ea85")
MARK_1 = bytes.fromhex("970109810003810104920500a473706563a46d652f313fa37d41")
RATES = Rates.of({"EUR": 1.0, "USD": 0.9})


def test_records_of_the_first_version_are_read():
    told = journal.decode(JOURNAL_1, JournalRecord, "")
    assert told == JournalRecord(
        1, 7, 9, {0: 3}, {1: 4}, 1_700_000_000_000, "m", "p", "", "me/1", b"\x01\x02"
    )
    assert (told.rates, told.reasons) == ("", "")
    mark = journal.decode(MARK_1, Mark, "")
    assert mark == Mark(1, 9, {0: 3}, {1: 4}, [5, 0], "spec", "me/1")
    assert (mark.since, mark.whole) == (0, True)


def test_a_record_of_a_later_release_is_refused():
    later = msgspec.structs.replace(journal.decode(JOURNAL_1, JournalRecord, ""), version=4)
    with pytest.raises(IntegrityError, match="version 4, this release reads 1 to 3"):
        journal.decode(journal.encode(later), JournalRecord, "here")
    mark = msgspec.structs.replace(journal.decode(MARK_1, Mark, ""), version=3)
    with pytest.raises(IntegrityError, match="version 3"):
        journal.decode(journal.encode(mark), Mark, "here")


@pytest.mark.parametrize("bit", range(0, 8 * len(JOURNAL_1), 7))
def test_a_record_with_a_bit_changed_is_refused(bit):
    damaged = bytearray(JOURNAL_1)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError):
        journal.decode(bytes(damaged), JournalRecord, "here")


def told_of(tables: Tables, canary: tuple[str, float] = NO_CANARY) -> JournalRecord:
    """What a worker with these tables, and this canary, writes of a batch."""
    state = RiskState(StateTopics("accounts", "journal"), accounts_max=10, terminals_max=10, owner="me")
    trace = BatchTrace(0, 7, 9, {}, {}, b"")
    (output,) = state.journal(
        [trace], read_ms=1, now_ms=1, model="", policy="", degraded="", tables=tables, canary=canary
    )
    ((_, value, _),) = rows_of(output)
    return journal.decode(value, JournalRecord, "")


def test_a_record_is_of_the_lowest_version_that_says_all_of_it():
    """Workers of the release before read on until the first canary decides, and refuse to guess then."""
    assert told_of(Tables()).version == 2
    told = told_of(Tables(), ("ab" * 32, 0.05))
    assert (told.version, told.canary, told.canary_share) == (3, "ab" * 32, 0.05)


def test_a_replay_says_which_tables_are_others_than_those_of_then():
    now = Tables(RATES.sha256, "f" * 64)
    assert list(other_tables(told_of(now), now)) == []
    dearer = Tables(Rates.of({"EUR": 1.0, "USD": 0.91}).sha256, now.reasons)
    (line,) = other_tables(told_of(dearer), now)
    assert "[risk.rates]" in line
    assert dearer.rates[:12] in line
    assert now.rates[:12] in line
    (line,) = other_tables(told_of(Tables(now.rates, "0" * 64)), now)
    assert "reasons" in line


def test_a_record_that_names_no_tables_is_not_said_to_have_had_others():
    assert list(other_tables(journal.decode(JOURNAL_1, JournalRecord, ""), Tables("1" * 64, "2" * 64))) == []


@pytest.mark.parametrize("other", [{"EUR": 1.0}, {"EUR": 1.0, "USD": 0.9000001}, {"EUR": 1.0, "USE": 0.9}])
def test_rates_are_named_by_every_currency_and_every_bit(other):
    assert Rates.of(other).sha256 != RATES.sha256
    assert Rates.of({"USD": 0.9, "EUR": 1.0}).sha256 == RATES.sha256
