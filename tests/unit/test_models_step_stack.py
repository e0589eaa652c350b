"""Which of the converted models the embedded stack asks its Triton for."""

import shutil

import pytest

from infra.local import layout, stack
from infra.local.stack import language_models
from infra.local.stack_settings import StackSettings


@pytest.fixture
def converted(monkeypatch, tmp_path):
    """The three repositories, empty but for the encoder's tokenizer."""
    folders = {}
    for name in ("ENCODER_MODELS", "INTENT_MODELS", "LLM_MODELS"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        monkeypatch.setattr(layout, name, folders[name])
    tokenizer = folders["ENCODER_MODELS"] / "tokenizer.json"
    tokenizer.touch()
    monkeypatch.setattr(stack, "_TOKENIZER", tokenizer)
    return folders


def test_understanding_is_served_and_a_language_model_that_nobody_asks_is_not(converted):
    """It would take as much memory as all the others together."""
    asked = language_models(StackSettings())
    assert asked == [converted["ENCODER_MODELS"], converted["INTENT_MODELS"]]


@pytest.mark.parametrize("value", ["1", "true", "True", "yes"])
def test_who_lets_it_write_gets_it_served(monkeypatch, converted, value):
    monkeypatch.setenv("WEIR_CHAT_GENERATE", value)
    assert language_models(StackSettings())[-1] == converted["LLM_MODELS"]


def test_the_persons_settings_file_lets_it_write_too(converted, tmp_path):
    (tmp_path / "weir.toml").write_text("[chat]\ngenerate = true\n")
    assert language_models(StackSettings())[-1] == converted["LLM_MODELS"]


def test_a_stack_without_chat_serves_none_of_them(monkeypatch, converted):
    monkeypatch.setenv("WEIR_CHAT_GENERATE", "true")
    assert language_models(StackSettings(chat=False)) == []


def test_what_set_up_has_not_made_is_not_asked_for(monkeypatch, converted):
    monkeypatch.setenv("WEIR_CHAT_GENERATE", "true")
    stack._TOKENIZER.unlink()
    for name in ("ENCODER_MODELS", "LLM_MODELS"):
        converted[name].rmdir()
    assert language_models(StackSettings()) == []


def test_a_starter_set_of_an_earlier_set_up_is_replaced_and_nothing_else(monkeypatch, tmp_path):
    starter, folder = tmp_path / "starter", tmp_path / "knowledge"
    monkeypatch.setattr(layout, "STARTER_KNOWLEDGE", starter)

    def made(name: str) -> None:
        shutil.rmtree(starter, ignore_errors=True)
        (starter / name).mkdir(parents=True)
        (starter / "current").write_text(f"{name}\n")

    made("1-aaaaaaaaaaaa")
    stack._copy_starter(folder)
    assert not stack._is_old_starter(folder)
    made("1-bbbbbbbbbbbb")
    assert stack._is_old_starter(folder)
    # Somebody has imported a version of his own.
    (folder / "2-cccccccccccc").mkdir()
    assert not stack._is_old_starter(folder)
    (folder / "2-cccccccccccc").rmdir()
    stack._copy_starter(folder)
    assert (folder / "current").read_text() == "1-bbbbbbbbbbbb\n"
    assert not (folder / "1-aaaaaaaaaaaa").exists()
    (folder / "starter").unlink()
    made("1-dddddddddddd")
    assert not stack._is_old_starter(folder)
