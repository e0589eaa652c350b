"""Intents: a head over a sentence encoder's vectors, fitted, calibrated, measured and written for Triton.

Two multinomial logistic regressions, one over the encoder's vectors and one over hashed n-grams with inverse
document frequencies; their logarithms are added, and a temperature calibrates the sum (Guo et al. 2017). All
figures are of questions that the fit had not seen: stratified folds over the training set.
"""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from services.chat.domain import Encoder
from services.chat.evaluate.intervals import Share
from services.chat.understanding.intents import NAME, OUTPUT, VERSION
from services.chat.understanding.ngrams import DIMENSION, hashed
from services.training.errors import TrainingError

Floats = NDArray[np.float32]

_FOLDS, _SEED = 5, 7
_C_VECTORS, _C_NGRAMS = 10.0, 20.0
# Half as sure of the n-grams as of the vectors.
_NGRAM_SHARE = 0.5
# In-scope questions that may be taken for out of scope.
_REJECTED_MAX = 0.05
_ROWS_MIN = 10
_OPSET = 17


@dataclass(frozen=True, slots=True)
class Questions:
    """texts, labels: of one length. vectors: (n, d). ngrams: (n, 4096)."""

    texts: Sequence[str]
    labels: NDArray[np.str_]
    vectors: Floats
    ngrams: Floats


@dataclass(frozen=True, slots=True)
class Head:
    """Columns are `labels`; weights are (d, k) and (4096, k), idf (4096,)."""

    labels: list[str]
    weights: Floats
    bias: Floats
    ngram_weights: Floats
    ngram_bias: Floats
    idf: Floats
    temperature: float = 1.0
    threshold: float = 0.0

    def logits(self, vectors: Floats, ngrams: Floats) -> Floats:
        """(n, k), before the temperature."""
        return _log_softmax(vectors @ self.weights + self.bias) + _NGRAM_SHARE * _log_softmax(
            _weighted(ngrams, self.idf) @ self.ngram_weights + self.ngram_bias
        )

    def probabilities(self, vectors: Floats, ngrams: Floats) -> Floats:
        """(n, k), calibrated."""
        return np.exp(_log_softmax(self.logits(vectors, ngrams) / self.temperature))


def read_questions(folder: Path) -> list[tuple[str, str]]:
    """Text and label of each row of `train.csv` (columns text, category), as BANKING77 has it.

    Raises:
        TrainingError: no such file, other columns, one label, or a label with too few questions.
    """
    rows = read_labelled(folder / "train.csv")
    counts = Counter(label for _, label in rows)
    if len(counts) < 2 or min(counts.values()) < _ROWS_MIN:
        raise TrainingError(
            f"{folder / 'train.csv'}: needs two labels or more, each with at least {_ROWS_MIN} questions."
        )
    return rows


