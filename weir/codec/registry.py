"""Ids of schemas and schemas of ids: from a Schema Registry, or from the repository's own file."""

import json
import ssl
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec

from weir.codec.framing import HEADER_BYTES, MAGIC, SCHEMA_ID_MAX
from weir.codec.schemas import Schema, canonical_text, fingerprint, schemas_dir
from weir.config import RegistrySettings
from weir.errors import AccessDenied, BadInput, ConfigError, MissingPart, NeighbourUnavailable, WeirError

# Ids come from records, so what a stranger can make this process remember is bounded.
_KNOWN_MAX = 1_000
# An id that is not there may be registered later; until then it is not asked for again and again.
_MISSING_S = 30.0
# A stranger can name any id in a record: a batch asks for so many new ones and no more.
UNKNOWN_IDS_MAX = 8


class SchemaRegistry(Protocol):
    """Ids of schemas. `known` never waits: it answers from what was already asked for."""

    def known(self, schema_id: int) -> Schema | None:
        """The schema of this id, or None when it is not at hand."""
        ...

    async def id_of(self, subject: str, schema: Schema) -> int:
        """The id under which `subject` has this schema.

        Raises:
            ConfigError: the subject has no such version.
            NeighbourUnavailable: the registry gave no answer.
        """
        ...

    async def schema_of(self, schema_id: int) -> Schema:
        """The schema of this id.

        Raises:
            BadInput: `unknown_schema`: there is none.
            NeighbourUnavailable: the registry gave no answer.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Version(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One registered version of a subject's schema; `canonical` is the text that was registered."""

    version: int
    id: int
    fingerprint: str
    canonical: str

    def schema(self) -> Schema:
        """The schema as a dict."""
        schema: Schema = json.loads(self.canonical)
        return schema


class FileRegistry:
    """The registry of the repository's own file: subject to versions, ids from 1, never taken back."""

    def __init__(self, subjects: Mapping[str, tuple[Version, ...]], where: str) -> None:
        """Serve these subjects; `where` names them in errors.

        Raises:
            ConfigError: an id is given twice or is out of range, or a fingerprint does not match its text.
        """
        self.subjects, self.where = subjects, where
        self._by_id: dict[int, Schema] = {}
        for subject, versions in subjects.items():
            for version in versions:
                what = f"{where}: {subject} version {version.version}"
                if not 1 <= version.id <= SCHEMA_ID_MAX or version.id in self._by_id:
                    raise ConfigError(f"{what}: id {version.id} is taken or out of range. Restore the file.")
                try:
                    schema = version.schema()
                except ValueError as error:
                    raise ConfigError(f"{what}: text is not JSON ({error}). Restore the file.") from error
                if fingerprint(schema) != version.fingerprint:
                    raise ConfigError(f"{what}: fingerprint does not match its text. Restore the file.")
                self._by_id[version.id] = schema

    @classmethod
    def read(cls, path: Path | None = None) -> "FileRegistry":
        """The registry in `path`, by default `schemas/registry.json`.

        Raises:
            MissingPart: no such file.
            ConfigError: it is malformed.
        """
        path = path if path is not None else schemas_dir() / "registry.json"
        try:
            subjects = msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[Version, ...]])
        except OSError as error:
            raise MissingPart(f"{path}: {error.strerror}. Restore the file.") from error
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path}: {error}. Restore the file.") from error
        return cls(subjects, str(path))

    def with_version(self, subject: str, schema: Schema) -> "FileRegistry":
        """A registry that has this schema too, under the next free id; `self` when it is already there."""
        versions = self.subjects.get(subject, ())
        if any(version.fingerprint == fingerprint(schema) for version in versions):
            return self
        added = Version(
            len(versions) + 1, max(self._by_id, default=0) + 1, fingerprint(schema), canonical_text(schema)
        )
        return FileRegistry({**self.subjects, subject: (*versions, added)}, self.where)

    def write(self, path: Path) -> None:
        """Store it, readable in a diff."""
        rows = {
            subject: [msgspec.to_builtins(v) for v in versions] for subject, versions in self.subjects.items()
        }
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def known(self, schema_id: int) -> Schema | None:
        """The schema of this id, or None."""
        return self._by_id.get(schema_id)

    async def id_of(self, subject: str, schema: Schema) -> int:
        """The id under which `subject` has this schema.

        Raises:
            ConfigError: the subject has no such version.
        """
        wanted = fingerprint(schema)
        for version in self.subjects.get(subject, ()):
            if version.fingerprint == wanted:
                return version.id
        raise ConfigError(
            f"{self.where} has no version of {subject} that equals this {schema.get('name')}. "
            "Run `python -m weir.codec.compatibility --register`."
        )

    async def schema_of(self, schema_id: int) -> Schema:
        """The schema of this id.

        Raises:
            BadInput: `unknown_schema`.
        """
        schema = self._by_id.get(schema_id)
        if schema is None:
            raise BadInput("unknown_schema", f"schema id {schema_id} is not in {self.where}")
        return schema

    async def close(self) -> None:
        """Nothing to let go of."""


