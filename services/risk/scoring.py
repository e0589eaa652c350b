"""The served model: which one it is, by its model.json, and what it says of a batch."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np

from services.risk.decide import ModelRef, Scores
from services.risk.reading import ReadBatch
from services.risk.settings import RiskSettings
from services.risk.writing import Canaried, Scored
from weir.errors import ConfigError, IntegrityError, MissingPart
from weir.features.payments import DEFAULT, FEATURES
from weir.inference.client import ModelClient
from weir.inference.errors import ModelRejected, ModelUnavailable
from weir.inference.stages import LOG, PEOPLE, Stage, Stages, read_stages
from weir.obs.log import get_logger
from weir.obs.metrics import Metrics

OUTPUTS = ("logit", "probability", "contributions")
# Contributions are float32 sums of a few dozen terms; more than this is another model than its card says.
SUM_TOLERANCE_LOGIT = 1e-3
# A row's score must not depend on the batch it came in: ONNX Runtime computes a call's last rows, beyond the
# last whole vector, by another loop, whose exponential differs in the last bit. No vector is longer than 16.
ROW_MULTIPLE = 16

log = get_logger("weir.risk.scoring")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What stands in model.json of the version that is asked."""

    ref: ModelRef
    features: tuple[str, ...]
    feature_spec: str
    base_logit: float

    @classmethod
    def deciding(cls, repository: Path, name: str, pinned: str | None) -> "ServedModel":
        """The version that is to decide: the champion where there is a log of stages, else as `read`.

        Raises:
            ConfigError: there is no champion, or another version is pinned. IntegrityError: the log or the
            version is not what was signed. MissingPart, ConfigError: see `read`.
        """
        stages = read_stages(repository / name / LOG, repository / PEOPLE)
        if stages is None and (repository / PEOPLE).exists():
            # Else whoever takes the log away has the newest version decide.
            raise ConfigError(
                f"{repository / name / LOG} is not there, though {PEOPLE} is. Restore it, or begin it with "
                "`weir models register`."
            )
        if stages is None:
            return cls.read(repository, name, pinned)
        champion = stages.at(Stage.CHAMPION)
        if champion is None:
            raise ConfigError(f"{repository / name}: no version is champion. See `weir models stages`.")
        if pinned not in (None, champion):
            raise ConfigError(
                f"[risk] model_version pins {pinned}, but the champion is {champion}: one person's setting "
                "is not two people's step. Take the pin out, or see `weir models propose`."
            )
        return cls._registered(repository, name, champion, stages)

    @classmethod
    def standing(cls, repository: Path, name: str, stage: Stage) -> "ServedModel | None":
        """The version at a stage of the log; None where there is no log, or nobody stands there.

        Raises:
            IntegrityError: the log or the version is not what was signed.
            MissingPart, ConfigError: see `read`.
        """
        found = _standing(repository, name, stage)
        return None if found is None else cls._registered(repository, name, *found)

    @classmethod
    def canary(cls, repository: Path, name: str) -> "tuple[ServedModel, float] | None":
        """The canary, and for which share of the accounts it decides; None where there is none, or no share.

        Raises:
            IntegrityError, MissingPart, ConfigError: see `standing`.
        """
        found = _standing(repository, name, Stage.CANARY)
        if found is None or not (share := found[1].shares.get(found[0], 0.0)):
            return None
        return cls._registered(repository, name, *found), share

    @classmethod
    def _registered(cls, repository: Path, name: str, version: str, stages: Stages) -> "ServedModel":
        model = cls.read(repository, name, version)
        if model.ref.sha256 != stages.sha256[version]:
            raise IntegrityError(
                f"{repository / name / version}: not the model that was registered. Restore it."
            )
        return model

    @classmethod
    def read(cls, repository: Path, name: str, version: str | None) -> "ServedModel":
        """The pinned version, or the newest one in the repository.

        Raises:
            MissingPart: no such model or version.
            ConfigError: model.json lacks something, or the model was trained on other features.
        """
        path = _folder(repository, name, version) / "model.json"
        try:
            card: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            model = cls(
                ModelRef(str(card["name"]), str(card["version"]), str(card["sha256"])),
                tuple(card["features"]),
                str(card["feature_spec"]),
                float(card["base_logit"]),
            )
        except OSError as error:
            raise MissingPart(f"{path}: {error.strerror}. Run `weir models verify`.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: {error!r}. Run `weir models verify`.") from error
        if model.features != FEATURES:
            raise ConfigError(
                f"{path}: the model has other features than this version of Weir computes. Train it again."
            )
        if model.feature_spec != DEFAULT.id:
            raise ConfigError(
                f"{path}: the model was trained on feature spec {model.feature_spec}, this version of "
                f"Weir computes {DEFAULT.id}: other windows or another delay. Train it again."
            )
        return model


