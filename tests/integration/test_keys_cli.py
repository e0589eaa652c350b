"""`weir keys` as an operator types it, against the real service."""

import os
import re
import subprocess
import sys

import pytest

from infra.local.pki import ensure_pki
from tests.support.keys import running_keys_service
from weir.crypto import Compartment
from weir.crypto.client import KeyServiceClient
from weir.errors import ExitCode


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    with running_keys_service(folder / "keys", pki=ensure_pki(folder / "pki")) as service:
        yield service


def weir(service, *arguments):
    return subprocess.run(
        [sys.executable, "-c", "import sys; from weir.cli import main; sys.exit(main())", "keys", *arguments],
        env={**os.environ, "WEIR_CONFIG": str(service.config), "COLUMNS": "160", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


async def make_a_key(service):
    client = KeyServiceClient(service.settings("risk-worker"))
    await client.sealing_key(Compartment("weir.decisions", "C3"), 5.0)
    await client.close()


async def test_list_rotate_new_kek_and_rewrap(service):
    await make_a_key(service)
    rotated = weir(service, "rotate", "weir.decisions")
    assert rotated.returncode == 0, rotated.stderr
    assert "weir.decisions/C3: epoch 2" in rotated.stdout
    made = weir(service, "new-kek")
    assert "kek-000002 is in" in made.stdout
    rewrapped = weir(service, "rewrap")
    assert "2 keys wrapped anew; all are under kek-000002" in rewrapped.stdout
    listed = weir(service, "list").stdout
    assert re.search(r"weir\.decisions .* 2 .*AES_256_GCM.*kek-000002.*current", listed)
    assert listed.count("kek-000002") == 2


async def test_a_role_that_may_not_gets_one_line_and_the_exit_code_for_denied(service):
    denied = weir(
        service, "rotate", "weir.decisions", "--role-certificate", service.pki.roles["reader"].certificate
    )
    assert denied.returncode == ExitCode.DENIED
    assert "Role reader may not rotate weir.decisions/C3" in denied.stderr
    assert len(denied.stderr.splitlines()) == 1
    unknown = weir(service, "rotate", "weir.nothing")
    assert unknown.returncode == ExitCode.FAILED
    assert "no data key yet" in unknown.stderr


async def test_the_audit_log_verifies_and_a_change_is_told(service, tmp_path):
    await make_a_key(service)
    verified = weir(service, "audit", "verify")
    assert verified.returncode == 0
    head = re.search(r"^head (\d+:[0-9a-f]{64})$", verified.stdout, re.MULTILINE)[1]
    assert weir(service, "audit", "verify", "--head", head).returncode == 0
    (tmp_path / "audit.jsonl").write_bytes(service.audit_file.read_bytes().replace(b"seal", b"open", 1))
    changed = weir(service, "audit", "verify", "--data-dir", tmp_path)
    assert changed.returncode == ExitCode.INTEGRITY
    assert "does not follow" in changed.stderr
    assert weir(service, "audit", "verify", "--head", "nonsense").returncode == ExitCode.USAGE


async def test_with_the_service_away_the_exit_code_says_so(service):
    service.stop()
    away = weir(service, "list")
    service.start()
    assert away.returncode == ExitCode.UNAVAILABLE
    assert f"key service at {service.endpoint}" in away.stderr
