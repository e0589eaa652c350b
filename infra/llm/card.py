"""A language model's card: what the evaluation of the chat service found, and what is shown of its words.

The decision is by language. A model's own words are shown where it has carried most of its answers to their
end, and where the check of its sentences lets few false ones pass; elsewhere the passages' sentences answer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.llm.errors import NotEvaluated

# Both by the unfavourable end of the 95 % interval.
ANSWERS_MIN, FALSE_SHOWN_MAX = 0.5, 0.1
_NOT_MEASURED = "not measured"
LANGUAGES = {"en": "English", "zh": "Chinese"}


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a model's own sentences are shown in a language, and why."""

    language: str
    shows_model: bool
    why: str


def read(path: Path) -> dict[str, Any]:
    """What `weir evaluate chat --generate --json` printed.

    Raises:
        NotEvaluated: it is something else.
    """
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        for language in LANGUAGES:
            _share(made[f"turns_{language}"]["answered_by_model"])
            _share(made["sentence_check"][language]["written_false_shown"])
            made[f"turns_{language}"]["prompts"]
        _mean(made["language_model"]["first_token_ms"], "ms")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotEvaluated(path) from error
    return dict(made)


def decide(made: dict[str, Any]) -> list[Decision]:
    """By language."""
    return [_decided(made, language) for language in LANGUAGES]


def card_of(made: dict[str, Any], name: str, model: str) -> str:
    """The card in Markdown.

    Args:
        name: on Triton. model: what it is, such as SmolLM2-135M-Instruct in 8 bits.
    """
    decisions = decide(made)
    lines = [
        f"# {model}",
        "",
        f"Served as `{name}`. Printed by `weir llm card` from `weir evaluate chat --generate`.",
    ]
    lines += ["", "| | English | Chinese |", "|---|---|---|"]
    lines += [f"| {what} | {' | '.join(_cells(made, path))} |" for what, path in _ROWS]
    pace = made["language_model"]
    lines += [
        "",
        f"First token after: {_mean(pace['first_token_ms'], 'ms')};",
        f"then: {_mean(pace['tokens_per_second'], 'tokens/s')}.",
        "",
        "## What is shown",
        "",
        *(f"- {LANGUAGES[each.language]}: {_shown(each, decisions)} ({each.why})." for each in decisions),
        "",
        "Its own words may be shown where the interval of answers that it carried to their end lies above",
        f"{ANSWERS_MIN:.0%} and that of false sentences that the check shows below {FALSE_SHOWN_MAX:.0%};",
        f"the switch is for both languages: `[chat] generate = {str(_is_on(decisions)).lower()}`.",
        "",
        "## Limits",
        "",
        "It decides on no payment and no loan, sees no personal data that the masking finds, and none of its",
        "sentences is shown that no passage bears out by words and facts. The check knows no meaning.",
    ]
    prompts = [each for language in LANGUAGES for each in made[f"turns_{language}"]["prompts"]]
    lines += ["", *(f"Prompt {each['version']}: `{each['sha256']}`" for each in prompts)]
    return "\n".join(lines).rstrip() + "\n"


_ROWS = (
    ("questions answered", "turns_{}.answered"),
    ("answers by the model from beginning to end", "turns_{}.answered_by_model"),
    ("true sentences that the check shows", "sentence_check.{}.written_true_shown"),
    ("false sentences that the check shows", "sentence_check.{}.written_false_shown"),
    (
        "sentences with another thing's amount that it shows",
        "sentence_check.{}.amount_of_another_false_shown",
    ),
    ("denied sentences that it shows", "sentence_check.{}.denied_false_shown"),
)


def _decided(made: dict[str, Any], language: str) -> Decision:
    whole = made[f"turns_{language}"]["answered_by_model"]
    false = made["sentence_check"][language]["written_false_shown"]
    for share, what in ((whole, "answers by the model"), (false, "false sentences")):
        if not share["count"]:
            return Decision(language, False, f"{what}: {_NOT_MEASURED}")
    if whole["low"] <= ANSWERS_MIN:
        return Decision(language, False, f"carried {_share(whole)} of its answers to their end")
    if false["high"] >= FALSE_SHOWN_MAX:
        return Decision(language, False, f"the check shows {_share(false)} of false sentences")
    return Decision(language, True, f"carried {_share(whole)} of its answers to their end")


def _is_on(decisions: Sequence[Decision]) -> bool:
    return all(each.shows_model for each in decisions)


def _shown(decision: Decision, decisions: Sequence[Decision]) -> str:
    if _is_on(decisions):
        return "the model's sentences"
    passages = "the passages' own sentences"
    return f"{passages}; the model's could be" if decision.shows_model else passages


def _cells(made: dict[str, Any], path: str) -> list[str]:
    cells = []
    for language in LANGUAGES:
        value: Any = made
        for name in path.format(language).split("."):
            value = value.get(name, {})
        cells.append(_share(value) if value else "")
    return cells


def _share(share: dict[str, Any]) -> str:
    if not share["count"]:
        return _NOT_MEASURED
    return f"{share['share']:.2f} ({share['low']:.2f}-{share['high']:.2f}) of {share['count']}"


def _mean(mean: dict[str, Any], unit: str) -> str:
    if not mean["count"]:
        return _NOT_MEASURED
    return f"{mean['mean']:.0f} ({mean['low']:.0f}-{mean['high']:.0f}) {unit}"
