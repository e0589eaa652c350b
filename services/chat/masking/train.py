"""Trains the tagger of names and addresses: `python -m services.chat.masking.train --pii FILE --bank FILE`.

Presidio's synthetic sentences tell what names and addresses look like, a bank's questions without any what
they do not. Needs scikit-learn, which serving does not.
"""

import argparse
import csv
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.chat.domain import DataClass
from services.chat.evaluate.intervals import Share
from services.chat.evaluate.pii import Example, Figures, measure, read_presidio
from services.chat.masking import Masker
from services.chat.masking.tagger import BUCKETS, CLASSES, WEIGHTS, WORD, Tagger, features
from weir.errors import WeirError

# Chosen for recall on the other half of the templates while 99 of 100 bank questions stayed as they were.
THRESHOLD, _STRENGTH = 0.2, 0.3
_BANK_ROWS = 2_500
_HALVES = (range(5), range(5, 10))


def fit(examples: Sequence[Example]) -> NDArray[np.float32]:
    """(buckets, classes) float32, to be added up over a word's features."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows, labels = [], []
    for example in examples:
        kinds = _kinds(example)
        places = list(WORD.finditer(example.text))
        words = [place[0] for place in places]
        rows += [features(words, at) for at in range(len(words))]
        labels += [kinds.get(place.start(), 0) for place in places]
    ends = np.cumsum([0, *(len(row) for row in rows)])
    buckets = np.concatenate([np.array(row) for row in rows])
    matrix = csr_matrix((np.ones(len(buckets), np.float32), buckets, ends), shape=(len(rows), BUCKETS))
    model = LogisticRegression(C=_STRENGTH, max_iter=300).fit(matrix, labels)
    weights = np.asarray(model.coef_.T, np.float32)
    weights[zlib.crc32(b"bias") % BUCKETS] += model.intercept_
    return weights


def _kinds(example: Example) -> dict[int, int]:
    """Of each character that belongs to a class the class's number."""
    numbers = {data_class: number for number, data_class in enumerate(CLASSES)}
    return {
        at: numbers.get(span.data_class, 0) for span in example.spans for at in range(span.start, span.end)
    }


def read_bank(path: Path) -> list[Example]:
    """A bank's questions, a column `text`, in which nobody is named."""
    with path.open(encoding="utf-8", newline="") as file:
        return [Example(row["text"], ()) for row in csv.DictReader(file)]


def _tell(templates: range, figures: Figures, alone: Share) -> None:
    line = {
        "templates": [templates.start, templates.stop],
        "recall": {str(each): figures.recall(each).as_dict() for each in DataClass if figures.there[each]},
        "precision": figures.precision().as_dict(),
        "bank_texts_left_alone": alone.as_dict(),
    }
    sys.stdout.write(json.dumps(line) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure on halves that were not trained on, then train on all and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pii", type=Path, required=True, help="presidio_synth_v2.jsonl")
    parser.add_argument("--bank", type=Path, required=True, help="CSV with a column text")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args(arguments)
    bank = read_bank(options.bank)
    taught, judged = bank[0::2][:_BANK_ROWS], bank[1::2][:_BANK_ROWS]
    try:
        for half, other in (_HALVES, reversed(_HALVES)):
            tagger = Tagger(fit([*read_presidio(options.pii, templates=half), *taught]), THRESHOLD)
            masker = Masker(tagger=tagger)
            figures = measure(masker, read_presidio(options.pii, templates=other))
            alone = measure(masker, judged).left_alone
            _tell(other, figures, alone)
        Tagger.save(options.output, fit([*read_presidio(options.pii), *taught]), THRESHOLD)
    except (OSError, WeirError) as error:
        sys.stderr.write(f"train: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
