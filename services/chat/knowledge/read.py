"""Files of a bank's knowledge as headings and paragraphs: Markdown, HTML, CSV, PDF."""

import csv
import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from bs4 import BeautifulSoup, Comment
from bs4.element import NavigableString, PageElement, Tag
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pypdf import PdfReader
from pypdf.errors import PyPdfError

from services.chat.knowledge.about import front_matter
from services.chat.knowledge.errors import DocumentRefused
from services.chat.knowledge.suspicious import hidden_style, suspicious

_PAGES_MAX = 2000
_CSV_FIELDS = ("title", "language", "valid_from", "valid_to", "owner", "reviewed_by")
_DROPPED = ("script", "style", "noscript", "template", "iframe", "object", "svg", "head", "nav", "form")
_BLOCKS = frozenset(
    "p li td th dt dd pre blockquote figcaption div section article main header footer table tr ul ol dl "  # noqa: SIM905 - as one reads it
    "body html aside details summary h1 h2 h3 h4 h5 h6 br hr".split()
)


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph under its headings.

    place: number of the section (a heading and what stands under it), from 1.
    suspicion: why it must be kept out, seen in what was dropped from it; None when nothing was.
    fields: what a row of a table says about itself, over what the document says.
    """

    text: str
    headings: tuple[str, ...] = ()
    place: int = 1
    suspicion: str | None = None
    fields: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """What stands in a file, and what it says about itself."""

    blocks: tuple[Block, ...]
    fields: dict[str, str]


def text_of(data: bytes, document: str) -> str:
    """UTF-8 text with line ends of one kind.

    Raises:
        DocumentRefused: it is not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentRefused(document, f"is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00ad", "")


