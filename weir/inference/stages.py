"""Which version of a model decides: a log of signed steps beside the versions, each step a person's word.

    triton_models/<model>/stages.jsonl       the log, one JSON object a line, only ever longer
    triton_models/people.toml                who may sign: name, Ed25519 public key, what each may do

A version climbs from candidate over shadow and canary to champion, and ends retired. A canary decides for the
share of the accounts that its step names. One person proposes a step and another one approves it; whoever
proposed cannot approve. A guard, a key of a program's own, may
undo alone: take back a canary, or put the last champion in the champion's place, and nothing else.

Each line names the SHA-256 of the line before, and its signature covers that: a line that was edited, moved
or cut out breaks the chain, and a step that nobody signed is none. The state is what the log says, no more.
A cut end cannot be seen in the file itself; `head` is there to be noted elsewhere.

A model without a log has no stages: its newest version decides, as before there were any.
"""

import base64
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from weir.errors import ConfigError, IntegrityError

LOG, PEOPLE = "stages.jsonl", "people.toml"
START = "0" * 64
# More than half of the accounts is no canary: that is a champion that was not promoted.
SHARE_MAX = 0.5


class Stage(StrEnum):
    """How far a version has come."""

    CANDIDATE = "candidate"
    SHADOW = "shadow"
    CANARY = "canary"
    CHAMPION = "champion"
    RETIRED = "retired"


class Act(StrEnum):
    """What a line of the log does."""

    REGISTER = "register"
    PROPOSE = "propose"
    APPROVE = "approve"
    REJECT = "reject"
    UNDO = "undo"


# From where a version may go where. A retired one may come back as champion: that is a rollback.
STEPS: Mapping[Stage, tuple[Stage, ...]] = {
    Stage.CANDIDATE: (Stage.SHADOW, Stage.CHAMPION, Stage.RETIRED),
    Stage.SHADOW: (Stage.CANARY, Stage.CHAMPION, Stage.RETIRED),
    # To where it is: with another share.
    Stage.CANARY: (Stage.CANARY, Stage.CHAMPION, Stage.SHADOW, Stage.RETIRED),
    Stage.CHAMPION: (),
    Stage.RETIRED: (Stage.CHAMPION, Stage.CANDIDATE),
}
# Of these there is one at a time: who comes sends the one before to where it stands here.
_PLACES = {Stage.SHADOW: Stage.CANDIDATE, Stage.CANARY: Stage.SHADOW, Stage.CHAMPION: Stage.RETIRED}
_MAY = {Act.REGISTER: "register", Act.PROPOSE: "propose", Act.APPROVE: "approve", Act.REJECT: "approve"}


class StepRefused(ConfigError):
    """A step that is not allowed; the log is as it was."""


class StagesBroken(IntegrityError):
    """The log is not what was written; no version of it is to be served."""

    def __init__(self, path: Path, finding: str) -> None:
        self.path, self.finding = path, finding
        super().__init__(f"{path}: {finding}. Restore it from a copy; do not delete it.")


@dataclass(frozen=True, slots=True)
class Person:
    """Who may sign. may: of "register", "propose", "approve", "undo". until: when that ended, or None.

    Who leaves stays on the list, with an end: the steps that were taken before still have to be checked.
    """

    name: str
    key: Ed25519PublicKey
    may: frozenset[str]
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Proposal:
    """A step that waits for a second person, named by the number of its line."""

    number: int
    version: str
    to: Stage
    by: str
    why: str
    at: str
    share: float = 0.0


