"""A stand-in for a registry that takes models, for the tests of push: uploads by parts, remembered, redirected, forgotten, refused."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ndani.names import Name, parse
from ndani.store.layout import digest_of

PART = 100_000


class Uploads:
    """A registry that takes models: uploads by parts, with switches. It keeps what an interrupted part had brought out of it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.open: dict[str, bytearray] = {}
        self.parts: list[tuple[int, int]] = []
        self.etags: list[str] = []
        self.seen: list[tuple[str, str, str]] = []
        self.redirects = self.forgets = False
        self.refuses: dict[str, int] = {}  # status by method
        self.breaks = 0
        self.deaf = False  # parts are not read
        self.commits_in = 0.0  # seconds that the putting together of a blob takes
        self.hangs_up = False  # … and nobody waits for it
        self.pause = 0.0
        self.host = ""

    async def start(self) -> web.AppRunner:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/v2/ns/tiny/blobs/uploads/{id:.*}", self.upload)
        app.router.add_route("HEAD", "/v2/ns/tiny/blobs/{digest}", self.blob)
        app.router.add_route("PUT", "/v2/ns/tiny/manifests/1", self.manifest)
        app.router.add_route("PUT", "/elsewhere/{id}/{at}", self.elsewhere)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    @property
    def name(self) -> Name:
        return parse(f"{self.host}/ns/tiny:1")

    def note(self, request: web.Request) -> web.Response | None:
        self.seen.append((request.method, request.path, request.headers.get("Authorization", "")))
        if status := self.refuses.get(request.method):
            return web.json_response({"errors": [{"message": "not today"}]}, status=status)
        return None

    async def blob(self, request: web.Request) -> web.Response:
        return self.note(request) or web.Response(status=200 if request.match_info["digest"] in self.blobs else 404)

    async def upload(self, request: web.Request) -> web.Response:
        if refused := self.note(request):
            return refused
        name = request.match_info["id"]
        if request.method == "POST":
            name = f"u{len(self.seen)}"
            self.open[name] = bytearray()
            return self.standing(name, 202)
        if name not in self.open:
            return web.Response(status=404)
        if request.method == "GET":
            return self.standing(name, 204)
        if request.method == "PATCH" and self.redirects:
            at = request.headers["Content-Range"].partition("-")[0]
            where = {"Location": f"/elsewhere/{name}/{at}", "Docker-Upload-Location": f"/v2/ns/tiny/blobs/uploads/{name}"}
            return web.Response(status=307, headers=where)
        if request.method == "PATCH":
            return await self.part(request, name, int(request.headers["Content-Range"].partition("-")[0]))
        content, wanted = bytes(self.open.pop(name)), request.query["digest"]
        self.etags.append(request.query["etag"])
        if digest_of(content) != wanted:
            return web.json_response({"errors": [{"message": "digest invalid"}]}, status=400)
        if self.hangs_up:
            asyncio.get_running_loop().call_later(self.commits_in, self.blobs.update, {wanted: content})
            assert request.transport
            request.transport.close()
            return web.Response()
        await asyncio.sleep(self.commits_in)
        self.blobs[wanted] = content
        return web.Response(status=201)

    async def elsewhere(self, request: web.Request) -> web.Response:
        self.note(request)
        return await self.part(request, request.match_info["id"], int(request.match_info["at"]))

    async def part(self, request: web.Request, name: str, at: int) -> web.Response:
        if self.deaf:
            await asyncio.sleep(60)
        content = await request.read()
        if self.breaks and at >= 3 * PART:
            self.breaks -= 1
            if self.forgets:
                del self.open[name]
            assert request.transport
            request.transport.close()
            return web.Response()
        assert at == len(self.open[name])
        await asyncio.sleep(self.pause)
        self.open[name] += content
        self.parts.append((at, len(content)))
        return self.standing(name, 202)

    def standing(self, name: str, status: int) -> web.Response:
        last = max(len(self.open[name]) - 1, 0)
        return web.Response(status=status, headers={"Location": f"/v2/ns/tiny/blobs/uploads/{name}", "Range": f"0-{last}"})

    async def manifest(self, request: web.Request) -> web.Response:
        if refused := self.note(request):
            return refused
        self.manifests["1"] = await request.read()
        return web.Response(status=201)
