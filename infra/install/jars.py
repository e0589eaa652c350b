"""Fetch named jars from a Maven repository and take only those whose SHA-256 our own list gives."""

import base64
import hashlib
import re
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from infra.install.progress import Meter
from weir.errors import ConfigError, IntegrityError, MissingPart, NeighbourUnavailable

_LINE = re.compile(r"^([\w.\-]+):([\w.\-]+):([\w.\-]+) sha256:([0-9a-f]{64}) (\d+)$")
_CHUNK_BYTES = 1 << 16
_DOWNLOADS_AT_ONCE = 8
_TRIES = 4
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Jar:
    """One artifact, and the only bytes that we take for it."""

    group: str
    artifact: str
    version: str
    sha256: str
    byte_count: int

    @property
    def file_name(self) -> str:
        """As Maven names it."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path(self) -> str:
        """Below the root of a repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file_name}"


@dataclass(frozen=True, slots=True)
class Repository:
    """Where jars come from; `headers` may hold a password, so it is never shown."""

    url: str
    name: str
    headers: dict[str, str] = field(default_factory=dict, repr=False)


def read_jar_lock(path: Path) -> list[Jar]:
    """The jars of a list; blank lines and `#` comments are skipped.

    Raises:
        ConfigError: a line is not `group:artifact:version sha256:<hex> <bytes>`.
    """
    jars = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.match(line)
        if not found:
            raise ConfigError(
                f"{path.name} line {number}: not `group:artifact:version sha256:<hex> <bytes>`. Correct it."
            )
        jars.append(Jar(found[1], found[2], found[3], found[4], int(found[5])))
    return jars


def mirror_of_central(settings: Path) -> Repository | None:
    """The mirror of the central repository that a Maven `settings.xml` names, with its credentials.

    As Maven chooses: a mirror of "central" by name before one by a pattern ("*", "external:*", "*,!other").

    Raises:
        ConfigError: the file is not XML.
    """
    try:
        tree = ElementTree.parse(settings)  # noqa: S314 - the user's own settings
    except FileNotFoundError:
        return None
    except (OSError, ElementTree.ParseError) as error:
        raise ConfigError(f"{settings}: {error}. Correct the file.") from error
    mirrors = [_texts(element) for element in tree.iterfind(".//{*}mirrors/{*}mirror")]
    servers = [_texts(element) for element in tree.iterfind(".//{*}servers/{*}server")]
    named = [mirror for mirror in mirrors if mirror.get("mirrorOf") == "central"]
    matching = named or [mirror for mirror in mirrors if _mirrors_central(mirror.get("mirrorOf", ""))]
    if not (matching and matching[0].get("url")):
        return None
    mirror = matching[0]
    headers = {}
    for server in servers:
        if server.get("id") == mirror.get("id") and server.get("username"):
            pair = f"{server['username']}:{server.get('password', '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return Repository(
        mirror["url"].rstrip("/"), f"the mirror {mirror.get('id', '')!r} of {settings}", headers
    )


def _texts(element: ElementTree.Element) -> dict[str, str]:
    return {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in element}


def _mirrors_central(pattern: str) -> bool:
    words = [word.strip() for word in pattern.split(",")]
    return "!central" not in words and any(word in {"*", "central", "external:*"} for word in words)


def fetch(jars: Sequence[Jar], repository: Repository, folder: Path, meter: Meter) -> None:
    """Download every jar into `folder`, several at once; each is checked before it gets its name.

    Raises:
        IntegrityError: a jar is not the one of our list.
        MissingPart: the repository does not have one.
        NeighbourUnavailable: no answer, after several tries.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="jars")
    try:
        # The largest first, so that none is left alone at the end.
        ordered = sorted(jars, key=lambda jar: -jar.byte_count)
        for done in [pool.submit(_fetch_one, jar, repository, folder, meter, stop) for jar in ordered]:
            done.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch_one(jar: Jar, repository: Repository, folder: Path, meter: Meter, stop: threading.Event) -> None:
    request = urllib.request.Request(f"{repository.url}/{jar.path}", headers=repository.headers)  # noqa: S310
    part = folder / f"{jar.file_name}.part"
    for attempt in range(1, _TRIES + 1):
        counted = 0
        try:
            digest = hashlib.sha256()
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer, part.open("wb") as file:  # noqa: S310
                while chunk := answer.read(_CHUNK_BYTES):
                    if stop.is_set():
                        return
                    counted += len(chunk)
                    if counted > jar.byte_count:
                        break
                    digest.update(chunk)
                    file.write(chunk)
                    meter.add(len(chunk))
            if counted < jar.byte_count:
                raise ConnectionError(f"{counted} of {jar.byte_count} bytes came")
        except urllib.error.HTTPError as error:
            if error.code in {401, 403, 407}:
                raise NeighbourUnavailable(
                    f"{repository.name} refuses access to {jar.file_name} (HTTP {error.code}). "
                    "Check the credentials in Maven's settings.xml and your proxy."
                ) from error
            if error.code == 404:
                raise MissingPart(
                    f"{jar.file_name} is not in {repository.name} (HTTP 404). "
                    "Check that your mirror carries Maven Central."
                ) from error
            _wait_or_give_up(jar, repository, error, attempt, stop)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            _wait_or_give_up(jar, repository, error, attempt, stop)
        else:
            if counted != jar.byte_count or digest.hexdigest() != jar.sha256:
                raise IntegrityError(
                    f"{jar.file_name} from {repository.name} is not the file whose SHA-256 is in "
                    "requirements/. Nothing of it is kept; do not use that repository until that is clear."
                )
            part.replace(folder / jar.file_name)
            return
        meter.add(-min(counted, jar.byte_count))


def _wait_or_give_up(
    jar: Jar, repository: Repository, error: Exception, attempt: int, stop: threading.Event
) -> None:
    if attempt == _TRIES:
        reason = getattr(error, "reason", error)
        raise NeighbourUnavailable(
            f"no network: {jar.file_name} cannot be had from {repository.name} ({reason}). Connect (or "
            "name a mirror in Maven's settings.xml), then run this again: what is here already stays."
        ) from error
    stop.wait(min(0.3 * 2**attempt, 5.0) + (time.monotonic() % 0.1))
