"""The doctor names what is missing, tells missing from away, and asks nobody when nobody was named."""

import json
import sys

import pytest

import weir.cli as cli
from infra.local import doctor, layout
from infra.local.doctor import Verdict, examine, pins
from weir.errors import ExitCode, MissingPart


@pytest.fixture(autouse=True)
def own_stack(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIR_STACK_HOME", str(tmp_path / "home"))


def run(monkeypatch, capsys, *arguments: str):
    monkeypatch.setattr(sys, "argv", ["weir", "doctor", *arguments])
    return cli.main(), capsys.readouterr()


def test_a_missing_server_is_named_with_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor.layout, "KAFKA_LIB", tmp_path)
    code, said = run(monkeypatch, capsys, "kafka-jars")
    assert code == ExitCode.MISSING
    assert "make setup" in said.out


def test_a_neighbour_that_is_away_is_not_missing(monkeypatch, capsys):
    monkeypatch.setenv("WEIR_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    code, said = run(monkeypatch, capsys, "kafka", "--json")
    assert code == ExitCode.UNAVAILABLE
    (finding,) = json.loads(said.out)
    assert (finding["name"], finding["verdict"]) == ("kafka", "away")


def test_a_broken_settings_file_is_named(monkeypatch, capsys, tmp_path):
    (tmp_path / "weir.toml").write_text("[kafka]\nsecurity_protocol = 'TLS'\n")
    code, said = run(monkeypatch, capsys, "settings")
    assert code == ExitCode.MISSING
    assert "security_protocol" in said.out


def test_an_unknown_check_is_told_which_there_are(monkeypatch, capsys):
    code, said = run(monkeypatch, capsys, "coffee")
    assert code == ExitCode.MISSING
    assert "triton-env" in said.err


async def test_with_no_settings_and_no_stack_no_neighbour_is_asked():
    findings = {finding.name: finding for finding in await examine()}
    assert {findings[name].verdict for name in doctor.NEIGHBOURS} == {Verdict.NOTE}
    assert findings["python"].verdict is Verdict.OK


def test_a_lock_is_read_with_its_markers(tmp_path):
    lock = tmp_path / "x.lock"
    lock.write_text(
        "one==1.0 \\\n    --hash=sha256:aa\ntwo==2 ; python_version < '3' \\\n    --hash=sha256:bb\n"
        "three[extra]==3.1 ; python_version >= '3' \\\n# comment==9\n"
    )
    assert list(pins(lock)) == [("one", "1.0"), ("three", "3.1")]


def test_an_environment_that_differs_from_its_lock_is_told(monkeypatch, tmp_path):
    (tmp_path / "dev.lock").write_text("rich==0.0.1\nno-such-package==1\n")
    monkeypatch.setattr(layout, "REQUIREMENTS", tmp_path)
    with pytest.raises(MissingPart, match=r"rich .*not 0\.0\.1.*no-such-package absent.*make setup"):
        doctor._packages()
