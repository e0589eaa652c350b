"""The policies, models and tables of then, by their SHA-256, and those that are asked for in their place."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from services.risk.archive import PolicyArchive
from services.risk.canary import rows_of
from services.risk.policy import InForce, compile_policy, read_file
from services.risk.ports import Tables
from services.risk.reading import ReadBatch
from services.risk.scoring import OUTPUTS, ROW_MULTIPLE, ModelScoring, ServedModel, rows_max_of
from services.risk.settings import RiskSettings
from services.risk.writing import Canaried, Scored
from weir.config import TritonSettings
from weir.errors import MissingPart, NeighbourUnavailable
from weir.inference.client import ModelClient
from weir.obs.metrics import Metrics
from weir.streams.journal import JournalRecord

# Nobody waits for a decision here.
_SCORE_DEADLINE_S = 10.0


def other_tables(record: JournalRecord, now: Tables) -> Iterator[str]:
    """A line for each table that is another now than when the batch was decided; they are not archived."""
    if record.rates and record.rates != now.rates:
        yield (
            f"[risk.rates] of then ({record.rates[:12]}) are not those of now ({now.rates[:12]}): amounts in "
            "home currency may differ, and what follows from them."
        )
    if record.reasons and record.reasons != now.reasons:
        yield (
            f"the reasons' file of then ({record.reasons[:12]}) is not that of now ({now.reasons[:12]}): "
            "reasons' codes and texts may differ."
        )


class Policies:
    """Policies by their SHA-256, from an archive or from the file in force now.

    Args:
        instead: a file that takes the place of each policy of then.
        note: told, in a line, when the limits of then are not known.
    """

    def __init__(
        self,
        archive: PolicyArchive,
        now: Path,
        instead: Path | None,
        features: Sequence[str],
        note: Callable[[str], None],
    ) -> None:
        self._archive, self._now, self._features, self._note = archive, now, tuple(features), note
        self.instead = None if instead is None else compile_policy(read_file(instead), instead, features)
        self._known: dict[str, InForce] = {}

    def of_then(self, sha256: str) -> InForce:
        """The policy under which a batch was read: what it let enter the windows is part of the state.

        Raises:
            MissingPart: it is not kept, nor is it the file in force now, and no other takes its place.
        """
        known = self._known.get(sha256)
        if known is None:
            known = self._known[sha256] = self._load(sha256)
        return known

    def deciding(self, then: InForce) -> InForce:
        """The policy that decides in the place of `then`."""
        return then if self.instead is None else self.instead

    def _load(self, sha256: str) -> InForce:
        if self._now.is_file():
            now = compile_policy(read_file(self._now), self._now, self._features)
            if now.policy.sha256 == sha256:
                return now
        try:
            data = self._archive.read(sha256)
        except MissingPart:
            if self.instead is None:
                raise
            if self.instead.policy.sha256 != sha256:
                self._note(
                    f"policy {sha256[:12]} of then is not kept: payments are validated by the limits of the "
                    "given one, which may let others enter the windows."
                )
            return self.instead
        return compile_policy(data, Path(f"policy {sha256[:12]}"), self._features)


class Models:
    """Models on Triton by the SHA-256 in their model.json; each is asked through a client of its own.

    Use it as a context.
    """

    def __init__(
        self,
        settings: RiskSettings,
        triton: TritonSettings,
        metrics: Metrics,
        model: str | None,
        version: str | None,
    ) -> None:
        self._settings, self._triton, self._metrics = settings, triton, metrics
        self.instead = None if model is None else ServedModel.read(settings.model_repository, model, version)
        self._scorings: dict[str, tuple[ServedModel, ModelScoring]] = {}
        self._clients = AsyncExitStack()

    async def __aenter__(self) -> "Models":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._clients.aclose()

    async def score(self, read: ReadBatch, record: JournalRecord) -> tuple[Scored, list[ServedModel]]:
        """The answers of the models of then, a canary among them, or of the one in their place.

        Raises:
            MissingPart: no version in the repository is the model of then.
            NeighbourUnavailable: Triton does not serve it, or gave no scores.
        """
        if self.instead is not None:
            scored, model = await self._by(read, self.instead.ref.sha256)
            return scored, [model]
        scored, model = await self._by(read, record.model)
        if not record.canary:
            return scored, [model]
        rows = rows_of(read.payments.account, record.canary, record.canary_share)
        if not len(rows):
            return scored, [model]
        theirs, canary = await self._by(read.rows(rows), record.canary)
        assert theirs.scores is not None
        canaried = Canaried(rows, theirs.scores, record.canary_share)
        return replace(scored, canary=canaried), [model, canary]

    async def _by(self, read: ReadBatch, sha256: str) -> tuple[Scored, ServedModel]:
        known = self._scorings.get(sha256)
        if known is None:
            known = self._scorings[sha256] = await self._open(self.instead or self._find(sha256))
        model, scoring = known
        scored = await scoring(read)
        if scored.scores is None:
            raise NeighbourUnavailable(
                f"{model.ref.name} {model.ref.version} on Triton at {self._triton.endpoint}: no scores "
                f"({scored.degraded_reason}). Nothing was decided in their place; run the replay again."
            )
        return scored, model

    def _find(self, sha256: str) -> ServedModel:
        folder = self._settings.model_repository / self._settings.model
        for path in sorted(folder.glob("*/model.json")):
            try:
                found = json.loads(path.read_text(encoding="utf-8")).get("sha256")
            except (OSError, ValueError, AttributeError):
                continue  # of a version that nobody asked for
            if found == sha256:
                return ServedModel.read(
                    self._settings.model_repository, self._settings.model, path.parent.name
                )
        raise MissingPart(
            f"{folder}: no version with SHA-256 {sha256[:12]}, the model of then. Put it back there and on "
            "Triton, or name another by --model."
        )

    async def _open(self, model: ServedModel) -> tuple[ServedModel, ModelScoring]:
        client = await self._clients.enter_async_context(
            ModelClient(
                self._triton,
                model.ref.name,
                model.ref.version,
                outputs=OUTPUTS,
                rows_max=rows_max_of(self._settings),
                row_multiple=ROW_MULTIPLE,
                deadline_s=_SCORE_DEADLINE_S,
            )
        )
        if not await client.ready():
            raise NeighbourUnavailable(
                f"Triton at {self._triton.endpoint} does not serve {model.ref.name} version "
                f"{model.ref.version}. Load it there, or try `weir doctor triton`."
            )
        return model, ModelScoring(client, model, self._metrics)
