"""How urgent a message is and how it sounds, by a table of words that a bank edits."""

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chat.domain import Urgency
from services.chat.understanding.language import bounded
from weir.errors import WeirError

DEFAULT_TABLE = Path(__file__).with_name("words.toml")
_SECTIONS = ("emergency", "high", "positive", "negative", "negation")


class BadWordTable(WeirError):
    """The table of words cannot be used."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}. Compare it with {DEFAULT_TABLE.name} as shipped.")


def _alternatives(en: Sequence[str], zh: Sequence[str]) -> str:
    # Longest first, so that a phrase is preferred to a word that begins it.
    words = sorted((re.escape(word.lower()) for word in en), key=len, reverse=True)
    signs = sorted((re.escape(word.lower()) for word in zh), key=len, reverse=True)
    return rf"(?:\b(?:{'|'.join(words)})\b|{'|'.join(signs)})"


@dataclass(frozen=True, slots=True)
class WordTable:
    """The table, compiled. Matching is linear in the text, of which a bounded part is read."""

    emergency: re.Pattern[str]
    high: re.Pattern[str]
    positive: re.Pattern[str]
    negative: re.Pattern[str]
    negated: re.Pattern[str]

    def urgency(self, text: str) -> Urgency:
        """EMERGENCY before HIGH. A negated word still counts: a needless hand-over is the cheaper error."""
        plain = _plain(text)
        if self.emergency.search(plain):
            return Urgency.EMERGENCY
        return Urgency.HIGH if self.high.search(plain) else Urgency.NORMAL

    def sentiment(self, text: str) -> float:
        """-1 (angry) to 1 (pleased), 0 without a word of mood; a negation just before a word turns it."""
        plain = _plain(text)
        score = count = 0
        for pattern, sign in ((self.positive, 1), (self.negative, -1)):
            for match in pattern.finditer(plain):
                before = plain[max(0, match.start() - 16) : match.start()]
                score += -sign if self.negated.search(before) else sign
                count += 1
        return score / count if count else 0.0


def _plain(text: str) -> str:
    return bounded(text).lower().replace("\u2019", "'")


def load_words(path: Path = DEFAULT_TABLE) -> WordTable:
    """The table at `path`.

    Raises:
        BadWordTable: it is missing, is no TOML, or a section lacks words in a language.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadWordTable(path, "cannot be read as TOML") from error
    parts: dict[str, str] = {}
    for section in _SECTIONS:
        found = table.get(section)
        lists = [found.get(language) for language in ("en", "zh")] if isinstance(found, dict) else []
        if not lists or not all(
            isinstance(words, list)
            and words
            and all(isinstance(word, str) and word.strip() for word in words)
            for words in lists
        ):
            raise BadWordTable(path, f"[{section}] needs words in `en` and in `zh`")
        parts[section] = _alternatives(*lists)  # type: ignore[arg-type]  # both were checked above
    negated = re.compile(parts.pop("negation") + r"(?:\s+(?:very|so|at all|a|that|really))?\s*$")
    return WordTable(negated=negated, **{name: re.compile(part) for name, part in parts.items()})
