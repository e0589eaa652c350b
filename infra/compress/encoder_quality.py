"""What a smaller encoder has lost and what it gains: vectors, what is found by them, microseconds."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from infra.encoder.local import LocalEncoder
from infra.encoder.repository import TOKENIZER
from services.chat.domain import Encoders, Language
from services.chat.evaluate import retrieval
from services.chat.evaluate.retrieval import Judged, Mean
from services.chat.knowledge.encoding import marked
from services.chat.knowledge.settings import KnowledgeSettings
from services.chat.knowledge.store import Content
from services.chat.knowledge.vectors import encode

Floats = NDArray[np.float32]
TOP = 5
SIZES = (1, 32)
_LANGUAGES: tuple[Language, ...] = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Task:
    """Passages, and questions about them."""

    name: str
    content: Content
    judged: Sequence[Judged]


@dataclass(frozen=True, slots=True)
class Found:
    """By vectors alone. vectors: (passages, d) and (questions, d) float32, each of length 1."""

    recall: Mean
    passages: Floats
    questions: Floats


@dataclass(frozen=True, slots=True)
class Kept:
    """How near a variant is to the reference. cosine: of each question's two vectors, the mean.

    top_same: share of the first `TOP` passages that both find.
    """

    recall: Mean
    cosine: Mean
    top_same: Mean

    @classmethod
    def of(cls, found: Found, reference: Found) -> "Kept":
        """From what both found."""
        cosines = (found.questions * reference.questions).sum(1)
        mine, others = (_top(each) for each in (found, reference))
        same = (mine[:, :, None] == others[:, None, :]).any(2).mean(1)
        return cls(found.recall, Mean.of(cosines.tolist()), Mean.of(same.tolist()))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "recall@5": self.recall.as_dict(),
            "cosine": self.cosine.as_dict(),
            "top_same": self.top_same.as_dict(),
        }


def _top(found: Found) -> NDArray[np.intp]:
    return np.argsort(-(found.questions @ found.passages.T), axis=1, kind="stable")[:, :TOP]


async def tasks(faq_file: Path | None, faq_rows: int) -> list[Task]:
    """The starter knowledge by language, and of a file of questions with answers so many questions.

    Raises:
        BadInput: the file holds no questions and answers.
    """
    content = await retrieval.starter()
    made = []
    for language in _LANGUAGES:
        passages = [each for each in content.passages if each.language == language]
        judged = [each for each in retrieval.questions(language) if each.expected]
        made.append(Task(f"starter_{language}", replace(content, passages=passages), judged))
    if faq_file is not None:
        settings = KnowledgeSettings.model_validate({})
        content, judged = retrieval.faq(faq_file, settings.passage_chars_max, titles=False)
        rows = np.linspace(0, len(judged) - 1, min(faq_rows, len(judged))).round().astype(int)
        judged = [judged[row] for row in rows]
        wanted = frozenset().union(*(each.expected for each in judged))
        passages = [each for each in content.passages if each.document in wanted]
        made.append(Task("faq", Content(passages, {}), judged))
    return made


async def found(encoders: Encoders, task: Task) -> Found:
    """What the encoder finds: every passage compared with every question, by the cosine."""
    passages = await encode(encoders.passages, task.content.passages)
    asked = await encoders.asked([each.question for each in task.judged])
    made = Found(Mean.of([]), passages, asked)
    names = [retrieval.places(each.id) for each in task.content.passages]
    right = [
        any(each.expected.intersection(names[row]) for row in rows)
        for each, rows in zip(task.judged, _top(made).tolist(), strict=True)
    ]
    return replace(made, recall=Mean.of([float(each) for each in right]))


def opened(model: Path, tokens_max: int) -> Encoders:
    """An entry of a repository in this process, with one thread; of a text it reads `tokens_max`."""
    return marked(LocalEncoder(model, tokens_max=tokens_max, threads=1), model / TOKENIZER)


@dataclass(frozen=True, slots=True)
class Speed:
    """ONNX Runtime in this process, one thread, tokens at hand: microseconds a call by questions in it.

    to_reference: how many times as many calls as the reference makes, the median over the rounds.
    """

    one_p50_us: float
    one_p99_us: float
    many_p50_us: float
    many_p99_us: float
    one_to_reference: float
    many_to_reference: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def speeds(
    models: Mapping[str, Path],
    questions: Sequence[str],
    reference: str,
    *,
    tokens_max: int,
    rounds: int,
    seed: int = 7,
) -> dict[str, Speed]:
    """Of each entry; a round gives each its turn on the same questions, in an order drawn anew."""
    random = np.random.default_rng(seed)
    names = list(models)
    asked = {name: _Asked(model, tokens_max) for name, model in models.items()}
    took: dict[tuple[str, int], list[float]] = {(name, size): [] for name in names for size in SIZES}
    for turn in range(rounds + 2):
        for size in SIZES:
            texts = [questions[int(at)] for at in random.integers(0, len(questions), size)]
            for name in random.permutation(names).tolist():
                seconds = asked[name](texts)
                if turn >= 2:  # the first calls lay out memory
                    took[name, size].append(seconds * 1e6)
    made = {}
    for name in names:
        points = [float(np.percentile(took[name, size], point)) for size in SIZES for point in (50, 99)]
        ratios = [
            float(np.median(np.array(took[reference, size]) / np.array(took[name, size]))) for size in SIZES
        ]
        made[name] = Speed(*points, *ratios)
    return made


class _Asked:
    """One entry's session and its tokenizer."""

    def __init__(self, model: Path, tokens_max: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / TOKENIZER))
        self._tokenizer.enable_truncation(tokens_max)
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = str(model / "1" / "model.onnx")
        self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])

    def __call__(self, texts: Sequence[str]) -> float:
        """Seconds of one call; cutting the texts into tokens is the caller's and not in them."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([each.ids for each in encoded], np.int64)
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        began = time.perf_counter()
        self._session.run(["embedding"], {"input_ids": ids, "attention_mask": mask})
        return time.perf_counter() - began
