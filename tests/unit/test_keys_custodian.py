"""Keys are made once, kept wrapped, replaced when old, re-wrapped whole; nothing happens unrecorded."""

import errno
import json
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from services.keys.audit import AuditLog, AuditUnavailable
from services.keys.authorize import Policy
from services.keys.custodian import Caller, Custodian, KeyNotFound
from services.keys.settings import KeysServiceSettings
from services.keys.store import KeyStore, KeyTaken
from weir.crypto import Compartment, Suite
from weir.crypto.kek import FileKekProvider
from weir.errors import AccessDenied, BadInput, ConfigError, IntegrityError

HERE = Compartment("weir.decisions", "C3")
WORKER, READER, ADMIN = (Caller(role, "test") for role in ("risk-worker", "reader", "admin"))
POLICY = Policy.load(KeysServiceSettings.model_fields["policy_file"].default)


class Clock:
    def __init__(self):
        self.at = datetime(2026, 11, 2, tzinfo=UTC)

    def __call__(self):
        return self.at


class Place:
    """One data directory and the custodian over it; `reopen` is a restart."""

    def __init__(self, folder):
        self.folder, self.clock = folder, Clock()
        self.keks = FileKekProvider.create(folder / "keystore")
        self._open()

    def _open(self):
        self.store = KeyStore.open(self.folder / "keys.sqlite")
        self.audit = AuditLog.open(self.folder / "audit.jsonl", now=self.clock())
        self.custodian = Custodian(
            policy=POLICY, store=self.store, keks=self.keks, audit=self.audit, now=self.clock
        )

    def close(self):
        self.store.close()
        self.audit.close()

    def reopen(self):
        self.close()
        self._open()

    def records(self):
        return [json.loads(line) for line in (self.folder / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    with closing(place):
        yield place


async def test_a_compartment_begins_with_its_first_sealer_and_keeps_its_key(place):
    first = await place.custodian.sealing_key(WORKER, HERE)
    assert (first.epoch, first.suite) == (1, Suite.AES_256_GCM)
    place.reopen()
    again = await place.custodian.sealing_key(WORKER, HERE)
    opened = await place.custodian.opening_key(READER, first.key_id, "delivery")
    assert first.secret == again.secret == opened.secret
    assert [(r["event"], r["action"]) for r in place.records()] == [
        ("created", "seal"),
        ("handed_out", "seal"),
        ("handed_out", "seal"),
        ("handed_out", "open"),
    ]


async def test_who_may_not_seal_begins_nothing(place):
    with pytest.raises(AccessDenied):
        await place.custodian.sealing_key(READER, HERE)
    with pytest.raises(AccessDenied):
        await place.custodian.rotate(WORKER, HERE)
    with pytest.raises(KeyNotFound):
        await place.custodian.rotate(ADMIN, HERE)
    assert place.custodian.key_count() == 0
    assert [r["event"] for r in place.records()] == ["denied", "denied"]


async def test_rotation_starts_the_next_epoch_and_the_old_key_still_opens(place):
    old = await place.custodian.sealing_key(WORKER, HERE)
    info = await place.custodian.rotate(ADMIN, HERE)
    new = await place.custodian.sealing_key(WORKER, HERE)
    assert (info.key_id, info.epoch, info.current) == (new.key_id, 2, True)
    assert new.secret != old.secret
    assert (await place.custodian.opening_key(READER, old.key_id, "delivery")).secret == old.secret
    assert [(k.epoch, k.current) for k in await place.custodian.list_keys(ADMIN)] == [(1, False), (2, True)]


async def test_a_key_past_its_age_is_replaced_when_a_sealer_asks(place):
    first = await place.custodian.sealing_key(WORKER, HERE)
    place.clock.at += timedelta(hours=11, minutes=59)
    assert (await place.custodian.sealing_key(WORKER, HERE)).key_id == first.key_id
    place.clock.at += timedelta(minutes=1)
    assert (await place.custodian.sealing_key(WORKER, HERE)).epoch == 2


async def test_rewrapping_moves_all_keys_to_the_newest_kek(place, tmp_path):
    key = await place.custodian.sealing_key(WORKER, HERE)
    pseudonym = await place.custodian.pseudonym_key(WORKER, "bank")
    place.keks.rotate()
    assert await place.custodian.rewrap(ADMIN) == (2, "kek-000002")
    assert await place.custodian.rewrap(ADMIN) == (0, "kek-000002")
    (tmp_path / "keystore" / "kek-000001.key").unlink()
    place.reopen()
    assert (await place.custodian.sealing_key(WORKER, HERE)).secret == key.secret
    assert await place.custodian.pseudonym_key(WORKER, "bank") == pseudonym


async def test_a_rewrap_that_meets_a_damaged_key_changes_nothing(place):
    await place.custodian.sealing_key(WORKER, HERE)
    await place.custodian.sealing_key(WORKER, Compartment("weir.risk.dlq", "C3"))
    with closing(sqlite3.connect(place.folder / "keys.sqlite")) as outside, outside:
        outside.execute("UPDATE data_keys SET wrapped = zeroblob(60) WHERE topic = 'weir.risk.dlq'")
    place.keks.rotate()
    with pytest.raises(IntegrityError):
        await place.custodian.rewrap(ADMIN)
    assert {k.kek_id for k in await place.custodian.list_keys(ADMIN)} == {"kek-000001"}


async def test_a_row_that_was_exchanged_for_anothers_does_not_unwrap(place):
    """The wrapped key of one topic, put under another's id in the database."""
    key = await place.custodian.sealing_key(WORKER, HERE)
    await place.custodian.sealing_key(WORKER, Compartment("weir.risk.dlq", "C3"))
    with closing(sqlite3.connect(place.folder / "keys.sqlite")) as outside, outside:
        outside.execute(
            "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE topic = 'weir.risk.dlq')"
            " WHERE topic = 'weir.decisions'"
        )
    with pytest.raises(IntegrityError, match="does not unwrap"):
        await place.custodian.opening_key(READER, key.key_id, "delivery")


async def test_without_an_audit_record_no_key_is_handed_out_or_made(place, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    key = await place.custodian.sealing_key(WORKER, HERE)
    monkeypatch.setattr(os, "write", full)
    for question in (
        place.custodian.sealing_key(WORKER, HERE),
        place.custodian.opening_key(READER, key.key_id, "delivery"),
        place.custodian.rotate(ADMIN, HERE),
        place.custodian.pseudonym_key(WORKER, "bank"),
    ):
        with pytest.raises(AuditUnavailable):
            await question
    monkeypatch.undo()
    assert [k.epoch for k in await place.custodian.list_keys(ADMIN)] == [1]
    assert place.store.pseudonym_key("bank") is None


async def test_names_that_are_none_are_refused(place):
    for compartment in (
        Compartment("a b", "C3"),
        Compartment("a/C3", "C3"),
        Compartment("weir.decisions", ""),
    ):
        with pytest.raises(BadInput):
            await place.custodian.sealing_key(WORKER, compartment)
    with pytest.raises(BadInput):
        await place.custodian.pseudonym_key(WORKER, "a/b")
    with pytest.raises(BadInput):
        await place.custodian.opening_key(READER, 1, "Why not")
    assert place.records() == []


async def test_ids_and_epochs_are_unique_in_the_store(place):
    await place.custodian.sealing_key(WORKER, HERE)
    [stored] = place.store.all_keys()
    with pytest.raises(KeyTaken):
        place.store.add(stored)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 40])
def test_a_file_that_is_no_key_store_is_refused(tmp_path, content):
    (tmp_path / "keys.sqlite").write_bytes(content)
    with pytest.raises(IntegrityError, match="backup"):
        KeyStore.open(tmp_path / "keys.sqlite")


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "keys.sqlite")) as outside:
        outside.execute("PRAGMA user_version = 9")
    with pytest.raises(IntegrityError, match="Upgrade"):
        KeyStore.open(tmp_path / "keys.sqlite")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "mutual TLS"),
        ({"ssl_ca": "a"}, "mutual TLS"),
        ({"insecure_loopback_role": "admin", "host": "0.0.0.0"}, "loopback host"),
        ({"insecure_loopback_role": "admin", "ssl_ca": "a"}, "delete it"),
        ({"insecure_loopback_role": "admin", "suite": "ROT13"}, "AES_256_GCM, SM4_GCM"),
    ],
)
def test_keys_are_never_served_in_the_clear_to_a_network(fields, text):
    with pytest.raises(ConfigError, match=text):
        KeysServiceSettings.load(**fields)
    assert KeysServiceSettings.load(insecure_loopback_role="admin", suite="SM4_GCM").suite is Suite.SM4_GCM