def read_labelled(path: Path) -> list[tuple[str, str]]:
    """Text and label of each row of a CSV file with the columns text and category.

    Raises:
        TrainingError: no such file, other columns, or no row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(row["text"].strip(), row["category"].strip()) for row in csv.DictReader(file)]
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}. Name a CSV file of text and category.") from error
    except (KeyError, AttributeError, csv.Error, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: not CSV with the columns text and category.") from error
    if not (rows := [(text, label) for text, label in rows if text and label]):
        raise TrainingError(f"{path}: holds no question with its category.")
    return rows


async def encoded(rows: Sequence[tuple[str, str]], encoder: Encoder, *, portion: int = 256) -> Questions:
    """The questions with what the head sees of them."""
    texts = [text for text, _ in rows]
    vectors = [await encoder(texts[at : at + portion]) for at in range(0, len(texts), portion)]
    labels = np.array([label for _, label in rows])
    return Questions(texts, labels, np.concatenate(vectors), hashed(texts))


def fit(questions: Questions, rows: NDArray[np.intp] | None = None) -> Head:
    """On these rows, or all; neither calibrated nor with a threshold."""
    rows = np.arange(len(questions.labels)) if rows is None else rows
    vectors, ngrams, labels = questions.vectors[rows], questions.ngrams[rows], questions.labels[rows]
    idf = np.log(1 / np.maximum((ngrams > 0).mean(axis=0), 1 / len(rows))).astype(np.float32)
    # An encoder's vectors lie in a narrow cone: its middle moved to 0, each dimension made as wide.
    middle, width = vectors.mean(axis=0), vectors.std(axis=0) * np.sqrt(vectors.shape[1])
    width[width == 0] = 1
    first = LogisticRegression(C=_C_VECTORS, max_iter=400).fit((vectors - middle) / width, labels)
    weights = first.coef_.T / width[:, None]
    second = LogisticRegression(C=_C_NGRAMS, max_iter=100).fit(_weighted(ngrams, idf), labels)
    return Head(
        [str(label) for label in first.classes_],
        weights.astype(np.float32),
        (first.intercept_ - middle @ weights).astype(np.float32),
        second.coef_.T.astype(np.float32),
        second.intercept_.astype(np.float32),
        idf,
    )


def train(
    questions: Questions, out_of_scope: Questions | None = None, test: Questions | None = None
) -> tuple[Head, dict[str, Any]]:
    """The head fitted on all, calibrated on what folds had not seen; and its figures, for JSON.

    test: questions apart, which nothing is fitted or chosen on.
    """
    logits, truth, labels = _held_out(questions)
    temperature = _temperature(logits, truth)
    probabilities = np.exp(_log_softmax(logits / temperature))
    sure, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    threshold = float(np.quantile(sure, _REJECTED_MAX))
    whole = fit(questions)
    head = Head(
        whole.labels,
        whole.weights,
        whole.bias,
        whole.ngram_weights,
        whole.ngram_bias,
        whole.idf,
        temperature,
        threshold,
    )
    assert head.labels == labels
    kept = sure >= threshold
    figures: dict[str, Any] = {
        "questions": len(truth),
        "intents": len(labels),
        "folds": _FOLDS,
        "accuracy": Share(int(hit.sum()), len(hit)).as_dict(),
        "accuracy_of_accepted": Share(int(hit[kept].sum()), int(kept.sum())).as_dict(),
        "in_scope_rejected": Share(int((~kept).sum()), len(kept)).as_dict(),
        "calibration_error": round(calibration_error(sure, hit), 4),
        "temperature": round(temperature, 4),
        "threshold": round(threshold, 4),
    }
    if out_of_scope is not None:
        strange = head.probabilities(out_of_scope.vectors, out_of_scope.ngrams).max(axis=1)
        figures["out_of_scope_rejected"] = Share(int((strange < threshold).sum()), len(strange)).as_dict()
    if test is not None:
        figures["test"] = measured(head, test)
    return head, figures


def measured(head: Head, test: Questions) -> dict[str, Any]:
    """Accuracy, calibration and rejection on questions that the head has not seen, for JSON."""
    probabilities = head.probabilities(test.vectors, test.ngrams)
    sure = probabilities.max(axis=1)
    hit = np.array(head.labels)[probabilities.argmax(axis=1)] == test.labels
    kept = sure >= head.threshold
    return {
        "accuracy": Share(int(hit.sum()), len(hit)).as_dict(),
        "accuracy_of_accepted": Share(int(hit[kept].sum()), int(kept.sum())).as_dict(),
        "in_scope_rejected": Share(int((~kept).sum()), len(kept)).as_dict(),
        "calibration_error": round(calibration_error(sure, hit), 4),
    }


def calibration_error(sure: Floats, hit: NDArray[np.bool_], bins: int = 15) -> float:
    """Expected calibration error over equally wide bins (Naeini et al. 2015)."""
    at = np.minimum((sure * bins).astype(int), bins - 1)
    gaps = [
        abs(float(sure[at == each].mean()) - float(hit[at == each].mean())) * float((at == each).mean())
        for each in range(bins)
        if (at == each).any()
    ]
    return sum(gaps)


def read_out_of_scope(path: Path) -> list[tuple[str, str]]:
    """The utterances of intent `oos` in JSON lines with text and intent, as CLINC150 has them.

    Raises:
        TrainingError: not such a file.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(str(row["text"]), "oos") for row in rows if row["intent"] == "oos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{path}: not JSON lines with text and intent.") from error


