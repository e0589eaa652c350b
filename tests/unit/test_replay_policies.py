"""Every policy that was in force can be had again by its SHA-256, byte for byte."""

import hashlib
import os

import pytest

from services.risk.archive import PolicyArchive
from services.risk.policy import PolicyFile
from services.risk.settings import HERE
from weir.errors import IntegrityError, MissingPart
from weir.features.spec import FEATURES

TEXT = (HERE / "policy.toml").read_bytes()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_bytes(TEXT)
    return path


def test_each_policy_that_was_in_force_is_kept_and_a_broken_one_is_not(tmp_path, file):
    archive = PolicyArchive(tmp_path / "policies")
    policy = PolicyFile(file, FEATURES, keep=archive.keep)
    first = policy.policy.sha256
    assert archive.read(first) == TEXT
    file.write_bytes(TEXT + b"\n# another\n")
    assert policy.reload_if_changed()
    assert archive.read(policy.policy.sha256) == TEXT + b"\n# another\n"
    file.write_bytes(TEXT + b"\n[thresholds\n")
    assert not policy.reload_if_changed()
    assert {path.stem for path in (tmp_path / "policies").iterdir()} == {first, policy.policy.sha256}


def test_a_policy_that_is_not_kept_or_was_changed_is_one_line(tmp_path):
    archive = PolicyArchive(tmp_path)
    sha256 = hashlib.sha256(TEXT).hexdigest()
    with pytest.raises(MissingPart) as missing:
        archive.read(sha256)
    assert sha256 in str(missing.value)
    archive.keep(TEXT)
    (tmp_path / f"{sha256}.toml").write_bytes(TEXT + b"#")
    with pytest.raises(IntegrityError) as changed:
        archive.read(sha256)
    assert "\n" not in str(missing.value) + str(changed.value)


def test_a_policy_rules_all_the_same_when_it_cannot_be_kept(tmp_path, file, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    archive = PolicyArchive(tmp_path / "policies")
    policy = PolicyFile(file, FEATURES, keep=archive.keep)
    assert policy.policy.thresholds
    assert list((tmp_path / "policies").iterdir()) == []
