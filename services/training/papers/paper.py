"""A paper as a list of blocks, and what it looks like as HTML and as PDF.

The HTML holds no script and fetches nothing. The PDF's Chinese is embedded from a TrueType font that is
given; without one it is set in STSong-Light, which PDF readers are to bring along, and not all do.
"""

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfbase.ttfonts import TTFError, TTFont
from reportlab.platypus import Image, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from services.training.errors import TrainingError

Language = Literal["en", "zh"]
_CJK = "STSong-Light"
_LATIN = re.compile(r"([\u0000-\u2e7f]+)")
_STYLE = (
    "body{font:15px/1.55 system-ui,sans-serif;max-width:58rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
    "h1{margin-bottom:0}h2{margin-top:2rem}table{border-collapse:collapse;margin:.6rem 0;font-size:.92em}"
    "td,th{padding:.25rem .8rem .25rem 0;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}figure{margin:1rem 0}"
    "img{max-width:100%}figcaption{color:#555;font-size:.9em}code{font-size:.9em;word-break:break-all}"
    "@media print{body{margin:0;max-width:none}h2{break-after:avoid}table,figure{break-inside:avoid}}"
)


@dataclass(frozen=True, slots=True)
class Heading:
    """A section begins."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A table; columns from `numbers_from` on are set to the right."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing, as SVG for the page and as PNG for the PDF, and what it shows in words."""

    svg: bytes
    png: bytes
    caption: str


Block = Heading | Text | Rows | Picture


@dataclass(frozen=True, slots=True)
class Paper:
    """A title, a line under it, and the blocks."""

    title: str
    subtitle: str
    blocks: Sequence[Block]
    language: Language


def to_html(paper: Paper) -> str:
    """One page, complete in itself."""
    parts = [f"<h1>{escape(paper.title)}</h1><p>{escape(paper.subtitle)}</p>"]
    for block in paper.blocks:
        if isinstance(block, Heading):
            parts.append(f"<h2>{escape(block.text)}</h2>")
        elif isinstance(block, Text):
            parts.append(f"<p>{escape(block.text)}</p>")
        elif isinstance(block, Rows):
            parts.append(_html_table(block))
        else:
            data = base64.b64encode(block.svg).decode()
            caption = escape(block.caption)
            parts.append(
                f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="{paper.language}"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(paper.title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def to_pdf(paper: Paper, chinese: Path | None = None) -> bytes:
    """A4 pages, the same bytes for the same paper and font.

    Args:
        chinese: a TrueType font with Chinese glyphs, embedded in a Chinese paper as far as it is used.
    Raises:
        TrainingError: the font cannot be read, or its outlines are not TrueType.
    """
    font, bold = "Helvetica", "Helvetica-Bold"
    mark: Callable[[str], str] = escape
    if paper.language == "zh":
        font = bold = _chinese_font(chinese)
        mark = _marked
    wrap = "CJK" if paper.language == "zh" else None
    body = ParagraphStyle("body", fontName=font, fontSize=9, leading=13, spaceAfter=4, wordWrap=wrap)
    cell = ParagraphStyle("cell", parent=body, fontSize=7.5, leading=10, spaceAfter=0)
    number = ParagraphStyle("number", parent=cell, alignment=2)
    h1 = ParagraphStyle("h1", parent=body, fontName=bold, fontSize=16, leading=20)
    h2 = ParagraphStyle("h2", parent=body, fontName=bold, fontSize=11.5, leading=15, spaceBefore=10)
    story: list[Any] = [Paragraph(mark(paper.title), h1), Paragraph(mark(paper.subtitle), body)]
    width = A4[0] - 36 * mm - 12  # a frame keeps 6 points free at each side
    for block in paper.blocks:
        if isinstance(block, Heading):
            story.append(Paragraph(mark(block.text), h2))
        elif isinstance(block, Text):
            story.append(Paragraph(mark(block.text), body))
        elif isinstance(block, Rows):
            story += [_pdf_table(block, cell, number, width, mark), Spacer(1, 6)]
        else:
            image = Image(BytesIO(block.png))
            image.drawWidth, image.drawHeight = (
                width * 0.8,
                width * 0.8 * image.imageHeight / image.imageWidth,
            )
            story += [image, Paragraph(mark(block.caption), cell), Spacer(1, 6)]
    out = BytesIO()
    document = SimpleDocTemplate(
        out,
        pagesize=A4,
        title=paper.title,
        author="Weir",
        leftMargin=18 * mm,
        rightMargin=18 * mm,
        topMargin=16 * mm,
        bottomMargin=16 * mm,
        invariant=1,  # no date and no random identifier inside
    )
    document.build(story)
    return out.getvalue()


def _marked(text: str) -> str:
    """Escaped, with letters, digits and signs in a font that has them: a Chinese one may not."""
    parts = _LATIN.split(text)
    return "".join(
        f'<font name="Helvetica">{escape(part)}</font>' if _LATIN.fullmatch(part) else escape(part)
        for part in parts
        if part
    )


def _chinese_font(path: Path | None) -> str:
    if path is None:
        pdfmetrics.registerFont(UnicodeCIDFont(_CJK))
        return _CJK
    try:
        pdfmetrics.registerFont(TTFont(path.stem, str(path)))
    except (TTFError, OSError) as error:
        raise TrainingError(
            f"{path} is not a TrueType font that can be embedded. Give another --font."
        ) from error
    return path.stem


def _html_table(block: Rows) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        made = (
            f"<{tag}{' class=n' if place >= block.numbers_from else ''}>{escape(text)}</{tag}>"
            for place, text in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    rows = "".join(line(cells, "td") for cells in block.rows)
    head = f"<thead>{line(block.head, 'th')}</thead>" if any(block.head) else ""
    return f"<table>{head}<tbody>{rows}</tbody></table>"


def _pdf_table(
    block: Rows, cell: ParagraphStyle, number: ParagraphStyle, width: float, mark: Callable[[str], str]
) -> Table:
    def line(cells: Sequence[str]) -> list[Paragraph]:
        return [
            Paragraph(mark(text), number if place >= block.numbers_from else cell)
            for place, text in enumerate(cells)
        ]

    head = [line(block.head)] if any(block.head) else []
    columns = max(len(block.head), *(len(row) for row in block.rows)) if block.rows else len(block.head)
    first = width * (0.34 if columns > 2 else 0.3)
    widths = [first] + [(width - first) / max(columns - 1, 1)] * (columns - 1)
    made = Table(
        [*head, *(line(row) for row in block.rows)], colWidths=widths, repeatRows=len(head), hAlign="LEFT"
    )
    made.setStyle(
        TableStyle(
            [
                ("LINEBELOW", (0, 0), (-1, -1), 0.4, colors.HexColor("#dddddd")),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 0),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        )
    )
    return made
