"""Ids come from the repository's file, or from a Schema Registry that may be slow, closed, wrong or away."""

import base64
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import SecretStr

from weir.codec import SUBJECTS, FileRegistry, HttpRegistry, Schema, load_schema, open_registry
from weir.codec.compatibility import main
from weir.config import RegistrySettings
from weir.errors import AccessDenied, BadInput, ConfigError, MissingPart, NeighbourUnavailable, WeirError

USER, PASSWORD = "weir", "correct horse"
EXPECTED = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
SUBJECT = SUBJECTS["transaction"]


class SchemaRegistryServer:
    """As much of Confluent's REST interface as a client of ours uses, with a password."""

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []  # id is index + 1
        self.subjects: dict[str, list[int]] = {}
        self.request_count = 0
        self.broken: web.Response | None = None
        self.url = ""

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.request_count += 1
        if request.headers.get("Authorization") != EXPECTED:
            return web.json_response({"error_code": 40101, "message": "Unauthorized"}, status=401)
        if self.broken is not None:
            answer, self.broken = self.broken, None
            return answer
        response: web.StreamResponse = await handler(request)
        return response

    async def look_up(self, request: web.Request) -> web.Response:
        schema = json.loads((await request.json())["schema"])
        for schema_id in self.subjects.get(request.match_info["subject"], ()):
            if self.schemas[schema_id - 1] == schema:
                return web.json_response({"subject": request.match_info["subject"], "id": schema_id})
        return web.json_response({"error_code": 40403, "message": "Schema not found"}, status=404)

    async def register(self, request: web.Request) -> web.Response:
        schema = json.loads((await request.json())["schema"])
        if schema not in self.schemas:
            self.schemas.append(schema)
        schema_id = self.schemas.index(schema) + 1
        self.subjects.setdefault(request.match_info["subject"], []).append(schema_id)
        return web.json_response({"id": schema_id})

    async def by_id(self, request: web.Request) -> web.Response:
        schema_id = int(request.match_info["id"])
        if not 1 <= schema_id <= len(self.schemas):
            return web.json_response({"error_code": 40403, "message": "Schema not found"}, status=404)
        return web.json_response({"schema": json.dumps(self.schemas[schema_id - 1])})

    def settings(self, **changed: Any) -> RegistrySettings:
        wanted = {"url": self.url, "username": USER, "password": SecretStr(PASSWORD), **changed}
        return RegistrySettings.model_validate(wanted)


@pytest.fixture
async def server() -> AsyncIterator[SchemaRegistryServer]:
    """A real HTTP server on a free port."""
    registry = SchemaRegistryServer()
    application = web.Application(middlewares=[registry.guard])
    application.router.add_post("/subjects/{subject}", registry.look_up)
    application.router.add_post("/subjects/{subject}/versions", registry.register)
    application.router.add_get("/schemas/ids/{id}", registry.by_id)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    registry.url = f"http://{host}:{port}"
    yield registry
    await runner.cleanup()


@pytest.fixture
async def client(server: SchemaRegistryServer) -> AsyncIterator[HttpRegistry]:
    registry = HttpRegistry(server.settings())
    yield registry
    await registry.close()


def is_one_clear_line(error: WeirError, where: str) -> bool:
    text = str(error)
    return "\n" not in text and where in text and PASSWORD not in text


async def test_a_registered_schema_has_the_servers_id(
    server: SchemaRegistryServer, client: HttpRegistry
) -> None:
    schema = load_schema("transaction")
    registered = await client.register(SUBJECT, schema)
    other = HttpRegistry(server.settings())
    assert await other.id_of(SUBJECT, schema) == registered
    await other.close()


async def test_a_schema_is_fetched_once(server: SchemaRegistryServer, client: HttpRegistry) -> None:
    server.schemas.append({"type": "record", "name": "Theirs", "fields": []})
    assert client.known(1) is None
    for _ in range(3):
        assert (await client.schema_of(1))["name"] == "Theirs"
    assert client.known(1) is not None
    assert server.request_count == 1


async def test_an_id_that_is_not_there_is_bad_input_and_asked_for_once(
    server: SchemaRegistryServer, client: HttpRegistry
) -> None:
    for _ in range(3):
        with pytest.raises(BadInput, match="unknown_schema") as caught:
            await client.schema_of(99)
        assert is_one_clear_line(caught.value, server.url)
    assert server.request_count == 1


async def test_a_schema_that_is_not_registered_says_what_to_do(
    server: SchemaRegistryServer, client: HttpRegistry
) -> None:
    with pytest.raises(ConfigError, match="--publish") as caught:
        await client.id_of(SUBJECT, load_schema("transaction"))
    assert is_one_clear_line(caught.value, server.url)


@pytest.mark.parametrize("changed", [{"password": SecretStr("wrong")}, {"username": None}])
async def test_a_wrong_password_is_access_denied(
    server: SchemaRegistryServer, changed: dict[str, Any]
) -> None:
    registry = HttpRegistry(server.settings(**changed))
    with pytest.raises(AccessDenied, match="username and password") as caught:
        await registry.schema_of(1)
    assert is_one_clear_line(caught.value, server.url)
    await registry.close()


