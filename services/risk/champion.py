"""Another version takes over while batches go on: the log of stages is followed, nothing is restarted.

A batch is scored whole by the version that it was begun with; its decisions and its journal record name it.
The next version is asked only once Triton answers for it, one row was scored, and its contributions add up;
until then, and when the log is refused, the one before decides.
"""

import time
from collections.abc import Callable

from services.risk.policy import file_stamp
from services.risk.scoring import ModelScoring, ServedModel
from services.risk.settings import RiskSettings
from weir.errors import IntegrityError, WeirError
from weir.inference.client import ModelClient
from weir.inference.errors import ModelRejected, ModelUnavailable
from weir.inference.stages import LOG, PEOPLE
from weir.obs.log import get_logger

log = get_logger("weir.risk.champion")

# A call is over by its deadline, and some calls begin at the end of another's.
_CALLS_UNTIL_CLOSED = 10


class LogFiles:
    """Whether the log of stages, or the list of people, is another one than at the last look."""

    def __init__(self, settings: RiskSettings) -> None:
        root = settings.model_repository
        self._paths = (root / settings.model / LOG, root / PEOPLE)
        self._seen: list[tuple[int, int, int] | None] | None = None

    def changed(self) -> bool:
        """True at the first look: a step between the start's reading and this is not missed."""
        before, self._seen = self._seen, [file_stamp(path) for path in self._paths]
        return self._seen != before

    def forget(self) -> None:
        """What was read could not be used, maybe for a moment only: the next look reads it again."""
        self._seen = None


class Leaving:
    """Clients that are asked no more, closed once every call that they still have is over.

    A channel that is closed at once cancels its calls, and with them the task that waits for the answer.
    """

    def __init__(self, settings: RiskSettings) -> None:
        self._after_s = _CALLS_UNTIL_CLOSED * settings.score_deadline_ms / 1000
        self._clients: list[tuple[float, ModelClient]] = []

    def add(self, client: ModelClient) -> None:
        """No new call will use this one."""
        self._clients.append((time.monotonic(), client))

    async def close_old(self) -> None:
        """Close those whose calls are over."""
        until = time.monotonic() - self._after_s
        for left_at, client in [each for each in self._clients if each[0] < until]:
            self._clients.remove((left_at, client))
            await client.close()

    async def close(self) -> None:
        """Close all; nobody waits for them any more."""
        for _, client in self._clients:
            await client.close()
        self._clients.clear()


class Champion:
    """Follows the log; to be looked at again and again.

    Args:
        open_client: a client of a version, not connected yet.
    """

    def __init__(
        self, settings: RiskSettings, scoring: ModelScoring, open_client: Callable[[ServedModel], ModelClient]
    ) -> None:
        self._settings, self._scoring, self._open = settings, scoring, open_client
        self._files = LogFiles(settings)
        self._waiting: ServedModel | None = None
        self._said = ""
        self._leaving = Leaving(settings)

    async def look(self) -> None:
        """Take over a new champion, if there is one and it answers."""
        await self._leaving.close_old()
        if self._files.changed():
            self._waiting = self._champion()
        if self._waiting is not None:
            await self._try(self._waiting)

    async def close(self) -> None:
        """Close the client that is asked, and those before it."""
        await self._leaving.close()
        await self._scoring.client.close()

    def _champion(self) -> ServedModel | None:
        settings = self._settings
        try:
            model = ServedModel.deciding(settings.model_repository, settings.model, settings.model_version)
        except WeirError as error:
            self._files.forget()
            self._say("champion_refused", str(error))
            return None
        return None if model.ref == self._scoring.model.ref else model

    async def _try(self, model: ServedModel) -> None:
        try:
            client = self._open(model)
        except WeirError as error:
            # A certificate may have been taken away since the start: that must not end who decides.
            self._say("champion_waits", f"{model.ref.name} {model.ref.version}: {error}")
            return
        try:
            await self._scoring.first_answer(client, model)
        except (ModelUnavailable, ModelRejected, IntegrityError) as error:
            # Triton may still be loading it: asked again at the next look.
            self._say("champion_waits", f"{model.ref.name} {model.ref.version}: {error}")
            await client.close()
            return
        self._leaving.add(self._scoring.swap(client, model))
        self._waiting, self._said = None, ""
        log.info("champion_decides", model=model.ref.name, version=model.ref.version)

    def _say(self, event: str, why: str) -> None:
        # Once for each kind of trouble, not at each look.
        if why != self._said:
            log.warning(event, error=why)
            self._said = why
