"""Whether a language model's own sentences are shown is decided by its evaluation, and its card says so."""

import copy
import json

import pytest
from typer.testing import CliRunner

from infra.llm.card import card_of, decide, read
from infra.llm.cli import app
from infra.llm.errors import NotEvaluated
from services.chat.evaluate.intervals import Share
from services.chat.evaluate.retrieval import Mean

MEAN = Mean.of([300.0, 320.0]).as_dict()


def evaluation(whole: int = 36, false: int = 0) -> dict:
    turns = {
        "answered": Share(38, 40).as_dict(),
        "answered_by_model": Share(whole, 40).as_dict(),
        "prompts": [{"version": "v2", "sha256": "ab" * 32}],
    }
    check = {"written_true_shown": Share(30, 38).as_dict(), "written_false_shown": Share(false, 60).as_dict()}
    return {
        "turns_en": turns,
        "turns_zh": copy.deepcopy(turns),
        "sentence_check": {"en": check, "zh": copy.deepcopy(check)},
        "language_model": {"first_token_ms": MEAN, "tokens_per_second": MEAN, "tokens": 10},
    }


def test_a_model_that_carries_most_answers_and_a_check_that_lets_few_false_ones_pass_are_shown():
    assert [each.shows_model for each in decide(evaluation())] == [True, True]
    assert "`[chat] generate = true`" in card_of(evaluation(), "llm", "A model")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (evaluation(whole=24), "carried 0.60 (0.45-0.74) of 40 of its answers"),
        (evaluation(false=4), "the check shows 0.07 (0.03-0.16) of 60 of false sentences"),
        (evaluation(whole=0), "carried 0.00"),
    ],
)
def test_where_the_interval_leaves_it_open_the_passages_answer(made, why):
    assert not any(each.shows_model for each in decide(made))
    card = card_of(made, "llm", "A model")
    assert why in card
    assert "`[chat] generate = false`" in card


def test_one_language_alone_may_be_shown_and_the_switch_stays_off():
    made = evaluation()
    made["turns_zh"]["answered_by_model"] = Share(3, 40).as_dict()
    card = card_of(made, "llm", "A model")
    assert "English: the passages' own sentences; the model's could be (" in card
    assert "Chinese: the passages' own sentences (" in card
    assert "`[chat] generate = false`" in card


def test_what_was_not_measured_is_told_so_and_not_as_a_share():
    made = evaluation()
    made["turns_en"]["answered_by_model"] = Share(0, 0).as_dict()
    made["sentence_check"]["zh"]["written_false_shown"] = Share(0, 0).as_dict()
    made["language_model"]["tokens_per_second"] = Mean.of([]).as_dict()
    card = card_of(made, "llm", "A model")
    assert "English: the passages' own sentences (answers by the model: not measured)" in card
    assert "Chinese: the passages' own sentences (false sentences: not measured)" in card
    assert "then: not measured." in card
    assert "of 0" not in card
    assert "`[chat] generate = false`" in card


def test_the_card_is_printed_with_its_prompt(tmp_path):
    path = tmp_path / "made.json"
    path.write_text(json.dumps(evaluation()), encoding="utf-8")
    told = CliRunner().invoke(app, ["card", str(path), "--model", "SmolLM2-135M-Instruct, int8"])
    assert told.exit_code == 0, told.output
    assert told.output == card_of(read(path), "llm", "SmolLM2-135M-Instruct, int8")
    assert "ab" * 32 in told.output


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"turns_en": {}}'])
def test_another_file_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "made.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(NotEvaluated, match="weir evaluate chat --generate --json") as error:
        read(path)
    assert "\n" not in str(error.value)
    with pytest.raises(NotEvaluated):
        read(tmp_path / "nothing.json")