async def test_a_registry_that_is_away_may_be_asked_again() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        registry = HttpRegistry(RegistrySettings(url=url))
        with pytest.raises(NeighbourUnavailable) as caught:
            await registry.schema_of(1)
        await registry.close()
    assert caught.value.retriable
    assert is_one_clear_line(caught.value, url)


async def test_a_registry_that_hangs_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        registry = HttpRegistry(RegistrySettings(url=url), timeout_s=0.2)
        with pytest.raises(NeighbourUnavailable):
            await registry.schema_of(1)
        await registry.close()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"status": 503}, NeighbourUnavailable),
        ({"status": 429}, NeighbourUnavailable),
        ({"status": 302, "headers": {"Location": "/login"}}, ConfigError),
        ({"text": "<html>a login page</html>"}, ConfigError),
        ({"text": "[1, 2]"}, ConfigError),
        ({"text": '{"schema": "not json"}'}, ConfigError),
        ({"text": '{"schema": 7}'}, ConfigError),
        ({"text": '{"schema": "\\"string\\""}'}, BadInput),
        ({"text": '{"schema": "{}", "schemaType": "PROTOBUF"}'}, BadInput),
    ],
)
async def test_strange_answers_are_one_clear_line(
    server: SchemaRegistryServer, client: HttpRegistry, answer: dict[str, Any], error: type[WeirError]
) -> None:
    server.broken = web.Response(**answer)
    with pytest.raises(error) as caught:
        await client.schema_of(1)
    assert "\n" not in str(caught.value)
    assert client.known(1) is None


async def test_an_incompatible_schema_is_refused_by_name(
    server: SchemaRegistryServer, client: HttpRegistry
) -> None:
    server.broken = web.json_response({"error_code": 409, "message": "incompatible"}, status=409)
    with pytest.raises(ConfigError, match="refuses the schema") as caught:
        await client.register(SUBJECT, load_schema("transaction"))
    assert is_one_clear_line(caught.value, server.url)


def test_a_registry_needs_a_url_and_a_readable_ca(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="url is not set"):
        HttpRegistry(RegistrySettings())
    with pytest.raises(ConfigError, match="ssl_ca"):
        HttpRegistry(RegistrySettings(url="https://localhost", ssl_ca=tmp_path / "none.pem"))
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match="ssl_ca"):
        HttpRegistry(RegistrySettings(url="https://localhost", ssl_ca=tmp_path / "bad.pem"))


@pytest.mark.parametrize(
    "url",
    ["localhost:8081", "ftp://localhost", "http://", "http://a:port", "http://weir:correct horse@localhost"],
)
def test_a_wrong_url_is_named_and_its_password_is_not(url: str) -> None:
    with pytest.raises(ConfigError, match="url") as caught:
        HttpRegistry(RegistrySettings(url=url))
    assert PASSWORD not in str(caught.value)


def test_publishing_to_a_registry_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WEIR_REGISTRY_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert main(["--publish"]) == NeighbourUnavailable.exit_code
    assert len(capsys.readouterr().err.splitlines()) == 1


async def test_the_settings_choose_the_registry() -> None:
    assert isinstance(open_registry(RegistrySettings()), FileRegistry)
    remote = open_registry(RegistrySettings(url="http://localhost:1"))
    assert isinstance(remote, HttpRegistry)
    await remote.close()


async def test_the_repositorys_file_knows_every_schema_by_subject_and_id() -> None:
    registry = FileRegistry.read()
    ids = [await registry.id_of(subject, load_schema(name)) for name, subject in SUBJECTS.items()]
    assert len(set(ids)) == len(SUBJECTS)
    for schema_id, name in zip(ids, SUBJECTS, strict=True):
        assert (await registry.schema_of(schema_id))["name"] == load_schema(name)["name"]
    with pytest.raises(BadInput, match="unknown_schema"):
        await registry.schema_of(max(ids) + 1)


async def test_a_changed_schema_is_not_in_the_file() -> None:
    schema = load_schema("label")
    schema["fields"].pop()
    with pytest.raises(ConfigError, match="--register"):
        await FileRegistry.read().id_of(SUBJECTS["label"], schema)


def spoilt(tmp_path: Path, change: Any) -> Path:
    source: Schema = json.loads((Path(FileRegistry.read().where)).read_text())
    change(source)
    path = tmp_path / "registry.json"
    path.write_text(json.dumps(source))
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r[SUBJECT][0].update(id=2), "taken"),
        (lambda r: r[SUBJECT][0].update(id=0), "out of range"),
        (lambda r: r[SUBJECT][0].update(canonical='{"type":"record"}'), "fingerprint"),
        (lambda r: r[SUBJECT][0].update(canonical="{"), "not JSON"),
        (lambda r: r[SUBJECT][0].pop("id"), "id"),
    ],
)
def test_a_spoilt_file_is_one_clear_line(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        FileRegistry.read(spoilt(tmp_path, change))
    assert "registry.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingPart, match=r"registry\.json"):
        FileRegistry.read(tmp_path / "registry.json")