def write(head: Head, figures: dict[str, Any], repository: Path, origin: str) -> Path:
    """Put the head into a Triton model repository, with its card beside it; the version's folder."""
    folder = repository / NAME / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    model = to_model(head)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    about = {
        "labels": head.labels,
        "threshold": head.threshold,
        "sha256": hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest(),
        "card": {"origin": origin, "figures": figures},
    }
    (folder / "model.json").write_text(
        json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    width = head.weights.shape[0] + DIMENSION
    config = _CONFIG.format(name=NAME, width=width, labels=len(head.labels))
    (repository / NAME / "config.pbtxt").write_text(config, encoding="utf-8")
    return folder


_CONFIG = """\
# Written by `weir train intent`.
name: "{name}"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: 256
input [ {{ name: "features" data_type: TYPE_FP32 dims: [ {width} ] }} ]
output [ {{ name: "probability" data_type: TYPE_FP32 dims: [ {labels} ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
"""


def to_model(head: Head) -> onnx.ModelProto:
    """`features` FP32 [n, d + 4096] to `probability` FP32 [n, k]; weights are kept as 16-bit floats."""
    width = head.weights.shape[0]
    constants: dict[str, NDArray[Any]] = {
        "w1": head.weights.astype(np.float16),
        "w2": head.ngram_weights.astype(np.float16),
        "b1": head.bias,
        "b2": head.ngram_bias,
        "idf": head.idf,
        "share": np.array([_NGRAM_SHARE], np.float32),
        "cool": np.array([1 / head.temperature], np.float32),
        "tiny": np.array([1e-9], np.float32),
        "zero": np.array([0], np.int64),
        "cut": np.array([width], np.int64),
        "end": np.array([width + DIMENSION], np.int64),
        "one": np.array([1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Slice", ["features", "zero", "cut", "one"], ["vector"]),
        node("Slice", ["features", "cut", "end", "one"], ["counts"]),
        node("Cast", ["w1"], ["W1"], to=TensorProto.FLOAT),
        node("Cast", ["w2"], ["W2"], to=TensorProto.FLOAT),
        node("MatMul", ["vector", "W1"], ["m1"]),
        node("Add", ["m1", "b1"], ["l1"]),
        node("LogSoftmax", ["l1"], ["p1"], axis=1),
        node("Mul", ["counts", "idf"], ["weighted"]),
        node("ReduceL2", ["weighted"], ["norm"], axes=[1], keepdims=1),
        node("Max", ["norm", "tiny"], ["safe"]),
        node("Div", ["weighted", "safe"], ["unit"]),
        node("MatMul", ["unit", "W2"], ["m2"]),
        node("Add", ["m2", "b2"], ["l2"]),
        node("LogSoftmax", ["l2"], ["p2"], axis=1),
        node("Mul", ["p2", "share"], ["half"]),
        node("Add", ["p1", "half"], ["logits"]),
        node("Mul", ["logits", "cool"], ["cooled"]),
        node("Softmax", ["cooled"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "intent",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", width + DIMENSION])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", len(head.labels)])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def _held_out(questions: Questions) -> tuple[Floats, NDArray[np.intp], list[str]]:
    """Logits of each question by a head that had not seen it, the true columns, and the labels."""
    labels, truth = np.unique(questions.labels, return_inverse=True)
    logits = np.zeros((len(truth), len(labels)), np.float32)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
    for seen, left_out in folds.split(questions.vectors, truth):
        head = fit(questions, seen)
        logits[left_out] = head.logits(questions.vectors[left_out], questions.ngrams[left_out])
    return logits, truth, [str(label) for label in labels]


def _temperature(logits: Floats, truth: NDArray[np.intp]) -> float:
    """What makes the probabilities of the truth likeliest."""

    def loss(log_temperature: float) -> float:
        scaled = _log_softmax(logits / np.exp(log_temperature))
        return -float(scaled[np.arange(len(truth)), truth].mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _weighted(ngrams: Floats, idf: Floats) -> Floats:
    rows = ngrams * idf
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return unit.astype(np.float32)


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs.astype(np.float32)