def _standing(repository: Path, name: str, stage: Stage) -> tuple[str, Stages] | None:
    """The version at a stage of the log, and what the log says; None where nobody stands there."""
    stages = read_stages(repository / name / LOG, repository / PEOPLE)
    version = None if stages is None else stages.at(stage)
    return None if stages is None or version is None else (version, stages)


def _folder(repository: Path, name: str, version: str | None) -> Path:
    folder = repository / name
    if version is not None:
        return folder / version
    versions = sorted((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), reverse=True)
    if not versions:
        raise MissingPart(f"{folder}: no model version there. Run `weir train risk`, or correct [risk].")
    return folder / str(versions[0])


def rows_max_of(settings: RiskSettings) -> int:
    """Rows of one call at most: what is set, in whole multiples."""
    return max(settings.model_rows_max // ROW_MULTIPLE, 1) * ROW_MULTIPLE


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of a canary's rows of one batch: its answer, or None where the champion has to decide."""

    row_count: int
    canaried: Canaried | None


class CanaryPort(Protocol):
    """Who decides for some accounts: `services.risk.canary.Canary`."""

    @property
    def stands(self) -> bool:
        """Whether it is to be asked."""

    async def ask(self, read: ReadBatch) -> Asked | None:
        """What it says of its accounts' rows; None where it has none of them."""

    def done(self, asked: Asked, champion: Scores, policy: Any) -> None:
        """The champion has answered for all rows: the canary's answer stands, or else the champion's."""


class ModelScoring:
    """Asks Triton; without an answer the batch is decided by rules, marked degraded."""

    # Who decides for some of the accounts; None where one version decides for all.
    canary: CanaryPort | None = None

    def __init__(
        self,
        client: ModelClient,
        model: ServedModel,
        metrics: Metrics,
        show: Callable[[ReadBatch, Scores], None] = lambda _read, _scores: None,
    ) -> None:
        """`show` is handed each batch that was scored, with its scores; it must return at once."""
        self.client, self.model, self._metrics, self._show = client, model, metrics, show
        self._degraded = ""

    def swap(self, client: ModelClient, model: ServedModel) -> ModelClient:
        """Ask this one from the next batch on; the client that was asked, which calls may still use."""
        before, self.client, self.model = self.client, client, model
        return before

    async def __call__(self, read: ReadBatch) -> Scored:
        """The scores, or the one word for why there are none."""
        # One version for the whole batch, though another may take over meanwhile.
        begun, client, model = perf_counter_ns(), self.client, self.model
        canary = self.canary if self.canary is not None and self.canary.stands else None
        asked = None if canary is None else asyncio.create_task(canary.ask(read))
        try:
            scores = self.checked(await client.score(read.features), model)
            theirs = None if asked is None else await asked
        except ModelUnavailable as error:
            return self._without(error.degraded_reason, error, begun)
        except (ModelRejected, IntegrityError) as error:
            return self._without(ModelRejected.degraded_reason, error, begun)
        finally:
            if asked is not None:
                # Without the champion's answer rules decide, for all rows alike.
                asked.cancel()
        if self._degraded:
            log.info("model_answers_again", model=model.ref.name)
            self._degraded = ""
        taken_ns = perf_counter_ns() - begun
        self._metrics.stage("model", taken_ns / 1e9)
        self._show(read, scores)
        if canary is None or theirs is None:
            return Scored(scores, "", taken_ns // 1000)
        canary.done(theirs, scores, read.in_force.policy)
        return Scored(scores, "", taken_ns // 1000, theirs.canaried)

    @classmethod
    async def first_answer(cls, client: ModelClient, model: ServedModel) -> None:
        """Return once Triton has scored one row by this version, as it must before it takes over.

        Raises:
            ModelUnavailable, ModelRejected: Triton has no answer; it may still be loading the version.
            IntegrityError: as `checked`.
        """
        cls.checked(await client.score(np.zeros((1, len(model.features)), np.float32)), model)

    @staticmethod
    def checked(outputs: Mapping[str, Any], model: ServedModel) -> Scores:
        """A version's answer.

        Raises:
            IntegrityError: its contributions do not add up to its logit, or it has another form.
        """
        try:
            scores = Scores(
                outputs["logit"],
                outputs["probability"],
                outputs["contributions"],
                model.base_logit,
                model.ref,
            )
        except (KeyError, ValueError) as error:
            raise IntegrityError(
                f"{model.ref.name} {model.ref.version}: an answer of another form ({error}). Run `weir "
                "models verify`."
            ) from error
        if scores.sum_error() > SUM_TOLERANCE_LOGIT:
            raise IntegrityError(
                f"{model.ref.name}: contributions do not add up to the logit, so its reasons would be "
                "wrong. Run `weir models verify`."
            )
        return scores

    def _without(self, word: str, error: Exception, begun: int) -> Scored:
        # Once for each kind of trouble, not for each batch.
        if word != self._degraded:
            log.warning("decisions_degraded", reason=word, error=str(error))
            self._degraded = word
        return Scored(None, word, (perf_counter_ns() - begun) // 1000)
