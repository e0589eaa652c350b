"""The local authority makes what is missing, leaves what is good, renews what ends soon."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from infra.local.pki import LEAF_DAYS, ROLES, ensure_pki


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def days_from_now(days):
    return lambda: datetime.now(UTC) + timedelta(days=days)


def test_a_second_run_changes_nothing_and_all_files_are_private(tmp_path):
    first = ensure_pki(tmp_path / "pki")
    before = contents(tmp_path / "pki")
    assert ensure_pki(tmp_path / "pki") == first
    assert contents(tmp_path / "pki") == before
    assert set(first.roles) == set(ROLES)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "pki").iterdir()} == {0o600}
    assert (tmp_path / "pki").stat().st_mode & 0o777 == 0o700


def test_a_certificate_names_its_role_and_chains_to_the_authority(tmp_path):
    pki = ensure_pki(tmp_path, ["reader"])
    certificate = x509.load_pem_x509_certificate(pki.roles["reader"].certificate.read_bytes())
    authority = x509.load_pem_x509_certificate(pki.ca.read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["weir://role/reader"]
    for identity in (pki.keys_server, pki.roles["reader"]):
        ssl.create_default_context(cafile=pki.ca).load_cert_chain(identity.certificate, identity.key)


def test_leaves_are_renewed_near_their_end_and_the_authority_stays(tmp_path):
    ensure_pki(tmp_path, ["reader"])
    before = contents(tmp_path)
    ensure_pki(tmp_path, ["reader"], now=days_from_now(LEAF_DAYS - 31))
    assert contents(tmp_path) == before
    ensure_pki(tmp_path, ["reader"], now=days_from_now(LEAF_DAYS - 29))
    after = contents(tmp_path)
    assert after["ca.crt"] == before["ca.crt"]
    for name in ("role-reader.crt", "role-reader.key", "keys-server.crt", "keys-server.key"):
        assert after[name] != before[name]


@pytest.mark.parametrize("damage", ["role-reader.crt", "role-reader.key", "ca.key", "ca.crt"])
def test_damage_is_mended(tmp_path, damage):
    """A damaged authority is made anew, and with it every certificate."""
    ensure_pki(tmp_path, ["reader"])
    (tmp_path / damage).write_bytes(b"broken")
    pki = ensure_pki(tmp_path, ["reader"])
    certificate = x509.load_pem_x509_certificate(pki.roles["reader"].certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(pki.ca.read_bytes()))
