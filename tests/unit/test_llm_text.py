"""Tokens become text that may be shown; requests share the engine and none waits for ever."""

import importlib
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from infra.local import layout

ROOM = layout.ROOT / "infra" / "triton" / "python_llm"


@pytest.fixture
def room(monkeypatch):
    """The modules as the server's stub imports them: beside one another."""
    monkeypatch.syspath_prepend(str(ROOM))
    names = ("text", "batching")
    yield {name: importlib.import_module(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A token a byte, so that a character of another script takes several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize(
    "text", ["hello", "余额是多少？", "a€b🙂c", "naïve – “quoted”", "   spaces  here ", "\n\n- x\n"]
)
def test_pieces_are_the_text_and_never_half_a_character(room, tokenizer, text):
    stream = room["text"].TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer.encode(text).ids] + [stream.finish()]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(30))
def test_a_stop_string_ends_the_text_before_it_however_it_is_cut(room, tokenizer, seed):
    chance = random.Random(seed)
    text = "".join(chance.choice("ab好\n") for _ in range(40))
    stops = ["".join(chance.choice("ab好\n") for _ in range(chance.randrange(1, 4))) for _ in range(2)]
    stream, shown = room["text"].TextStream(tokenizer, stops), ""
    for token in tokenizer.encode(text).ids:
        shown += stream.push(token)
        if stream.stopped:
            break
    shown += stream.finish()
    ends = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    assert shown == text[: min(ends, default=len(text))]


@pytest.mark.parametrize("unit", [1, 2, 5, 20, 64])
def test_a_model_that_says_the_same_over_and_over_is_noticed(room, unit):
    loops = room["text"].loops
    said, cycle = list(range(1000, 1040)), list(range(unit))
    assert not loops(said + cycle * 2)
    while not loops(said):
        said += cycle
        assert len(said) < 400
    assert len(said) - 40 <= max(24 + unit, 4 * unit)


def test_what_is_no_loop_is_none(room):
    chance = random.Random(5)
    said = [chance.randrange(50) for _ in range(600)]
    assert not any(room["text"].loops(said[:size]) for size in range(600))


def test_tokens_are_drawn_from_the_likeliest_that_make_up_top_p(room):
    text = room["text"]
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert text.Chooser(text.Sampling())(logits) == 0
    choose = text.Chooser(text.Sampling(1.0, 0.75, 3))
    drawn = [choose(logits) for _ in range(2000)]
    assert set(drawn) == {0, 1}
    assert drawn.count(0) / 2000 == pytest.approx(0.5 / 0.8, abs=0.04)
    again = text.Chooser(text.Sampling(1.0, 0.75, 3))
    assert [again(logits) for _ in range(2000)] == drawn


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": 9}, {"top_p": 0}, {"top_p": 2}])
def test_sampling_out_of_range_is_refused(room, wrong):
    with pytest.raises(ValueError, match="must be"):
        room["text"].Sampling(**wrong)


class Engine:
    """Instead of a model: the next token of a row is the sum of all its tokens, so that a mix-up shows."""

    ends, begin, context, vocabulary = frozenset({0}), None, 64, 97

    def __init__(self, rows_max: int) -> None:
        self.rows_max, self.rows = rows_max, []
        self.prefixes: list[list[int]] = []

    @property
    def row_count(self) -> int:
        return len(self.rows)

    def join(self) -> int:
        assert self.row_count < self.rows_max
        self.rows.append([])
        return self.row_count - 1

    def move(self, source: int, row: int) -> None:
        self.rows[row] = list(self.rows[source])

    def leave(self, row: int) -> None:
        self.rows[row] = self.rows[-1]
        self.rows.pop()

    def recall(self, row: int, tokens) -> int:
        for prefix in self.prefixes:
            if list(tokens[: len(prefix)]) == prefix and len(prefix) < len(tokens):
                self.rows[row] = list(prefix)
                return len(prefix)
        return 0

    def remember(self, row: int, prefix) -> None:
        assert self.rows[row][: len(prefix)] == list(prefix)
        self.prefixes = [list(prefix)]

    def feed(self, row: int, tokens) -> np.ndarray:
        self.rows[row] += tokens
        return self._logits(row)

    def step(self, tokens) -> np.ndarray:
        for row, token in enumerate(tokens):
            self.rows[row].append(token)
        return np.stack([self._logits(row) for row in range(len(tokens))])

    def _logits(self, row: int) -> np.ndarray:
        logits = np.zeros(self.vocabulary, np.float32)
        logits[next_token(self.rows[row])] = 1
        return logits


