"""Fits what `relevance` is: a logistic on judged questions, measured on those it was not fitted on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from services.chat.domain import Encoders, Language
from services.chat.evaluate.retrieval import (
    Judged,
    Refusals,
    Top,
    chosen_threshold,
    look,
    places,
    questions,
    refusals,
    starter,
)
from services.chat.knowledge.relevance import BY_BOTH, BY_WORDS, Logistic, Relevance, seen
from services.chat.knowledge.search import HybridRetriever, Looked

_CANDIDATES = 5
_FOLDS = 5
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def fit(
    retriever: HybridRetriever, judged: Sequence[Judged], looked: Sequence[Looked], *, seed: int = 7
) -> tuple[Logistic, Refusals]:
    """The logistic fitted on all questions, and how one fitted without a question does on it.

    The threshold is chosen on the out-of-fold probabilities, and the returned figures use, for each fold, the
    threshold chosen without it.
    """
    vectors = any(found.cosines is not None for found in looked)
    names = BY_BOTH if vectors else BY_WORDS
    rows: list[list[float]] = []
    labels: list[bool] = []
    owners: list[int] = []
    for number, (each, found) in enumerate(zip(judged, looked, strict=True)):
        best = found.best[:_CANDIDATES]
        for row in best:
            features = seen(found.asked, row, best, found.cosines)
            rows.append([features[name] for name in names])
            passage = retriever.passages(each.language)[row]
            labels.append(bool(each.expected.intersection(places(passage.id))))
            owners.append(number)
    x, y, owner = np.array(rows), np.array(labels), np.array(owners)
    fold = np.random.default_rng(seed).permutation(len(judged)) % _FOLDS
    apart = np.zeros(len(x))
    for held in range(_FOLDS):
        out = fold[owner] == held
        apart[out] = _model(x[~out], y[~out]).predict_proba(x[out])[:, 1]
    tops = [_top(each, apart[owner == number], y[owner == number]) for number, each in enumerate(judged)]
    judged_by_fold: list[Top] = []
    for held in range(_FOLDS):
        threshold = chosen_threshold([top for top, at in zip(tops, fold, strict=True) if at != held])
        # Moved so that one threshold, 0.5, stands for each fold's own.
        judged_by_fold += [
            Top(float(top.probability >= threshold), top.right, top.answerable)
            for top, at in zip(tops, fold, strict=True)
            if at == held
        ]
    model = _model(x, y)
    weights, bias = _unscaled(model)
    named = {name: round(float(weight), 4) for name, weight in zip(names, weights, strict=True)}
    fitted = Logistic(round(bias, 4), named, round(chosen_threshold(tops), 3))
    return fitted, refusals(judged_by_fold, 0.5)


async def fit_starter(
    shipped: Relevance,
    *,
    encoders: Encoders | None = None,
    name: str = "words",
) -> tuple[Relevance, dict[Language, Refusals]]:
    """The weights with those of one way of searching fitted anew on the starter set, and the figures.

    encoders: None fits the search by words. name: what imports call the encoder.
    """
    content = await starter(None if encoders is None else encoders.passages, name)
    asked = None if encoders is None else encoders.asked
    retriever = HybridRetriever(content, asked, relevance=shipped, fitted_only=False)
    by_language = {language: dict(fitted) for language, fitted in shipped.by_language.items()}
    figures: dict[Language, Refusals] = {}
    for language, fitted in by_language.items():
        judged = questions(language)
        fitted[name], figures[language] = fit(retriever, judged, await look(retriever, judged))
    return Relevance(by_language), figures


def _model(x: Floats, y: Bools) -> Pipeline:
    # Scaled, so that the penalty weighs a cosine's hundredths as much as a share's tenths.
    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000)).fit(x, y)


def _unscaled(model: Pipeline) -> tuple[Floats, float]:
    scaler, logistic = model.steps[0][1], model.steps[1][1]
    weights = logistic.coef_[0] / scaler.scale_
    return weights, float(logistic.intercept_[0] - weights @ scaler.mean_)


def _top(each: Judged, probabilities: Floats, right: Bools) -> Top:
    if not len(probabilities):
        return Top(0.0, False, bool(each.expected))
    best = int(np.argmax(probabilities))
    return Top(float(probabilities[best]), bool(right[best]), bool(each.expected))
