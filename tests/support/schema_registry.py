"""A small Schema Registry: Confluent's REST interface for what Weir asks, over TLS and with a password."""

import json
import ssl
from base64 import b64encode
from collections import Counter
from pathlib import Path

from aiohttp import web

FIRST_ID = 70_001
USER, PASSWORD = "weir", "right-horse-9"


class RegistryUnderTest:
    """Serves on loopback inside the test's event loop; ids begin far from those of the repository's file."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate, key)
        self.schemas: dict[int, str] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: Counter[str] = Counter()
        self.url = ""

    async def __aenter__(self) -> "RegistryUnderTest":
        app = web.Application(middlewares=[self._guarded])
        app.router.add_post("/subjects/{subject}", self._look_up)
        app.router.add_post("/subjects/{subject}/versions", self._register)
        app.router.add_get("/schemas/ids/{id}", self._by_id)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._context)
        await site.start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def id_of(self, subject: str) -> int:
        return self.subjects[subject][-1]

    @web.middleware
    async def _guarded(self, request: web.Request, handler) -> web.StreamResponse:
        wanted = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if request.headers.get("Authorization") != wanted:
            return web.json_response({"error_code": 401, "message": "no"}, status=401)
        self.asked[request.method] += 1
        return await handler(request)

    async def _look_up(self, request: web.Request) -> web.Response:
        subject, wanted = request.match_info["subject"], json.loads((await request.json())["schema"])
        for version, schema_id in enumerate(self.subjects.get(subject, ()), 1):
            if json.loads(self.schemas[schema_id]) == wanted:
                answer = {"subject": subject, "id": schema_id, "version": version}
                return web.json_response({**answer, "schema": self.schemas[schema_id]})
        return web.json_response({"error_code": 40403, "message": "Schema not found"}, status=404)

    async def _register(self, request: web.Request) -> web.Response:
        subject, text = request.match_info["subject"], (await request.json())["schema"]
        schema_id = next(
            (key for key, held in self.schemas.items() if held == text), FIRST_ID + len(self.schemas)
        )
        self.schemas[schema_id] = text
        versions = self.subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        return web.json_response({"id": schema_id})

    async def _by_id(self, request: web.Request) -> web.Response:
        text = self.schemas.get(int(request.match_info["id"]))
        if text is None:
            return web.json_response({"error_code": 40403, "message": "Schema not found"}, status=404)
        return web.json_response({"schema": text})
