"""Steps of the log written: a version registered, a step proposed, approved, rejected, undone.

Each is one line, signed and on the disk before it counts, under a lock, so two people at once cannot both be
the next. What is refused leaves the log as it was. After a step that changes who decides, Triton's
configuration names the versions to hold.
"""

import base64
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from services.training.errors import TrainingError
from services.training.repository import ModelRepository
from weir.errors import ConfigError
from weir.files import sync_folder
from weir.inference.stages import (
    LOG,
    PEOPLE,
    Act,
    Person,
    Stage,
    Stages,
    StepRefused,
    read_people,
    read_stages,
    require_right,
    signed_bytes,
)

RIGHTS = ("register", "propose", "approve", "undo")


class StageLog:
    """The log of one model in a repository."""

    def __init__(self, repository: ModelRepository, name: str) -> None:
        self.repository, self.name = repository, name
        self.path = repository.root / name / LOG
        self.people = repository.root / PEOPLE

    def read(self) -> Stages:
        """What it says; nothing at all where it has not begun.

        Raises:
            StagesBroken, ConfigError: see `read_stages`.
        """
        return read_stages(self.path, self.people) or Stages()

    def register(self, version: str, signer: "Signer") -> int:
        """A version as a candidate, with the checksum that it has now; the number of the line.

        Raises:
            ModelMissing, ModelBroken: it cannot be served.
            StepRefused: it, or the same graph under another number, is registered already.
        """
        about = self.repository.open(self.name, version).about
        twin = next((name for name, sha in self.read().sha256.items() if sha == about["sha256"]), None)
        if twin not in (None, version):
            # The journal knows a version by this alone.
            raise StepRefused(f"Version {version} is the same graph as version {twin}, which is registered.")
        return self._step(signer, Act.REGISTER, version=version, sha256=about["sha256"])

    def propose(self, version: str, to: Stage, why: str, signer: "Signer", share: float | None = None) -> int:
        """A step that waits for a second person; its number.

        Args:
            share: of the accounts, above 0, at most 0.5: for these a canary is to decide.
        Raises:
            StepRefused: not from where the version is, no reason is given, or a canary has no share.
            ModelBroken: see `register`.
        """
        if not why.strip():
            raise StepRefused("A step needs a reason: say --why.")
        if to is Stage.CANARY and share is None:
            raise StepRefused(
                "A canary decides for a share of the accounts: say --share, 0.05 for one in 20."
            )
        self._unchanged(version)
        what: dict[str, Any] = {} if share is None else {"share": share}
        return self._step(signer, Act.PROPOSE, version=version, to=to.value, why=why.strip(), **what)

    def approve(self, proposal: int, signer: "Signer") -> int:
        """The step is taken.

        Raises:
            StepRefused: no such proposal, or the same person. ModelBroken: the version changed since.
        """
        waiting = self.read().open.get(proposal)
        if waiting is not None:
            self._unchanged(waiting.version)
        return self._step(signer, Act.APPROVE, proposal=proposal)

    def reject(self, proposal: int, why: str, signer: "Signer") -> int:
        """The step is not taken; the proposer may withdraw it in this way."""
        return self._step(signer, Act.REJECT, proposal=proposal, why=why.strip())

    def undo(self, version: str, to: Stage, why: str, signer: "Signer") -> int:
        """A guard's step back, by one signature.

        Raises:
            StepRefused: it is not a step back. ModelBroken: the last champion's files are not what they were.
        """
        if to is Stage.CHAMPION:
            # A canary goes back whatever has become of its files.
            self._unchanged(version)
        return self._step(signer, Act.UNDO, version=version, to=to.value, why=why.strip())

    def check(self, signer: "Signer", act: Act) -> None:
        """Return where this key may take such steps, so that nobody finds out only when one is needed.

        Raises:
            StepRefused: it may not, or is not the key that the list has. ConfigError: see `read_people`.
        """
        people = read_people(self.people)
        self._own_key(signer, people)
        require_right(people, signer.name, act, now())

    def _own_key(self, signer: "Signer", people: Mapping[str, Person]) -> None:
        person = people.get(signer.name)
        if person is not None and person.key.public_bytes_raw() != signer.public:
            raise StepRefused(f"The key is not the one that {PEOPLE} has for {signer.name}.")

    def _unchanged(self, version: str) -> None:
        expected = self.read().sha256.get(version)
        found = self.repository.open(self.name, version).about["sha256"]
        if expected is not None and found != expected:
            raise StepRefused(
                f"Version {version} has changed since it was registered: {found[:12]}…, not {expected[:12]}…"
            )

    def _step(self, signer: "Signer", act: Act, **what: Any) -> int:
        with self._locked():
            state, at = self.read(), now().replace(microsecond=0)
            if act is Act.UNDO and state.history:
                # Somebody's clock that was fast must not keep a guard from stepping in.
                at = max(at, datetime.fromisoformat(str(state.history[-1]["at"])))
            entry: dict[str, Any] = {
                "number": state.lines,
                "previous": state.head,
                "at": at.isoformat(timespec="seconds"),
                "act": act.value,
                "by": signer.name,
                **what,
            }
            people = read_people(self.people)
            self._own_key(signer, people)
            after = deepcopy(state)
            after.apply(entry, people)
            entry["signature"] = signer.sign(signed_bytes(entry))
            self._append(entry)
            # Also where nothing changed: a step before this one may have been cut off after its line.
            self.repository.serve(self.name, after.served)
            return state.lines

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, sort_keys=True, ensure_ascii=True).encode() + b"\n"
        with self.path.open("ab") as file:
            size = file.tell()
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                # A disk that is full takes half a line: what counts is all or nothing of it.
                os.truncate(self.path, size)
                raise
        sync_folder(self.path.parent)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / f".{LOG}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Signer:
    """A person's private key."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self.name, self._key = name, key
        self.public = key.public_key().public_bytes_raw()

    @classmethod
    def load(cls, name: str, path: Path, passphrase: str | None = None) -> "Signer":
        """The key in a PEM file.

        Raises:
            ConfigError: it is not there, not an Ed25519 key, readable by others, or wants another passphrase.
        """
        try:
            if path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others: chmod 600 it.")
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}).") from error
        try:
            key = load_pem_private_key(data, None if passphrase is None else passphrase.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"{path} is no private key, or the passphrase is another one.") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{path} is not an Ed25519 key. Make one with `weir models person`.")
        return cls(name, key)

    @classmethod
    def create(cls, name: str, path: Path, passphrase: str | None) -> "Signer":
        """A new key in a new file that only its owner reads.

        Raises:
            TrainingError: the file exists.
        """
        key = Ed25519PrivateKey.generate()
        hidden = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
        data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise TrainingError(f"{path} exists. Choose another file for the key.") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        return cls(name, key)

    def sign(self, data: bytes) -> str:
        """Base64 of the signature."""
        return base64.b64encode(self._key.sign(data)).decode()

    def __repr__(self) -> str:
        return f"Signer({self.name!r})"


def now() -> datetime:
    """When a step is taken, in UTC."""
    return datetime.now(UTC)


def add_person(people: Path, signer: Signer, may: tuple[str, ...]) -> str:
    """The lines for `people.toml`, appended there.

    Raises:
        TrainingError: the name is taken, or is not letters, digits, `-` and `_`; a right that there is not.
    """
    if not signer.name.replace("-", "").replace("_", "").isalnum() or not signer.name.isascii():
        raise TrainingError(f"{signer.name!r} is no name here: letters, digits, - and _.")
    if wrong := set(may) - set(RIGHTS):
        raise TrainingError(f"{min(wrong)!r} is no right. There are: {', '.join(RIGHTS)}.")
    if people.exists() and signer.name in read_people(people):
        raise TrainingError(f"{signer.name} is in {people} already.")
    key = base64.b64encode(signer.public).decode()
    rights = ", ".join(f'"{each}"' for each in may)
    lines = f'[people.{signer.name}]\nkey = "{key}"\nmay = [{rights}]\n'
    people.parent.mkdir(parents=True, exist_ok=True)
    with people.open("a", encoding="utf-8") as file:
        file.write(("\n" if people.stat().st_size else "") + lines)
    return lines