@dataclass(slots=True)
class Stages:
    """What the log says, line by line.

    stages: of each version. sha256: of each version's model.onnx when it was registered. shares: of the
    accounts, 0 to 1, for which a version decides when it is canary. champions: the present one last, before
    it those that it may be rolled back to. open: proposals that nobody has answered.
    lines, head: how many and the last one's hash.
    """

    stages: dict[str, Stage] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    champions: list[str] = field(default_factory=list)
    open: dict[int, Proposal] = field(default_factory=dict)
    # By undo: the champion stands there by a guard's step, and the line of each version's last step back.
    champion_undone: bool = False
    taken_back: dict[str, int] = field(default_factory=dict)
    history: list[Mapping[str, Any]] = field(default_factory=list)
    lines: int = 0
    head: str = START

    def at(self, stage: Stage) -> str | None:
        """The version that stands there; of candidates and retired ones the newest."""
        found = [version for version, where in self.stages.items() if where is stage]
        return max(found, key=int, default=None)

    @property
    def served(self) -> list[str]:
        """Versions that Triton must hold: those that are asked, and the one to go back to, ascending."""
        asked = {self.at(stage) for stage in (Stage.SHADOW, Stage.CANARY, Stage.CHAMPION)}
        asked.add(self.champion_before())
        return sorted((version for version in asked if version is not None), key=int)

    def champion_before(self) -> str | None:
        """The champion before this one: where a rollback goes."""
        now = self.at(Stage.CHAMPION)
        return next((version for version in reversed(self.champions) if version != now), None)

    def apply(self, entry: Mapping[str, Any], people: Mapping[str, Person]) -> None:
        """One more step.

        Raises:
            StepRefused: the person may not, the version is unknown, or it cannot go there from where it is.
        """
        act, by = Act(entry["act"]), str(entry["by"])
        at = datetime.fromisoformat(str(entry["at"]))
        require_right(people, by, act, at)
        if self.history and at < datetime.fromisoformat(str(self.history[-1]["at"])):
            raise StepRefused("The clock is behind the last step's: correct it.")
        if act is Act.REGISTER:
            self._register(str(entry["version"]), str(entry["sha256"]))
        elif act is Act.PROPOSE:
            version, to, share = str(entry["version"]), Stage(entry["to"]), _share(entry)
            self._require(version, to)
            self.open[self.lines] = Proposal(
                self.lines, version, to, by, str(entry["why"]), str(entry["at"]), share
            )
        elif act is Act.UNDO:
            self._undo(str(entry["version"]), Stage(entry["to"]))
        else:
            self._answer(int(entry["proposal"]), by, approved=act is Act.APPROVE)

    def _register(self, version: str, sha256: str) -> None:
        if version in self.stages:
            raise StepRefused(f"Version {version} is registered already.")
        self.stages[version], self.sha256[version] = Stage.CANDIDATE, sha256

    def _require(self, version: str, to: Stage) -> None:
        where = self.stages.get(version)
        if where is None:
            raise StepRefused(f"Version {version} is not registered.")
        if to not in STEPS[where]:
            ways = ", ".join(STEPS[where]) or "nowhere: put another version in its place"
            raise StepRefused(f"Version {version} is {where}; from there it can go to: {ways}.")

    def _answer(self, number: int, by: str, *, approved: bool) -> None:
        proposal = self.open.get(number)
        if proposal is None:
            raise StepRefused(f"There is no open proposal {number}.")
        if approved and proposal.by == by:
            raise StepRefused(f"{by} proposed this step: another person must approve it.")
        if approved:
            # What was proposed may have become impossible since.
            self._require(proposal.version, proposal.to)
            if number < self.taken_back.get(proposal.version, 0):
                raise StepRefused(
                    f"Version {proposal.version} was taken back since that was proposed: propose it anew."
                )
            self._move(proposal.version, proposal.to)
            self.shares[proposal.version] = proposal.share
            if proposal.to is Stage.CHAMPION:
                self.champion_undone = False
        del self.open[number]

    def _undo(self, version: str, to: Stage) -> None:
        canary_back = to is Stage.SHADOW and self.stages.get(version) is Stage.CANARY
        # Once: a key that could go back step by step would choose the champion.
        rollback = to is Stage.CHAMPION and version == self.champion_before() and not self.champion_undone
        if not (canary_back or rollback):
            raise StepRefused(
                "A guard may put back the last champion, once, or take back the canary, "
                f"not make {version} {to}."
            )
        gone = version if canary_back else self.at(Stage.CHAMPION)
        if gone is not None:
            self.taken_back[gone] = self.lines
        self.champion_undone = self.champion_undone or rollback
        self._move(version, to)

    def _move(self, version: str, to: Stage) -> None:
        standing = self.at(to) if to in _PLACES else None
        self.stages[version] = to
        if standing not in (None, version):
            # Whom it displaces may displace another: a canary that falls back to shadow.
            self._move(standing, _PLACES[to])
        if to is Stage.CHAMPION:
            # Who comes back was the last good one: what came after it is no place to go back to.
            earlier = self.champions.index(version) if version in self.champions else len(self.champions)
            self.champions = [*self.champions[:earlier], version]


