"""The guard itself: looks at the log and the workers, and takes a step back where the limits say so.

It can take back a canary, and put the last champion back; its key is for nothing else. A champion is put back
only if Triton answers for the last one and not for this one: where Triton itself is away, another version
would not help, and going forward again takes two people.

What fails must go on failing: so many looks in a row have to find it, each with new failures since the one
before. Else an outage that is over would be held against a version for as long as it stands there.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx

from services.training.guard.rules import canary_reasons, degrades, fails
from services.training.guard.settings import GuardSettings
from services.training.guard.workers import Growth, Places, ask, name_of, places_of
from services.training.stages import Signer, StageLog
from weir.inference.stages import Act, Stage, Stages, StepRefused
from weir.obs.log import get_logger

log = get_logger("weir.guard")

Answers = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Step:
    """One that was taken: which version went where, and why."""

    version: str
    to: Stage
    why: str


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found.

    away: workers without an answer, by address. behind: of those that answered, how many have other versions
    in their places than the log says. payments: that have been judged since the versions took their places.
    """

    champion: str | None
    canary: str | None
    workers: int
    away: dict[str, str]
    behind: int
    payments: int
    canary_payments: int
    step: Step | None


class Guard:
    """Looks again and again; what it has counted lives as long as it does.

    Args:
        answers: whether Triton scores a row by a version, with reasons that add up.
        now: in UTC.
    """

    def __init__(
        self,
        stages: StageLog,
        signer: Signer,
        limits: GuardSettings,
        client: httpx.AsyncClient,
        answers: Answers,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._stages, self._signer, self._limits = stages, signer, limits
        self._client, self._answers, self._now = client, answers, now
        self._growth = Growth(stages.name)
        self._away: dict[str, str] = {}
        # Looks in a row that found a failure, and how many there were at the last look.
        self._found = {"canary": 0, "champion": 0}
        self._failures = {"canary": 0, "champion": 0}

    async def look(self) -> Look:
        """Ask the workers, and take the step that the limits ask for, if any.

        Raises:
            StagesBroken, ConfigError, ModelBroken: the log, the people or a version is not what it was.
        """
        state = self._stages.read()
        champion, canary = state.at(Stage.CHAMPION), _deciding_canary(state)
        places = Places(int(champion or 0), int(canary or 0))
        if places != self._growth.places:
            self._growth.begin(places)
            self._found = dict.fromkeys(self._found, 0)
        answered = await ask(self._client, self._limits.workers)
        away = {name_of(worker): why for worker, why in answered.items() if isinstance(why, str)}
        self._say_away(away)
        behind = 0
        for worker, samples in answered.items():
            if not isinstance(samples, str):
                self._growth.take(worker, samples)
                behind += places_of(samples) != places
        seen = self._growth.counted
        step = None
        failing = fails(seen, self._limits) if self._goes_on("canary", seen.fell_back) else None
        if canary is not None and (reasons := canary_reasons(seen, self._limits)):
            step = self._take(canary, Stage.SHADOW, "; ".join(reasons))
        elif canary is not None and self._in_a_row("canary", failing is not None) and failing is not None:
            step = self._take(canary, Stage.SHADOW, failing)
        elif champion is not None and (why := await self._against(state, champion)):
            before = state.champion_before()
            assert before is not None
            step = self._take(before, Stage.CHAMPION, f"{champion}: {why}")
        return Look(
            champion,
            canary,
            len(answered) - len(away),
            away,
            behind,
            seen.decisions,
            seen.rows,
            step,
        )

    async def _against(self, state: Stages, champion: str) -> str | None:
        """Why the last champion is to be put back; None where it is not."""
        seen, before = self._growth.counted, state.champion_before()
        why = degrades(seen, self._limits) if self._goes_on("champion", seen.degraded) else None
        silent = False
        if why is not None and before is not None and self._is_new(state):
            silent = await self._is_silent(champion, before, why)
        if not self._in_a_row("champion", silent):
            return None
        return f"{why}, and Triton answers for {before} but not for it"

    async def _is_silent(self, champion: str, before: str, why: str) -> bool:
        """Whether Triton answers for the last champion and not for this one."""
        if await self._answers(champion):
            return False
        if not await self._answers(before):
            log.warning("guard_stands_by", why=f"{why}, but Triton does not answer for {before} either")
            return False
        # Triton may have come back between the two.
        return not await self._answers(champion)

    def _is_new(self, state: Stages) -> bool:
        """Whether two people made the champion one so lately that a guard may put the last one back."""
        promoted = None if state.champion_undone else _promoted_at(state)
        return promoted is not None and self._now() - promoted <= timedelta(hours=self._limits.champion_hours)

    def _goes_on(self, who: str, failures: int) -> bool:
        """Whether there were more failures since the last look."""
        before, self._failures[who] = self._failures[who], failures
        return failures > before

    def _in_a_row(self, who: str, found: bool) -> bool:
        """Whether so many looks in a row, this one the last, have found the failure."""
        self._found[who] = self._found[who] + 1 if found else 0
        return self._found[who] >= self._limits.looks

    def _take(self, version: str, to: Stage, why: str) -> Step | None:
        try:
            self._stages.undo(version, to, why, self._signer)
        except StepRefused as error:
            # A person may have been faster, between the look and the step.
            log.warning("guard_step_refused", version=version, to=to.value, error=str(error))
            return None
        log.warning("guard_stepped_in", version=version, to=to.value, why=why)
        return Step(version, to, why)

    def _say_away(self, away: dict[str, str]) -> None:
        for worker, why in away.items():
            if self._away.get(worker) != why:
                log.warning("worker_away", worker=worker, error=why)
        for worker in self._away.keys() - away.keys():
            log.info("worker_answers_again", worker=worker)
        self._away = away


def _deciding_canary(state: Stages) -> str | None:
    canary = state.at(Stage.CANARY)
    return canary if canary is not None and state.shares.get(canary) else None


def _promoted_at(state: Stages) -> datetime | None:
    """When two people put the champion in its place."""
    champion = state.at(Stage.CHAMPION)
    proposals = {entry["number"]: entry for entry in state.history if entry["act"] == Act.PROPOSE}
    for entry in reversed(state.history):
        if entry["act"] != Act.APPROVE:
            continue
        told = proposals[entry["proposal"]]
        if told["to"] == Stage.CHAMPION and told["version"] == champion:
            return datetime.fromisoformat(str(entry["at"]))
    return None
