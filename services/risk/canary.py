"""A version that decides for a share of the accounts, before it decides for all.

Which accounts these are goes by a keyed hash of the account and the version's own checksum: an account has
the same version with every worker and after every restart, and the next canary has other accounts. The
champion is asked for these rows as well, at the same time: where the canary has no answer it decides, so a
canary costs no payment its model, and what both say of the same payments is counted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge

from services.risk.champion import Leaving, LogFiles
from services.risk.decide import Scores
from services.risk.places import PlaceMetrics
from services.risk.policy import Policy
from services.risk.reading import ReadBatch
from services.risk.scoring import Asked, ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from services.risk.writing import Canaried
from weir.errors import IntegrityError, WeirError
from weir.inference.client import ModelClient
from weir.inference.errors import ModelRejected, ModelUnavailable
from weir.obs.log import get_logger

log = get_logger("weir.risk.canary")

# Knuth's multiplicative hashing by 2^64 over the golden ratio: its upper bits are even for any hash.
_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_BITS = 53


def rows_of(account: NDArray[np.uint64], sha256: str, share: float) -> NDArray[np.intp]:
    """Ascending indices of the rows whose accounts belong to a canary.

    Args:
        account: (n,) uint64, keyed hashes of the accounts.
        sha256: of the canary's graph, hexadecimal: each version has accounts of its own.
        share: of all accounts, 0 to 1.
    Source: Knuth 1973, The Art of Computer Programming 3, section 6.4.
    """
    salt = np.uint64(int(sha256[:16], 16))
    mixed = ((account ^ salt) * _GOLDEN) >> np.uint64(64 - _BITS)
    return np.flatnonzero(mixed < np.uint64(round(share * 2**_BITS)))


@dataclass(frozen=True, slots=True)
class _Standing:
    model: ServedModel
    client: ModelClient
    share: float


class Canary:
    """Follows the log of stages; `ask` is called with each batch.

    Args:
        open_client: a client of a version, not connected yet.
    """

    def __init__(
        self,
        settings: RiskSettings,
        open_client: Callable[[ServedModel], ModelClient],
        registry: CollectorRegistry,
    ) -> None:
        self._settings, self._open = settings, open_client
        self._files = LogFiles(settings)
        self._metrics = PlaceMetrics(
            registry,
            "canary",
            "Payments of the canary's accounts: decided by it, or fell_back to the champion.",
        )
        self._calls = Counter(
            "weir_canary_calls_total",
            "Batches with payments of the canary's accounts, by result as its rows.",
            ["result"],
            registry=registry,
        )
        self._share = Gauge(
            "weir_canary_share", "Of the accounts, for which the canary decides; 0 to 1.", registry=registry
        )
        self._standing: _Standing | None = None
        self._waiting: tuple[ServedModel, float] | None = None
        self._leaving = Leaving(settings)
        self._said = ""

    @property
    def stands(self) -> bool:
        """Whether a version stands here and has answered."""
        return self._standing is not None

    @property
    def version(self) -> str | None:
        """Which one decides for its accounts."""
        return None if self._standing is None else self._standing.model.ref.version

    async def look(self) -> None:
        """Another version, another share, or none, where the log says so; a new one once it answers."""
        await self._leaving.close_old()
        if self._files.changed():
            self._follow()
        if self._waiting is not None:
            await self._try(*self._waiting)

    def _follow(self) -> None:
        settings, now = self._settings, self._standing
        self._waiting = None
        try:
            found = ServedModel.canary(settings.model_repository, settings.model)
        except WeirError as error:
            # Who cannot be read decides nothing: the champion does.
            self._files.forget()
            self._say("canary_refused", str(error))
            found = None
        if now is not None and found is not None and found[0].ref == now.model.ref:
            self._stand(_Standing(now.model, now.client, found[1]))
            return
        if now is not None:
            self._leaving.add(now.client)
            self._stand(None)
        self._waiting = found

    async def _try(self, model: ServedModel, share: float) -> None:
        client = None
        try:
            client = self._open(model)
            await ModelScoring.first_answer(client, model)
        except WeirError as error:
            # Triton may still be loading it, a certificate may be gone: tried again at the next look.
            self._say("canary_waits", f"{model.ref.name} {model.ref.version}: {error}")
            if client is not None:
                await client.close()
            return
        self._waiting = None
        self._stand(_Standing(model, client, share))

    def _stand(self, standing: _Standing | None) -> None:
        self._standing, self._said = standing, ""
        version = None if standing is None else standing.model.ref.version
        share = 0.0 if standing is None else standing.share
        self._metrics.version.set(int(version or 0))
        self._share.set(share)
        log.info("canary_changed", version=version, share=share)

    def _say(self, event: str, why: str, kind: str = "") -> None:
        # Once for each kind of trouble, not at each look or batch.
        if (kind or why) != self._said:
            log.warning(event, error=why)
            self._said = kind or why

    async def ask(self, read: ReadBatch) -> Asked | None:
        """What the canary says of its accounts' rows; None where it has none of them."""
        standing = self._standing
        if standing is None:
            return None
        sha256 = standing.model.ref.sha256
        rows = rows_of(read.payments.account, sha256, standing.share)
        if not len(rows):
            return None
        try:
            scores = ModelScoring.checked(await standing.client.score(read.features[rows]), standing.model)
        except (ModelUnavailable, ModelRejected, IntegrityError) as error:
            # How long it took differs each time.
            self._say("canary_failed", str(error), type(error).__name__)
            return Asked(len(rows), None)
        self._said = ""
        return Asked(len(rows), Canaried(rows, scores, standing.share))

    def done(self, asked: Asked, champion: Scores, policy: Policy) -> None:
        """The canary's answer stands, beside what the champion says of the same rows; or it fell back."""
        canaried = asked.canaried
        result = "fell_back" if canaried is None else "decided"
        self._calls.labels(result).inc()
        self._metrics.rows.labels(result).inc(asked.row_count)
        if canaried is not None:
            self._metrics.compared(champion.rows(canaried.rows), canaried.scores, policy)

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._leaving.close()
        standing, self._standing = self._standing, None
        if standing is not None:
            await standing.client.close()
