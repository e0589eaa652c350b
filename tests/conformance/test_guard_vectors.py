"""Every text of the guards' set comes out as it should, but for those that are listed as erring."""

import json
from pathlib import Path

import pytest

from services.chat.evaluate.guards import is_refused, measure, read_examples
from services.chat.guards import Guards

EXAMPLES = read_examples()
# Neither half hides what errs: a rule that mends one takes it off this list, one that breaks one fails here.
MISSED = frozenset(json.loads(Path(__file__).with_name("guards_missed.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def guards() -> Guards:
    return Guards.load()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each.id)
def test_an_attack_is_refused_and_a_harmless_text_is_not(guards, example):
    assert is_refused(guards, example) == (example.is_attack != (example.id in MISSED))


def test_the_set_is_as_large_as_it_is_said_to_be():
    attacks = [each for each in EXAMPLES if each.is_attack]
    harmless = [each for each in EXAMPLES if not each.is_attack]
    assert len(attacks) >= 300
    assert len(harmless) >= 300
    assert {each.language for each in attacks} == {each.language for each in harmless} == {"en", "zh"}
    assert min(sum(each.part == part for each in attacks) for part in ("held_out", "development")) >= 150
    assert len({each.text for each in EXAMPLES}) > 0.98 * len(EXAMPLES)


def test_figures_say_how_many_they_are_of(guards):
    made = measure(guards, EXAMPLES)
    for part in ("held_out", "development"):
        assert made[part]["blocked"]["count"] >= 150
        assert made[part]["blocked"]["low"] <= made[part]["blocked"]["share"] <= made[part]["blocked"]["high"]
