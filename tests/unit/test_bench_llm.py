"""What the language model's bench counts, compares and leaves out."""

import pytest

from bench import llm
from bench.llm import ENGINE, TRITON, Turn


def words(text: str) -> int:
    return len(text.split())


def turns(engine_s: float, triton_s: float, text: str = "a b c d") -> dict:
    floor = Turn(("a b c d",) * 2, engine_s, (0.1, 0.3), 0.05)
    return {
        conversations: {ENGINE: floor, TRITON: Turn((text,) * 2, triton_s, (0.2, 0.6))}
        for conversations in llm.CONVERSATIONS
    }


def test_a_ratio_is_of_two_turns_of_one_round():
    """The second round was slow for both: that says nothing of either."""
    rows = llm.summary([turns(1.0, 2.0), turns(4.0, 8.0), turns(1.0, 2.0)], words)
    engine, triton = rows[:2]
    assert (engine["tokens_s"], triton["tokens_s"]) == (8.0, 4.0)
    assert triton["to_engine"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert len(rows) == 2 * len(llm.CONVERSATIONS)


def test_the_first_and_the_worst_first_token_are_told_and_queues_that_nobody_counts_are_not():
    engine, triton = llm.summary([turns(1.0, 2.0)], words)[:2]
    assert (engine["first_s"], engine["first_worst_s"], engine["queue_s"]) == pytest.approx((0.2, 0.3, 0.05))
    assert triton["queue_s"] is None


def test_other_words_than_the_engines_are_counted():
    rows = llm.summary([turns(1.0, 2.0), turns(1.0, 2.0, text="a b c")], words)
    assert [(row["same"], row["answers"]) for row in rows[:2]] == [(4, 4), (2, 4)]


def test_no_prompt_is_asked_twice_and_each_way_is_first_in_turn():
    asked: dict[str, list[tuple[str, ...]]] = {"one": [], "two": []}
    order: list[str] = []

    def way(name):
        def answer(prompts):
            order.append(name)
            asked[name].append(tuple(prompts))
            return Turn(tuple(prompts), 1.0, (0.1,) * len(prompts))

        return answer

    llm.rounds_of({name: way(name) for name in asked}, 2)
    assert asked["one"] == asked["two"]
    prompts = [prompt for batch in asked["one"] for prompt in batch]
    assert len(set(prompts)) == len(prompts) == 2 + 2 * sum(llm.CONVERSATIONS)
    one_round = 2 * len(llm.CONVERSATIONS)
    assert order[2] == "one"
    assert order[2 + one_round] == "two"


def test_an_interval_holds_the_median_and_repeats():
    values = [0.9, 0.8, 1.0, 0.7, 0.95]
    low, high = llm.interval(values)
    assert 0.7 <= low <= 0.9 <= high <= 1.0
    assert llm.interval(values) == (low, high)


def test_what_is_done_around_an_answer_has_a_time_each():
    found = llm.around("A replacement card costs EUR 8. It arrives within five working days.")
    assert len(found) == 4
    assert all(milliseconds > 0 for milliseconds in found.values())
