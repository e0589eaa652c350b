"""The service's own words: reviewed texts in both languages, which a bank edits."""

import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Self, get_args

from services.chat.domain import Language, Origin, Sentence
from weir.errors import WeirError

DEFAULT = Path(__file__).with_name("texts.toml")


class BadTexts(WeirError):
    """The file of texts cannot be used."""

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{path}: {why}. Compare it with {DEFAULT.name} as shipped.")


class Texts:
    """Texts by name and language."""

    def __init__(self, texts: Mapping[str, Mapping[str, str]]) -> None:
        self._texts = texts

    @classmethod
    def load(cls, path: Path = DEFAULT) -> Self:
        """The texts in `path`.

        Raises:
            BadTexts: it cannot be read, a text or a language is missing, or asks for other words than the
                shipped one.
        """
        shipped = _read(DEFAULT)
        texts = _read(path) if path != DEFAULT else shipped
        for name, by_language in shipped.items():
            for language in get_args(Language):
                text = texts.get(name, {}).get(language)
                if not isinstance(text, str) or not text.strip():
                    raise BadTexts(path, f"[{name}] has no text in {language!r}")
                if _words(path, name, text) != _words(DEFAULT, name, by_language[language]):
                    raise BadTexts(path, f"[{name}] {language} has other words in braces")
        return cls(texts)

    def __call__(
        self, name: str, language: Language, origin: Origin = Origin.FIXED, **words: object
    ) -> Sentence:
        """The text, with `words` put in."""
        return Sentence(self._texts[name][language].format(**words), origin)


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadTexts(path, "cannot be read as TOML") from error
    if not all(isinstance(each, dict) for each in table.values()):
        raise BadTexts(path, "each text is a table of languages")
    return table


def _words(path: Path, name: str, text: str) -> set[str]:
    try:
        return {word for _, word, _, _ in string.Formatter().parse(text) if word is not None}
    except ValueError as error:
        raise BadTexts(path, f"[{name}] has a single brace") from error
