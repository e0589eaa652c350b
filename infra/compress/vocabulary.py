"""A sentence encoder without the pieces of scripts that nobody writes to it in.

A unigram tokenizer cuts a text into its likeliest pieces; one that stands nowhere in the text has no part
in that. So texts of the kept scripts are cut as before, and their vectors stay.

Source: Abdaoui et al. 2020 (most of a small multilingual model is its vocabulary).
"""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.encoder.weights import Encoder, Weight
from infra.weights.quantise import Blocks

_TABLE = "embeddings.word_embeddings.weight"
# First words of the Unicode names of letters of these scripts; what is no letter stays.
LATIN_AND_HAN = ("LATIN", "CJK", "FULLWIDTH", "MODIFIER", "FEMININE", "MASCULINE", "COMBINING", "IDEOGRAPHIC")


def is_unigram(encoder: Encoder) -> bool:
    """Whether the tokenizer is of the kind whose pieces can go."""
    return bool(json.loads(encoder.tokenizer)["model"]["type"] == "Unigram")


def trimmed(encoder: Encoder, scripts: tuple[str, ...] = LATIN_AND_HAN) -> Encoder:
    """The encoder with the pieces of these scripts alone, numbered anew.

    Raises:
        ValueError: its tokenizer is of another kind.
    """
    said = json.loads(encoder.tokenizer)
    model = said["model"]
    if model["type"] != "Unigram":
        raise ValueError(f"a tokenizer of kind {model['type']}")
    pieces: list[tuple[str, float]] = model["vocab"]
    special = {int(token["id"]) for token in said["added_tokens"]} | {int(model["unk_id"])}
    kept = np.array([at in special or _is_of(piece, scripts) for at, (piece, _) in enumerate(pieces)])
    number = np.cumsum(kept) - 1
    model["vocab"] = [piece for piece, stays in zip(pieces, kept, strict=True) if stays]
    _renumber(said, number)
    # Rows behind the last piece belong to none.
    weights: dict[str, Weight] = {**encoder.weights}
    weights[_TABLE] = _rows(weights[_TABLE], np.flatnonzero(kept))
    return replace(encoder, weights=weights, tokenizer=json.dumps(said, ensure_ascii=False))


def _renumber(said: dict[str, Any], number: NDArray[np.int64]) -> None:
    """Every place of tokenizer.json where a token stands by its number."""
    said["model"]["unk_id"] = int(number[said["model"]["unk_id"]])
    for token in said["added_tokens"]:
        token["id"] = int(number[token["id"]])
    if said.get("padding"):
        said["padding"]["pad_id"] = int(number[said["padding"]["pad_id"]])
    around: Mapping[str, Any] = (said.get("post_processor") or {}).get("special_tokens", {})
    for token in around.values():
        token["ids"] = [int(number[each]) for each in token["ids"]]


def _rows(table: Weight, rows: NDArray[np.intp]) -> Weight:
    if not isinstance(table, Blocks):
        return np.ascontiguousarray(table[rows])
    return replace(table, quanta=table.quanta[rows], scale=table.scale[rows], zero=table.zero[rows])


def _is_of(piece: str, scripts: tuple[str, ...]) -> bool:
    return all(_is_letter_of(letter, scripts) for letter in piece)


@cache
def _is_letter_of(letter: str, scripts: tuple[str, ...]) -> bool:
    if unicodedata.category(letter)[0] not in "LM":
        return True
    return unicodedata.name(letter, "").startswith(scripts)
