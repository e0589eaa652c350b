"""The command line answers at once, leaves out what is absent, gives one line and a code for an error."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import weir.cli as cli
from weir.cli import _root
from weir.errors import AccessDenied, ExitCode


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run `weir ARGUMENTS` in an empty folder; the exit code and both outputs."""
    monkeypatch.chdir(tmp_path)
    for name in ("WEIR_CONFIG", "WEIR_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["weir", *arguments])
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def planted(monkeypatch, function):
    """A command whose body is `function`."""
    import typer

    app = typer.Typer()
    app.command(name="planted")(function)
    known = _root.Command("planted", "For this test.", "Other", "planted:app", single=True)
    monkeypatch.setitem(sys.modules, "planted", type(sys)("planted"))
    sys.modules["planted"].app = app
    monkeypatch.setattr(_root, "commands", lambda: {"planted": known})


def test_help_lists_commands_without_importing_them():
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "weir", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - started < 5
    assert "topics" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"aiokafka", "numpy", "numba", "rich.console", "pydantic", "grpc"}


def test_unknown_command_is_one_line_and_a_hint(command):
    code, out, err = command("topcs")
    assert (code, out, err.count("\n")) == (ExitCode.USAGE, "", 1)
    assert "topics" in err


def test_version_is_said(command):
    code, out, _ = command("--version")
    assert code == ExitCode.OK
    assert out.startswith("weir ")


def test_an_error_of_weir_is_one_line_and_its_code(command, monkeypatch):
    def denied():
        raise AccessDenied("role reader may not do this.")

    planted(monkeypatch, denied)
    assert command("planted") == (ExitCode.DENIED, "", "weir: role reader may not do this.\n")


def test_an_error_inside_a_group_is_found(command, monkeypatch):
    def grouped():
        raise ExceptionGroup("tasks", [ValueError("x"), ExceptionGroup("more", [AccessDenied("no.")])])

    planted(monkeypatch, grouped)
    assert command("planted") == (ExitCode.DENIED, "", "weir: no.\n")


def test_interrupt_is_130(command, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    planted(monkeypatch, interrupted)
    code, _, err = command("planted")
    assert (code, err) == (ExitCode.INTERRUPTED, "")


def test_a_full_disk_is_no_crash(command, monkeypatch):
    def full():
        raise OSError(28, "No space left on device", "/data/x")

    planted(monkeypatch, full)
    assert command("planted") == (ExitCode.FAILED, "", "weir: /data/x: No space left on device.\n")


def test_anything_else_is_one_line_with_a_private_report(command, monkeypatch):
    def broken():
        raise ZeroDivisionError("secret")

    planted(monkeypatch, broken)
    Path(".weir/logs").mkdir(parents=True)
    code, _, err = command("planted")
    assert code == ExitCode.FAILED
    assert err.count("\n") == 1
    assert "secret" not in err
    (report,) = Path(".weir/logs").glob("crash-*.txt")
    assert report.name in err
    assert "ZeroDivisionError" in report.read_text()
    assert report.stat().st_mode & 0o077 == 0


def test_a_command_whose_package_is_absent_is_left_out(monkeypatch):
    real = _root.find_spec
    monkeypatch.setattr(
        _root, "find_spec", lambda name: None if name.startswith(("infra", "services")) else real(name)
    )
    _root.commands.cache_clear()
    try:
        assert not {"up", "down", "train", "keys"} & set(_root.commands())
        assert {"topics", "schemas"} <= set(_root.commands())
    finally:
        _root.commands.cache_clear()


def test_each_command_loads_and_its_line_is_its_own():
    for known in _root.commands().values():
        loaded = _root.load(known)
        assert loaded.name == known.name
        assert (loaded.help or "").startswith(known.help.rstrip(".")), known.name


def test_the_reference_names_every_command_and_every_exit_code():
    """`python -m infra.local.cli_reference` writes the page anew."""
    reference = Path(__file__).resolve().parents[2] / "docs" / "reference"
    page = (reference / "cli.md").read_text()
    assert [name for name in _root.commands() if f"## `weir {name}`" not in page] == []
    # A default that lies in the checkout would tell where somebody's checkout lies.
    assert "`/" not in page
    codes = (reference / "exit-codes.md").read_text()
    assert [code for code in ExitCode if f"| {int(code)} | {code.name.lower()} |" not in codes] == []
