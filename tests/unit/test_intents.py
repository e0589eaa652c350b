"""Intents: fitted, calibrated on what folds had not seen, the same on ONNX Runtime, and out of scope."""

import json

import numpy as np
import onnxruntime
import pytest

from services.chat.understanding.intents import SHIPPED, About, Intents
from services.chat.understanding.ngrams import DIMENSION, hashed
from services.training import intents
from services.training.errors import TrainingError
from weir.errors import IntegrityError, MissingPart

WORDS = {"card": "my card is lost", "fee": "what fee do you take", "loan": "can I get a loan"}
ENDS = [
    "today",
    "please",
    "now",
    "again",
    "here",
    "soon",
    "there",
    "quickly",
    "once",
    "and why",
    "tell me",
    "ok",
]


async def encoder(texts):
    """Vectors by the letters of a text."""
    rows = np.array(
        [[text.count(letter) + 0.1 for letter in "abcdefghijklmnop"] for text in texts], np.float32
    )
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path):
    rows = [f'"{text}, {end}",{label}' for label, text in WORDS.items() for end in ENDS]
    (tmp_path / "train.csv").write_text("text,category\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
async def questions(folder):
    return await intents.encoded(intents.read_questions(folder), encoder, portion=5)


async def test_a_head_knows_its_questions_and_says_how_well_on_others(questions):
    head, figures = intents.train(questions)
    assert head.labels == sorted(WORDS)
    assert figures["accuracy"] == {**figures["accuracy"], "count": 36}
    assert figures["accuracy"]["share"] > 0.9
    assert 0 <= figures["calibration_error"] <= 1
    assert figures["in_scope_rejected"]["share"] <= 0.1


async def test_onnx_runtime_gives_the_same_probabilities(questions, tmp_path):
    head, figures = intents.train(questions)
    folder = intents.write(head, figures, tmp_path / "repository", "our own")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    features = np.hstack([questions.vectors, questions.ngrams]).astype(np.float32)
    (found,) = session.run(["probability"], {"features": features})
    assert np.abs(found - head.probabilities(questions.vectors, questions.ngrams)).max() < 1e-3
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    about = About.read(tmp_path / "repository")
    assert (about.labels, about.card["origin"]) == (head.labels, "our own")


async def test_another_head_than_described_is_refused(questions, tmp_path):
    folder = intents.write(*intents.train(questions), tmp_path, "our own")
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(IntegrityError, match="not the one"):
        About.read(tmp_path)
    (folder / "model.json").write_text("{")
    with pytest.raises(IntegrityError):
        About.read(tmp_path)
    with pytest.raises(MissingPart, match="weir train intent"):
        About.read(tmp_path / "nowhere")


class Head:
    """As sure as it is told."""

    def __init__(self, probability: float) -> None:
        self.row = [probability, 1 - probability]

    async def score(self, features):
        assert features.shape[1] == 16 + DIMENSION
        return {"probability": np.array([self.row] * len(features), np.float32)}


@pytest.mark.parametrize(("sure", "label"), [(0.9, "card"), (0.55, "")])
async def test_what_the_head_is_not_sure_of_is_out_of_scope(sure, label):
    ask = Intents(encoder, Head(sure), About(["card", "fee"], 0.6, ""))
    ((found, confidence),) = await ask(["my card"])
    assert (found, round(confidence, 2)) == (label, sure)


async def test_what_the_encoder_cannot_read_is_left_open():
    ask = Intents(encoder, Head(0.9), About(["card", "fee"], 0.5, ""))
    assert await ask(["моя карта", "🙂", ""]) == [("", 0.0)] * 3
    assert [label for label, _ in await ask(["my card", "我的卡", "карта"])] == ["card", "card", ""]


def test_rows_of_pieces_are_of_length_one_or_empty():
    rows = hashed(["my card", "MY CARD", "我的卡", ""])
    assert np.array_equal(rows[0], rows[1])
    assert np.allclose(np.linalg.norm(rows, axis=1), [1, 1, 0, 0])


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "text,category\nhello,card\n", "text,category\n" + "hello,card\n" * 20],
)
def test_a_training_set_that_is_none_is_told_in_one_line(tmp_path, text):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(TrainingError) as error:
        intents.read_questions(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(TrainingError):
        intents.read_questions(tmp_path / "nowhere")


def test_an_out_of_scope_file_that_is_none_is_told(tmp_path):
    path = tmp_path / "oos.jsonl"
    path.write_text(
        json.dumps({"text": "hm", "intent": "oos"}) + "\n" + json.dumps({"text": "x", "intent": "y"})
    )
    assert intents.read_out_of_scope(path) == [("hm", "oos")]
    path.write_text("nothing")
    with pytest.raises(TrainingError):
        intents.read_out_of_scope(path)


def test_the_head_that_ships_is_the_one_that_its_card_describes():
    about = About.read(SHIPPED)
    assert len(about.labels) == 77
    assert "CC BY 4.0" in about.card["origin"]
    session = onnxruntime.InferenceSession(str(SHIPPED / "intent" / "1" / "model.onnx"))
    (output,) = session.get_outputs()
    assert output.shape[1] == 77
