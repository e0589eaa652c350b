"""What a document says about itself: front matter, or a file beside it."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import cast

from services.chat.domain import Language
from services.chat.knowledge.errors import DocumentRefused

_FIELDS = frozenset({"title", "language", "valid_from", "valid_to", "owner", "reviewed_by"})
_DAY = len("2026-01-31")


@dataclass(frozen=True, slots=True)
class About:
    """A document's title, language, validity (ms since the epoch; None is open), who answers for it."""

    title: str = ""
    language: Language | None = None
    valid_from_ms: int | None = None
    valid_to_ms: int | None = None
    owner: str = ""
    reviewed_by: str = ""


def about(fields: dict[str, str], document: str) -> About:
    """The fields, checked.

    `valid_from` and `valid_to` are days (UTC, both are still valid) or moments with a time zone.

    Raises:
        DocumentRefused: an unknown field, a language that is neither en nor zh, a date that is none, an end
            before the beginning.
    """
    unknown = sorted(set(fields) - _FIELDS)
    if unknown:
        raise DocumentRefused(
            document, f"unknown field {unknown[0][:40]!r}; there are {', '.join(sorted(_FIELDS))}"
        )
    language = fields.get("language", "").lower().split("-")[0] or None
    if language not in (None, "en", "zh"):
        raise DocumentRefused(document, "language must be en or zh")
    begin = _moment(fields.get("valid_from", ""), "valid_from", document, last=False)
    end = _moment(fields.get("valid_to", ""), "valid_to", document, last=True)
    if begin is not None and end is not None and end <= begin:
        raise DocumentRefused(document, "valid_to is before valid_from")
    return About(
        title=fields.get("title", ""),
        language=cast("Language | None", language),
        valid_from_ms=begin,
        valid_to_ms=end,
        owner=fields.get("owner", ""),
        reviewed_by=fields.get("reviewed_by", ""),
    )


def _moment(value: str, name: str, document: str, *, last: bool) -> int | None:
    if not value:
        return None
    try:
        if len(value) <= _DAY:
            day = datetime.combine(date.fromisoformat(value), datetime.min.time(), UTC)
            moment = day + timedelta(days=1) if last else day
        else:
            moment = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        raise DocumentRefused(document, f"{name} must be a day such as 2026-01-31") from None
    if moment.tzinfo is None:
        raise DocumentRefused(document, f"{name} has a time but no time zone; write a day, or add +00:00")
    return round(moment.timestamp() * 1000)


def fields_of(lines: list[str], document: str) -> dict[str, str]:
    """`name: value` lines as a dict; empty lines and those that begin with # say nothing.

    Raises:
        DocumentRefused: a line that is neither, or a name that stands twice.
    """
    fields: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, value = line.partition(":")
        if not colon or not name.strip().replace("_", "").isalpha():
            raise DocumentRefused(
                document, f"line {number} of what it says about itself is not `name: value`"
            )
        if name.strip() in fields:
            raise DocumentRefused(document, f"{name.strip()[:40]} stands twice")
        fields[name.strip()] = value.strip().strip("\"'").strip()
    return fields


def front_matter(text: str, document: str) -> tuple[dict[str, str], str]:
    """The fields between two lines of `---` at the top, and the text under them.

    Raises:
        DocumentRefused: it has no end, or a line is malformed.
    """
    lines = text.split("\n")
    if lines[0].rstrip() != "---":
        return {}, text
    ends = [at for at, line in enumerate(lines[1:], 1) if line.rstrip() == "---"]
    if not ends:
        raise DocumentRefused(document, "its front matter has no end; close it with a line ---")
    return fields_of(lines[1 : ends[0]], document), "\n".join(lines[ends[0] + 1 :])
