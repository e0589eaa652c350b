"""Reason texts: for each feature two reviewed texts in two languages, when it raises and when it lowers.

The texts are for analysts and speak of the payment, not of the person. They stand in `reasons.toml`; nothing
is composed at run time, so what was reviewed is what is shown.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.risk.errors import PolicyError
from services.risk.policy import first_error, parse_toml, read_file
from weir.codec.decision import ReasonText

Text = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\r\n]+$")]


class Entry(BaseModel):
    """One feature in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: str = Field(pattern=r"^[A-Z][A-Z0-9_]{1,39}$")
    raises_en: Text
    raises_zh: Text
    lowers_en: Text
    lowers_zh: Text


_ENTRIES = TypeAdapter(dict[str, Entry])


@dataclass(frozen=True, slots=True)
class ReasonTable:
    """`texts[j]`: feature j raises the score; `texts[F + j]`: it lowers it (its code ends in `_LOW`)."""

    features: tuple[str, ...]
    texts: tuple[ReasonText, ...]
    sha256: str

    @classmethod
    def load(cls, path: Path, features: Sequence[str]) -> Self:
        """The table for a model's features, in its order; entries for other features are left out.

        Raises:
            PolicyError: unreadable, malformed, two features with one code, or a feature without an entry.
        """
        data = read_file(path)
        try:
            entries = _ENTRIES.validate_python(parse_toml(data, path))
        except ValidationError as error:
            raise PolicyError(f"{path}: {first_error(error)}. Correct it.") from None
        missing = [name for name in features if name not in entries]
        if missing:
            raise PolicyError(f"{path}: no reason for feature {', '.join(missing)}. Add [{missing[0]}].")
        codes = [entry.code for entry in entries.values()]
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise PolicyError(f"{path}: code {twice[0]} stands twice. Give each feature its own.")
        found = [(name, entries[name]) for name in features]
        raising = [ReasonText(e.code, name, e.raises_en, e.raises_zh) for name, e in found]
        lowering = [ReasonText(f"{e.code}_LOW", name, e.lowers_en, e.lowers_zh) for name, e in found]
        return cls(tuple(features), (*raising, *lowering), hashlib.sha256(data).hexdigest())
