"""Documents as passages: by heading and paragraph, of a bounded size, no sentence cut."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from services.chat.domain import Passage
from services.chat.knowledge.about import about
from services.chat.knowledge.errors import DocumentRefused
from services.chat.knowledge.read import Block, Read
from services.chat.knowledge.tokens import is_han, tokens
from services.chat.understanding import language_of

# A single sentence beyond this is a broken file, not language.
_SENTENCE_CHARS_MAX = 4000
# What ends with a full stop and goes on.
_SHORT = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|approx|incl|excl|no|nos|vs|mr|mrs|ms|dr|prof|st|ltd|inc|co|plc|art|sec|fig|a\.m|p\.m|u\.s|u\.k"
    r"|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)|\b[A-Z])\.$",
    re.IGNORECASE,
)
# Before a capital these do end a sentence: "until 6 p.m. Later ...".
_SHORT_ENDS = re.compile(r"(?:a\.m|p\.m|etc|u\.s|u\.k|inc|ltd|plc)\.$", re.IGNORECASE)
_END = re.compile(r"[。！？；]+[”’』」）)]*|[.!?]+[\"'”’)\]]*(?=\s|$)|\n")


def sentences(text: str) -> list[str]:
    """The sentences of English or Chinese text, in order; joined they hold every word of it."""
    made: list[str] = []
    start = 0
    for match in _END.finditer(text):
        piece = text[start : match.end()]
        # A few characters suffice, and a text of line ends alone would be copied again and again.
        after = text[match.end() : match.end() + 16].lstrip()[:1]
        if match.group().startswith(".") and after:
            short = _SHORT.search(piece)
            if short and not (after.isupper() and _SHORT_ENDS.search(piece)):
                continue
            if after.islower():
                continue
        if piece.strip():
            made.append(piece.strip())
        start = match.end()
    if text[start:].strip():
        made.append(text[start:].strip())
    return made


def width(text: str) -> int:
    """Characters, a Chinese one counted as two: about as much is said in either language."""
    return len(text) + sum(map(is_han, text))


def passages_of(
    read: Read, document: str, version: int, chars_max: int
) -> Iterator[tuple[Passage, str | None]]:
    """Each passage, and why it must be kept out as far as the file's layout tells (hidden text, comments).

    Paragraphs under one heading stand together up to `chars_max` (see `width`); longer ones are divided
    between sentences. The id is `document@version#place`, place being the section's number, and after a dot
    the part's where a section is in parts.

    Raises:
        DocumentRefused: a row's fields are wrong, or a sentence of more than 4,000 characters.
    """
    whole = " ".join(block.text for block in read.blocks)
    title = read.fields.get("title") or _first_heading(read.blocks) or document.rsplit("/", 1)[-1]
    for (place, fields), blocks in groupby(read.blocks, lambda block: (block.place, block.fields)):
        section = list(blocks)
        said = about({**read.fields, **dict(fields)}, document)
        suspicion = next((block.suspicion for block in section if block.suspicion), None)
        parts = _parts([block.text for block in section if block.text], document, chars_max) or [""]
        heading = [name for name in section[0].headings if name != title]
        for number, text in enumerate(parts, 1):
            yield (
                Passage(
                    id=f"{document}@{version}#{place}" + (f".{number}" if len(parts) > 1 else ""),
                    document=document,
                    version=version,
                    language=said.language or language_of(whole),
                    title=": ".join([said.title or title, *heading]),
                    text=text,
                    valid_from_ms=said.valid_from_ms,
                    valid_to_ms=said.valid_to_ms,
                ),
                suspicion,
            )


def _first_heading(blocks: Sequence[Block]) -> str:
    """The heading that stands over the whole document, where one does."""
    over = {block.headings[:1] for block in blocks}
    only = over.pop() if len(over) == 1 else ()
    return only[0] if only and not blocks[0].fields else ""


def _parts(paragraphs: Sequence[str], document: str, chars_max: int) -> list[str]:
    parts: list[str] = []
    text, size = "", 0
    for paragraph in paragraphs:
        for number, sentence in enumerate(sentences(paragraph)):
            if len(sentence) > _SENTENCE_CHARS_MAX:
                raise DocumentRefused(
                    document, f"has a sentence of {len(sentence):,} characters; end sentences with full stops"
                )
            joint = "\n" if number == 0 else "" if is_han(sentence[0]) or text[-1:] in "。！？；" else " "
            if text and size + width(sentence) > chars_max:
                parts.append(text)
                text, size = "", 0
            text += (joint if text else "") + sentence
            size += width(sentence)
    if text:
        parts.append(text)
    return parts


def near_duplicates(passages: Sequence[Passage], share: float) -> list[tuple[str, str, float]]:
    """Pairs of passages that say nearly the same, with the share of three-word runs that both have.

    Source: Broder 1997, On the resemblance and containment of documents (w-shingling).
    """
    runs = [_runs(passage) for passage in passages]
    where: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, own in enumerate(runs):
        for run in own:
            where[run].append(row)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for rows in where.values():
        # A run in hundreds of passages (a footer) would make pairs of all of them.
        if 1 < len(rows) <= 200:
            for at, first in enumerate(rows):
                for second in rows[at + 1 :]:
                    shared[first, second] += 1
    found: list[tuple[str, str, float]] = []
    for (first, second), count in sorted(shared.items()):
        alike = count / (len(runs[first]) + len(runs[second]) - count)
        if alike >= share and passages[first].language == passages[second].language:
            found.append((passages[first].id, passages[second].id, alike))
    return found


def _runs(passage: Passage) -> set[tuple[str, ...]]:
    words = tokens(passage.text)
    return {tuple(words[at : at + 3]) for at in range(max(1, len(words) - 2))} if words else set()