class _Sections:
    """Collects paragraphs under the headings that were open when they came."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: list[tuple[int, str]] = []
        self._place = 1
        self._used = False

    def heading(self, level: int, text: str) -> None:
        while self._open and self._open[-1][0] >= level:
            self._open.pop()
        self._open.append((level, text))
        self._place += self._used
        self._used = False

    def paragraph(self, text: str, suspicion: str | None = None) -> None:
        if text or suspicion:
            self._used = True
            headings = tuple(heading for _, heading in self._open)
            self.blocks.append(Block(text, headings, self._place, suspicion))


@lru_cache(maxsize=1)
def _markdown_parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable("table")


def markdown(data: bytes, document: str) -> Read:
    """Markdown with front matter; HTML inside is read as HTML.

    Raises:
        DocumentRefused: not UTF-8, or front matter that is malformed.
    """
    fields, text = front_matter(text_of(data, document), document)
    sections = _Sections()
    stream = _markdown_parser().parse(text)
    row: list[str] | None = None
    row_suspicion: str | None = None
    for at, token in enumerate(stream):
        if token.type == "heading_open":
            inline, suspicion = _inline(stream[at + 1])
            sections.heading(int(token.tag[1]), inline)
            if suspicion:
                sections.paragraph("", suspicion)
        elif token.type == "tr_open":
            row, row_suspicion = [], None
        elif token.type == "tr_close" and row is not None:
            sections.paragraph(" | ".join(cell for cell in row if cell), row_suspicion)
            row = None
        elif token.type == "inline" and stream[at - 1].type != "heading_open":
            inline, suspicion = _inline(token)
            if row is None:
                sections.paragraph(inline, suspicion)
            else:
                row.append(inline)
                row_suspicion = row_suspicion or suspicion
        elif token.type in ("fence", "code_block"):
            sections.paragraph(_spaced(token.content))
        elif token.type == "html_block":
            for block in _html_blocks(token.content):
                sections.paragraph(block.text, block.suspicion)
    return Read(tuple(sections.blocks), fields)


def _inline(token: Token) -> tuple[str, str | None]:
    if any(child.type == "html_inline" for child in token.children or ()):
        blocks = _html_blocks(token.content)
        return (
            " ".join(block.text for block in blocks if block.text),
            next((block.suspicion for block in blocks if block.suspicion), None),
        )
    parts: list[str] = []
    for child in token.children or ():
        if child.type in ("text", "code_inline"):
            parts.append(child.content)
        elif child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
    return _spaced("".join(parts)), None


def html(data: bytes, document: str) -> Read:
    """HTML without scripts, styles, navigation and forms; what is hidden is not read but marks its paragraph.

    Raises:
        DocumentRefused: not UTF-8.
    """
    text = text_of(data, document)
    soup = BeautifulSoup(text, "html.parser")
    fields: dict[str, str] = {}
    title = soup.find("title")
    if isinstance(title, Tag) and title.get_text(strip=True):
        fields["title"] = _spaced(title.get_text())
    root = soup.find("html")
    said = root.get("lang") if isinstance(root, Tag) else None
    if isinstance(said, str) and said.lower()[:2] in ("en", "zh"):
        fields["language"] = said.lower()[:2]
    return Read(tuple(_html_blocks(text)), fields)


def _html_blocks(text: str) -> list[Block]:
    soup = BeautifulSoup(text, "html.parser")
    for tag in soup.find_all(_DROPPED):
        tag.decompose()
    sections = _Sections()
    line: list[str] = []
    suspicion: str | None = None

    def end() -> None:
        nonlocal suspicion
        sections.paragraph(_spaced("".join(line)), suspicion)
        line.clear()
        suspicion = None

    # By hand and not by recursion: a page may nest deeper than Python's stack.
    todo: list[PageElement | str] = [soup]
    while todo:
        node = todo.pop()
        if isinstance(node, str) and not isinstance(node, NavigableString):
            end()
        elif isinstance(node, Comment):
            if (reason := suspicious(str(node))) is not None:
                suspicion = f"has a comment that {reason}"
        elif isinstance(node, NavigableString):
            line.append(str(node))
        elif isinstance(node, Tag):
            if _is_hidden(node):
                if node.get_text(strip=True):
                    suspicion = "holds text that a reader does not see"
                continue
            if node.name in ("h1", "h2", "h3", "h4", "h5", "h6"):
                end()
                sections.heading(int(node.name[1]), _spaced(node.get_text()))
                continue
            if node.name in ("td", "th") and line:
                line.append(" | ")
            elif node.name in _BLOCKS:
                end()
                todo.append("end")
            todo.extend(reversed(list(node.children)))
    end()
    return sections.blocks


def _is_hidden(tag: Tag) -> bool:
    style = tag.get("style")
    return (
        tag.has_attr("hidden")
        or tag.get("aria-hidden") == "true"
        or (isinstance(style, str) and hidden_style(style))
    )


def table(data: bytes, document: str) -> Read:
    """CSV with the columns question and answer; a row may also have the fields of `about`.

    Raises:
        DocumentRefused: not UTF-8, not CSV, or a column is missing.
    """
    rows = csv.DictReader(io.StringIO(text_of(data, document)), strict=True)
    blocks: list[Block] = []
    try:
        names = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
        if "question" not in names or "answer" not in names:
            raise DocumentRefused(document, "needs the columns question and answer in its first line")
        for place, row in enumerate(rows, 1):
            answer = _spaced(row[names["answer"]] or "")
            if answer:
                said = {name: (row[names[name]] or "").strip() for name in _CSV_FIELDS if name in names}
                question = _spaced(row[names["question"]] or "")
                extra = tuple((name, value) for name, value in said.items() if value)
                blocks.append(Block(answer, (question,) if question else (), place, fields=extra))
    except csv.Error as error:
        raise DocumentRefused(document, f"is not CSV: {error}") from None
    return Read(tuple(blocks), {})


def pdf(data: bytes, document: str) -> Read:
    """The text of a PDF, a section for each page; a scan has none.

    Raises:
        DocumentRefused: broken, protected by a password, too many pages, or without text.
    """
    # pypdf logs what it repairs, with parts of the document.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted:
            raise DocumentRefused(document, "is protected by a password; save it without one")
        if len(reader.pages) > _PAGES_MAX:
            raise DocumentRefused(document, f"has more than {_PAGES_MAX} pages; divide it")
        pages = [page.extract_text() for page in reader.pages]
        title = ((reader.metadata.title if reader.metadata else None) or "").strip()
    # pypdf meets a broken file with whatever the broken part leads to.
    except (
        PyPdfError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OSError,
        AssertionError,
        NotImplementedError,
    ) as error:
        raise DocumentRefused(
            document, f"is a broken PDF ({type(error).__name__}); save it anew or as text"
        ) from None
    blocks = [
        Block(_spaced(paragraph), (), number)
        for number, page in enumerate(pages, 1)
        for paragraph in re.split(r"\n\s*\n", page)
        if paragraph.strip()
    ]
    if not blocks:
        raise DocumentRefused(document, "has no text (a scan?); run text recognition over it first")
    return Read(tuple(blocks), {"title": title} if title else {})


_WIDE = r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]"
_HAN_BREAK = re.compile(rf"(?<={_WIDE})[^\S\n]*\n\s*(?={_WIDE})")


def _spaced(text: str) -> str:
    """One line: a line break is a space, and nothing between Chinese characters."""
    return re.sub(r"\s+", " ", _HAN_BREAK.sub("", text)).strip()


READERS: dict[str, Callable[[bytes, str], Read]] = {
    ".md": markdown,
    ".markdown": markdown,
    ".html": html,
    ".htm": html,
    ".csv": table,
    ".pdf": pdf,
}
