"""What the bench of smaller language models and encoders picks, compares and counts."""

import pytest

from bench import compress_language as bench
from weir.errors import MissingPart


def entry(models, name):
    (models / name).mkdir(parents=True)
    (models / name / "config.pbtxt").write_text("")


def test_the_served_one_is_asked_whatever_else_is_and_comes_first(tmp_path):
    for name in ("llm-float32", "llm-int4", "llm-int8"):
        entry(tmp_path, name)
    assert bench.chosen(tmp_path, []) == (bench.LLM, ["llm-int8", "llm-float32", "llm-int4"])
    assert bench.chosen(tmp_path, ["int4"]) == (bench.LLM, ["llm-int8", "llm-int4"])


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(MissingPart, match="weir compress"):
        bench.chosen(tmp_path, [])
    entry(tmp_path, "encoder-int4")
    with pytest.raises(MissingPart, match="encoder-int8"):
        bench.chosen(tmp_path, ["int8"])


def test_a_ratio_is_of_two_times_of_one_turn():
    """The second turn was slow for both: that says nothing of either."""
    took = {
        "encoder-int4": {1: [100.0, 400.0, 100.0], 32: [1000.0] * 3},
        "encoder-int8": {1: [200.0, 800.0, 200.0], 32: [500.0] * 3},
    }
    rows = bench.rows_of(bench.ENCODER, took)
    assert [row["variant"] for row in rows] == ["encoder-int4", "encoder-int8"]
    assert rows[1]["1"] == pytest.approx({"p50_us": 200.0, "p99_us": 788.0, "rate": 5000.0, "to_served": 0.5})
    assert rows[1]["32"]["rate"] == pytest.approx(64_000)


def test_no_two_prompts_of_a_round_begin_alike():
    random = bench.np.random.default_rng(1)
    texts = bench.texts_of(bench.LLM, 8, random)
    assert len({text.split(".")[0] for text in texts}) == 8