class HttpRegistry:
    """A Confluent-compatible Schema Registry over REST; asks once for each id and keeps the answer."""

    def __init__(self, settings: RegistrySettings, *, timeout_s: float = 5.0) -> None:
        """Speak to `settings.url`.

        Raises:
            ConfigError: no URL or a wrong one, or the CA file cannot be read.
        """
        if settings.url is None:
            raise ConfigError("[registry] url is not set. Set it, or use the repository's own registry.")
        self.url = _checked_url(settings.url)
        verify: ssl.SSLContext | bool = True
        if settings.ssl_ca is not None:
            try:
                verify = ssl.create_default_context(cafile=str(settings.ssl_ca))
            except OSError as error:
                raise ConfigError(f"[registry] ssl_ca {settings.ssl_ca}: {error}. Correct it.") from error
        auth: httpx.BasicAuth | None = None
        if settings.username is not None:
            password = settings.password.get_secret_value() if settings.password is not None else ""
            auth = httpx.BasicAuth(settings.username, password)
        self._client = httpx.AsyncClient(
            auth=auth,
            verify=verify,
            timeout=timeout_s,
            headers={"Accept": "application/vnd.schemaregistry.v1+json"},
        )
        self._by_id: dict[int, Schema] = {}
        self._missing_until: dict[int, float] = {}

    def known(self, schema_id: int) -> Schema | None:
        """The schema of this id if it was asked for before."""
        return self._by_id.get(schema_id)

    async def id_of(self, subject: str, schema: Schema) -> int:
        """The id under which `subject` has this schema.

        Raises:
            ConfigError: the subject has no such version.
            NeighbourUnavailable, AccessDenied: no answer, or not for us.
        """
        answer = await self._ask(
            "POST", f"/subjects/{subject}", {"schema": canonical_text(schema)}, params={"normalize": "true"}
        )
        if answer is None:
            raise ConfigError(
                f"Schema Registry at {self.url} has no version of {subject} that equals this "
                f"{schema.get('name')}. Run `python -m weir.codec.compatibility --publish`."
            )
        return self._remember(self._id_in(answer), schema)

    async def register(self, subject: str, schema: Schema) -> int:
        """Register the schema if it is new; its id.

        Raises:
            ConfigError: the registry refuses it as incompatible.
            NeighbourUnavailable, AccessDenied: no answer, or not for us.
        """
        answer = await self._ask("POST", f"/subjects/{subject}/versions", {"schema": canonical_text(schema)})
        if answer is None:
            raise self._strange("has no place for subjects")
        return self._remember(self._id_in(answer), schema)

    async def schema_of(self, schema_id: int) -> Schema:
        """The schema of this id.

        Raises:
            BadInput: `unknown_schema`.
            NeighbourUnavailable, AccessDenied: no answer, or not for us.
        """
        schema = self._by_id.get(schema_id)
        if schema is not None:
            return schema
        gone = BadInput(
            "unknown_schema", f"schema id {schema_id} is not in the Schema Registry at {self.url}"
        )
        now = time.monotonic()
        if self._missing_until.get(schema_id, now) > now:
            raise gone
        answer = await self._ask("GET", f"/schemas/ids/{schema_id}")
        if answer is None:
            if len(self._missing_until) >= _KNOWN_MAX:
                self._missing_until.clear()
            self._missing_until[schema_id] = now + _MISSING_S
            raise gone
        if answer.get("schemaType", "AVRO") != "AVRO" or answer.get("references"):
            raise BadInput("unknown_schema", f"schema id {schema_id} is not a plain Avro schema")
        try:
            schema = json.loads(answer["schema"])
        except (KeyError, TypeError, ValueError):
            raise self._strange(f"sent no Avro schema for id {schema_id}") from None
        if not isinstance(schema, dict):
            raise BadInput("unknown_schema", f"schema id {schema_id} is not a record")
        self._remember(schema_id, schema)
        return schema

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _remember(self, schema_id: int, schema: Schema) -> int:
        if len(self._by_id) >= _KNOWN_MAX:
            self._by_id.pop(next(iter(self._by_id)))
        self._by_id[schema_id] = schema
        return schema_id

    def _id_in(self, answer: Mapping[str, Any]) -> int:
        schema_id = answer.get("id")
        if not isinstance(schema_id, int) or not 0 <= schema_id <= SCHEMA_ID_MAX:
            raise self._strange("sent no schema id")
        return schema_id

    def _strange(self, what: str) -> WeirError:
        return ConfigError(f"Schema Registry at {self.url} {what}. Check [registry] url.")

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Mapping[str, Any] | None:
        """The JSON object in the answer; None for 404."""
        try:
            response = await self._client.request(method, self.url + path, json=body, params=params)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise NeighbourUnavailable(
                f"Schema Registry at {self.url}: {type(error).__name__} {error}. "
                "Start it, or correct [registry] url."
            ) from error
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise AccessDenied(
                f"Schema Registry at {self.url} refuses us ({response.status_code}). "
                "Check [registry] username and password."
            )
        if response.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
            raise ConfigError(
                f"Schema Registry at {self.url} refuses the schema ({response.status_code}): it breaks "
                "earlier versions. See docs/reference/schemas.md."
            )
        if response.status_code >= 500 or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise NeighbourUnavailable(
                f"Schema Registry at {self.url} answers {response.status_code}. Look at its log."
            )
        if not response.is_success:
            raise self._strange(f"answers {response.status_code}")
        try:
            answer = response.json()
        except ValueError:
            raise self._strange("does not speak JSON") from None
        if not isinstance(answer, dict):
            raise self._strange("answers in a form that is not its own")
        return answer


