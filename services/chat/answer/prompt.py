"""What the language model is asked: rules, passages, what was said before, the question; all masked.

Passages and messages come from outside: they cannot end the place where they stand, nor speak for the system.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.chat.domain import Hit, Language

VERSION = "v2"
Template = Literal["chatml", "llama3", "deepseek"]

_FOLDER = Path(__file__).parent / "prompts"
# How each family of models tells turns apart. Source: the chat templates published with SmolLM2 and Qwen2
# (ChatML), Llama 3 and DeepSeek-R1-Distill.
_TURN = {
    "chatml": "<|im_start|>{role}\n{text}<|im_end|>\n",
    "llama3": "<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>",
    "deepseek": "{mark}{text}",
}
_BEGIN = {
    "chatml": "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    # The template opens the thinking.
    "deepseek": "<｜Assistant｜><think>\n",
}
_DEEPSEEK_MARKS = {"system": "", "user": "<｜User｜>", "assistant": "<｜Assistant｜>"}


@dataclass(frozen=True, slots=True)
class Said:
    """A turn of the conversation, masked."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """text: for the model. version, sha256: of the rules as they stand in their file; hexadecimal."""

    text: str
    version: str
    sha256: str


class Prompts:
    """Renders prompts for one family of models.

    Args:
        template: how the family tells turns apart.
        canary: a word that stands in the rules and nowhere else; whoever sees it in an answer sees the rules.
        tokens_of: how many tokens a text has.
        tokens_max: of a prompt; the oldest turns are left out first, then the summary of those before.
    """

    def __init__(
        self, template: Template, canary: str, tokens_of: Callable[[str], int], *, tokens_max: int
    ) -> None:
        self._template, self._canary = template, canary
        self._tokens_of, self._tokens_max = tokens_of, tokens_max
        self._rules = {
            language: (_FOLDER / f"{VERSION}.{language}.txt").read_text(encoding="utf-8")
            for language in ("en", "zh")
        }

    @property
    def thinks_first(self) -> bool:
        """Whether an answer begins inside a thought."""
        return self._template == "deepseek"

    def __call__(
        self,
        question: str,
        hits: Sequence[Hit],
        history: Sequence[Said],
        language: Language,
        summary: str = "",
    ) -> Prompt:
        """The prompt for a question, made to fit: turns are left out first, then the summary, then passages.

        summary: of what was said before `history`.
        """
        rules = self._rules[language]
        sha256 = hashlib.sha256(rules.encode()).hexdigest()
        kept, said = list(hits), list(history)
        while True:
            text = self._rendered(rules, question, kept, said, summary)
            if self._tokens_of(text) <= self._tokens_max or not (said or summary or len(kept) > 1):
                return Prompt(text, VERSION, sha256)
            if said:
                del said[0]
            elif summary:
                summary = ""
            else:
                kept.pop()

    def _rendered(
        self, rules: str, question: str, hits: Sequence[Hit], history: Sequence[Said], summary: str
    ) -> str:
        passages = "\n".join(
            f'<passage id="{_inert(hit.passage.id)}">\n{_inert(hit.passage.text)}\n</passage>' for hit in hits
        )
        system = rules.format(canary=self._canary, passages=passages)
        if summary:
            system += f"\n<earlier>\n{_inert(summary)}\n</earlier>"
        turns = [("system", system), *((each.role, _inert(each.text)) for each in history)]
        turns.append(("user", _inert(question)))
        rendered = "".join(
            _TURN[self._template].format(role=role, text=text, mark=_DEEPSEEK_MARKS[role])
            for role, text in turns
        )
        return rendered + _BEGIN[self._template]


def _inert(text: str) -> str:
    """The text with nothing in it that could open or close a tag, or be one of a template's own tokens."""
    return text.replace("<", "‹").replace(">", "›").replace("｜", "|").replace("▁", "_")
