"""What the papers say, in English and in Chinese: `words.toml`."""

import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from services.training.papers.paper import Language

Say = Callable[[str], str]


def speaking(language: Language) -> Say:
    """The words of one language, by their key."""
    return lambda key: words()[key][language]


@cache
def words() -> Mapping[str, Mapping[str, str]]:
    """By key and language."""
    return tomllib.loads((Path(__file__).parent / "words.toml").read_text(encoding="utf-8"))