def require_right(people: Mapping[str, Person], name: str, act: Act, at: datetime) -> None:
    """Return where that person may take such a step at that time.

    Raises:
        StepRefused: the person is not listed, has not the right, or has it no more.
    """
    person, wanted = people.get(name), _MAY.get(act, "undo")
    if person is None:
        raise StepRefused(f"{name!r} is not in {PEOPLE}.")
    if wanted not in person.may:
        raise StepRefused(f"{name} may not {wanted}.")
    if person.until is not None and at >= person.until:
        raise StepRefused(f"{name} may not {wanted} since {person.until.isoformat()}.")


def _share(entry: Mapping[str, Any]) -> float:
    """Of the accounts, for a canary; 0 where the step names none, as those of earlier releases."""
    if "share" not in entry:
        return 0.0
    share = entry["share"]
    if Stage(entry["to"]) is not Stage.CANARY:
        raise StepRefused("A share is for a canary alone.")
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= SHARE_MAX:
        raise StepRefused(f"A canary's share lies above 0 and at most at {SHARE_MAX:g}, not at {share}.")
    return float(share)


def read_people(path: Path) -> dict[str, Person]:
    """Who may sign, by name.

    Raises:
        ConfigError: there is no such file, or it is not as this module says.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))["people"]
        people: dict[str, Person] = {}
        seen: dict[bytes, str] = {}
        for name, about in found.items():
            raw = base64.b64decode(about["key"], validate=True)
            may = frozenset(about["may"])
            if wrong := may - {*_MAY.values(), "undo"}:
                raise ConfigError(f"{path}: {name} may {min(wrong)!r}, which is not a right.")
            if raw in seen:
                raise ConfigError(f"{path}: {name} has the key of {seen[raw]}: one person cannot be two.")
            seen[raw] = name
            until = about.get("until")
            if until is not None and (not isinstance(until, datetime) or until.tzinfo is None):
                raise ConfigError(
                    f"{path}: until of {name} must be a time with its zone, 2026-12-01T00:00:00Z."
                )
            people[str(name)] = Person(str(name), Ed25519PublicKey.from_public_bytes(raw), may, until)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}). Make it with `weir models person`."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a list of people with `key` and `may`: {error}.") from error
    return people


def signed_bytes(entry: Mapping[str, Any]) -> bytes:
    """What a signature covers: all of the entry but itself, as JSON with sorted keys and no spaces."""
    plain = {name: value for name, value in entry.items() if name != "signature"}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def read_stages(log: Path, people: Path) -> Stages | None:
    """What the log says, every line's chain and signature checked; None where there is no log.

    Raises:
        StagesBroken: a line is damaged, out of place, not signed, or does what it may not.
        ConfigError: see `read_people`.
    """
    try:
        held = log.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StagesBroken(log, f"it cannot be read ({error.strerror})") from error
    who, state = read_people(people), Stages()
    if held and not held.endswith(b"\n"):
        raise StagesBroken(log, "its last line is cut off")
    for number, line in enumerate(held.splitlines()):
        try:
            entry = json.loads(line)
            person = who[entry["by"]]
            if entry["number"] != number or entry["previous"] != state.head:
                raise StagesBroken(log, f"line {number + 1} does not follow the one before")
            person.key.verify(base64.b64decode(entry["signature"], validate=True), signed_bytes(entry))
            state.apply(entry, who)
        except InvalidSignature as error:
            raise StagesBroken(log, f"line {number + 1} is not signed by {entry['by']}") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, StepRefused) as error:
            raise StagesBroken(log, f"line {number + 1} is not a step that may be taken ({error})") from error
        state.history.append(entry)
        state.lines, state.head = number + 1, hashlib.sha256(line).hexdigest()
    return state