def _checked_url(url: str) -> str:
    """The URL, which errors may then show."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"[registry] url: {error}. Correct it.") from None
    if parts.userinfo:
        raise ConfigError("[registry] url holds a password. Set [registry] username and password instead.")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError("[registry] url must begin with http:// or https:// and name a host. Correct it.")
    return url.rstrip("/")


def open_registry(settings: RegistrySettings) -> SchemaRegistry:
    """The Schema Registry that is configured, else the repository's own file.

    Raises:
        ConfigError, MissingPart: as `HttpRegistry` and `FileRegistry.read`.
    """
    return HttpRegistry(settings) if settings.url is not None else FileRegistry.read()


async def fetch_unknown(registry: SchemaRegistry, values: Iterable[bytes | None]) -> None:
    """Ask for the schemas that these framed records name and that are not at hand, so that `known` has them.

    A stranger can name any id: no more than `UNKNOWN_IDS_MAX` are asked for at a time, and an id that the
    registry does not have is left to be refused.

    Raises:
        NeighbourUnavailable: the registry gave no answer; asking again later may help.
    """
    named = {value[1:HEADER_BYTES] for value in values if value and value[0] == MAGIC}
    missing = [
        schema_id
        for schema_id in (int.from_bytes(each, "big") for each in named if len(each) == HEADER_BYTES - 1)
        if registry.known(schema_id) is None
    ]
    for schema_id in sorted(missing)[:UNKNOWN_IDS_MAX]:
        with suppress(BadInput):
            await registry.schema_of(schema_id)
