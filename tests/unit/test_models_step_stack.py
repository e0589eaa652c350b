"""Which of the converted models the embedded stack asks its Triton for."""

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
