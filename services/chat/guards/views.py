"""The ways in which one text may be meant: as it stands, without disguises, and decoded.

Rules look at each. Whoever spells a word with digits, spaces or another script's letters means the word;
whoever asks for something "in base64" means what it decodes to.
"""

import base64
import binascii
import codecs
import re
import unicodedata

TEXT_CHARS_MAX = 6_000
_HIDDEN = re.compile(
    r"[\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufe00-\ufe0f\ufeff]"
    r"|[\U000e0000-\U000e007f]"
)
# Letters of other scripts that look like Latin ones, small.
_LOOKS_LIKE = str.maketrans("авекмнорстухіјѕԁԛԝɡ" + "αβεικνορτυχ", "abekmhopctyxijsdqwg" + "abeiknoptux")
# 1 stands for l or for i.
_LEET = [str.maketrans("0134578@$!|", f"o{one}eastbasi{one}") for one in "li"]
# Tags and marks between letters: <b>ig</b>nore, ig*no*re.
_TAG = re.compile(r"<[^<>]{0,80}>")
_MARKS = re.compile(r"(?<=\w)[*_~`^|\\]+(?=\w)")
_SPELT = re.compile(r"(?<![A-Za-z])(?:[A-Za-z][ .\-_/]){4,}[A-Za-z](?![A-Za-z])")
_HAN_SPELT = re.compile(r"(?<=[\u4e00-\u9fff])[\s.\-_*/|·。,，]{1,2}(?=[\u4e00-\u9fff])")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{16,}={0,2}(?![A-Za-z0-9+/=])")
_HEX = re.compile(r"(?<![0-9a-fA-F])(?:[0-9a-fA-F]{2}[ ]?){10,}(?![0-9a-fA-F])")
_ESCAPES = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})|%([0-9a-fA-F]{2})")
_DECODED_MAX = 8


def views_of(text: str) -> list[str]:
    """Small letters, one space between words; the first is the plain text, each other once."""
    bounded = text[:TEXT_CHARS_MAX]
    plain = fold(bounded)
    views = [
        plain,
        fold(_TAG.sub("", bounded)),
        _MARKS.sub("", plain),
        *(plain.translate(leet) for leet in _LEET),
        _SPELT.sub(lambda run: re.sub(r"[ .\-_/]", "", run[0]), plain),
        _HAN_SPELT.sub("", plain),
        *map(fold, _decoded(bounded)),
    ]
    return list(dict.fromkeys(views))


def fold(text: str) -> str:
    """Compatibility forms, nothing that does not show, small letters, look-alikes as the Latin letter."""
    plain = _HIDDEN.sub("", unicodedata.normalize("NFKC", text)).lower().translate(_LOOKS_LIKE)
    bare = "".join(
        letter for letter in unicodedata.normalize("NFD", plain) if unicodedata.category(letter) != "Mn"
    )
    return re.sub(r"[^\S\n]+", " ", bare.replace("\u2019", "'").replace("\u2018", "'"))


def _decoded(text: str) -> list[str]:
    found: list[str] = []
    for run in _BASE64.findall(text)[:_DECODED_MAX]:
        try:
            found.append(base64.b64decode(run + "=" * (-len(run) % 4), validate=True).decode())
        except (binascii.Error, UnicodeDecodeError):
            continue  # a word or a number, not a text
    for run in _HEX.findall(text)[:_DECODED_MAX]:
        try:
            found.append(bytes.fromhex(run).decode())
        except (ValueError, UnicodeDecodeError):
            continue  # a number
    if _ESCAPES.search(text):
        found.append(_ESCAPES.sub(lambda code: chr(int(code[1] or code[2] or code[3], 16)), text))
    if "rot13" in text.lower() or "rot-13" in text.lower() or "凯撒" in text:
        found.append(codecs.decode(text, "rot13"))
    if re.search(r"backwards|reversed?\b|倒(?:过来|着)|反过来", text, re.IGNORECASE):
        found.append(text[::-1])
    return found