def next_token(said: list[int]) -> int:
    return (sum(said) * 31 + 7 * len(said)) % 97


class Words:
    """A tokeniser whose text is its tokens."""

    def decode(self, tokens, skip_special_tokens=False) -> str:
        return "".join(f"{token} " for token in tokens)


def alone(tokens: list[int], tokens_max: int) -> tuple[str, str]:
    said, made = list(tokens), []
    while True:
        token = next_token(said)
        if token == 0:
            return "".join(f"{each} " for each in made), "stop"
        made.append(token)
        said.append(token)
        if len(made) >= tokens_max:
            return "".join(f"{each} " for each in made), "length"


@pytest.mark.parametrize("seed", range(80))
def test_whoever_comes_and_goes_each_answer_is_what_it_would_be_alone(room, monkeypatch, seed):
    chance = random.Random(seed)
    batching = room["batching"]
    monkeypatch.setattr(batching, "_PART_TOKENS", chance.choice([1, 3, 64]))
    monkeypatch.setattr(batching, "_PREFIX_TOKENS_MIN", chance.choice([2, 16]))
    batcher = batching.Batcher(Engine(chance.randrange(1, 5)), Words(), waiting_max=100)
    wanted, shown, gone = [], {}, set()
    for number in range(12):
        common = [5, 6, 7] if chance.randrange(2) else []
        wanted.append(
            (
                common + [chance.randrange(1, 97) for _ in range(chance.randrange(1, 20))],
                chance.randrange(1, 20),
            )
        )
        shown[number] = []

    def submit(number: int) -> None:
        tokens, tokens_max = wanted[number]
        batcher.submit(
            batching.Request(
                tokens,
                tokens_max,
                room["text"].Sampling(),
                [],
                lambda piece, reason: shown[number].append((piece, reason)),
                lambda: number in gone,
            )
        )

    coming = list(range(12))
    while coming or not batcher.is_idle:
        while coming and chance.randrange(3) == 0:
            submit(coming.pop(0))
        if chance.randrange(15) == 0:
            gone.add(chance.randrange(12))
        batcher.advance()
    for number, (tokens, tokens_max) in enumerate(wanted):
        text, reason = alone(tokens, tokens_max)
        reasons = [why for _, why in shown[number] if why]
        made = "".join(piece for piece, _ in shown[number])
        assert len(reasons) == 1
        assert shown[number][-1][1] == reasons[0]
        if number in gone and reasons == ["cancelled"]:
            assert text.startswith(made)
        else:
            assert (made, reasons[0]) == (text, reason)


def test_a_request_that_waits_can_be_left_and_a_failure_ends_all(room):
    batching, reasons = room["batching"], {}
    batcher = batching.Batcher(Engine(1), Words(), waiting_max=2)

    def ask(name: str, cancelled=lambda: False) -> None:
        batcher.submit(
            batching.Request(
                [5, 9, 11],
                40,
                room["text"].Sampling(),
                [],
                lambda _, why: reasons.setdefault(name, []).append(why),
                cancelled,
            )
        )

    ask("first")
    batcher.advance()
    ask("second", lambda: True)
    ask("third")
    with pytest.raises(batching.Busy, match="2 requests wait already"):
        ask("fourth")
    batcher.advance()
    assert reasons["second"] == ["cancelled"]
    batcher.fail("broken")
    assert batcher.is_idle
    assert reasons["first"][-1] == reasons["third"][-1] == "error: broken"


def test_what_does_not_fit_is_refused(room):
    batching = room["batching"]
    batcher = batching.Batcher(Engine(1), Words(), waiting_max=2)
    for tokens, tokens_max, why in (([], 1, "empty"), ([1] * 60, 5, "more than the 64")):
        with pytest.raises(batching.Refused, match=why):
            batcher.submit(batching.Request(tokens, tokens_max, None, [], None))


def test_the_room_holds_what_the_repository_copies():
    assert {path.name for path in Path(ROOM).glob("*.py")} == {
        "model.py",
        "engine.py",
        "batching.py",
        "text.py",
    }
