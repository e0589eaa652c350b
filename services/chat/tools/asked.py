"""Whether a message asks for a tool, by words alone: what changes something is never guessed by a model."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.chat.understanding.language import bounded
from weir.errors import WeirError

DEFAULT = Path(__file__).with_name("words.toml")
NAMES = ("person", "freeze_card", "balance", "last_payments", "dispute_payment")


class BadToolWords(WeirError):
    """The table of words cannot be used."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}. Compare it with {DEFAULT.name} as shipped.")


@dataclass(frozen=True, slots=True)
class Asked:
    """A tool that was asked for; which: the number of a payment, where one was named."""

    name: str
    which: int | None = None


class ToolWords:
    """The table, compiled."""

    def __init__(self, patterns: Mapping[str, re.Pattern[str]]) -> None:
        self._patterns = patterns

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Self:
        """The table in `path`.

        Raises:
            BadToolWords: it cannot be read, lacks a section or a language, or a pattern is none.
        """
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadToolWords(path, "cannot be read as TOML") from error
        return cls({name: _compiled(path, table, name) for name in (*NAMES, "yes", "no")})

    def __call__(self, text: str) -> Asked | None:
        """What the masked text asks for, or None."""
        plain = _plain(text)
        for name in NAMES:
            if found := self._patterns[name].search(plain):
                which = next(filter(None, found.groupdict().values()), None)
                return Asked(name, int(which) if which is not None else None)
        return None

    def is_yes(self, text: str) -> bool:
        """Whether the whole text is a yes."""
        return self._patterns["yes"].search(_plain(text)) is not None

    def is_no(self, text: str) -> bool:
        """Whether the whole text is a no."""
        return self._patterns["no"].search(_plain(text)) is not None


def _compiled(path: Path, table: Mapping[str, object], name: str) -> re.Pattern[str]:
    section = table.get(name)
    parts: list[str] = []
    for language in ("en", "zh"):
        words = section.get(language) if isinstance(section, dict) else None
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise BadToolWords(path, f"[{name}] needs patterns in `en` and in `zh`")
        parts += words
    # A name may stand once in a pattern: each alternative has its own.
    numbered = (part.replace("(?P<which>", f"(?P<which{at}>") for at, part in enumerate(parts))
    try:
        return re.compile("|".join(f"(?:{part})" for part in numbered), re.IGNORECASE)
    except re.error as error:
        raise BadToolWords(path, f"[{name}]: {error}") from error


def _plain(text: str) -> str:
    return bounded(text).replace("\u2019", "'")
