"""A stand-in for a registry that accepts pushes: uploads in parts, resumed, redirected, forgotten or refused."""

from __future__ import annotations

import asyncio

from aiohttp import web

from ndani.names import Name, parse
from ndani.store.layout import digest_of

PART = 100_000


class Uploads:
    """A registry that accepts uploads in parts. Of an interrupted part it keeps nothing. Its attributes say how it misbehaves."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.open: dict[str, bytearray] = {}
        self.parts: list[tuple[int, int]] = []
        self.refused: list[int] = []
        self.etags: list[str] = []
        self.seen: list[tuple[str, str, str]] = []
        self.redirects = self.forgets = False
        self.refuses: dict[str, int] = {}  # status by method
        self.breaks = 0
        self.deaf = False  # parts are not read
        self.commits_in = 0.0  # seconds until a finished blob is stored
        self.hangs_up = False  # … and the connection closes before that
        self.pause = 0.0
        self.cap, self.too_large = 0, 413  # the most bytes of a part, and the status for a larger one
        self.slams = False  # … and the connection is broken before the part is read
        self.least = 0  # the fewest bytes of a part that is not the last; announced when an upload begins
        self.takes = 0  # bytes of a part that are kept; 0: all
        self.says = "all"  # the Range in a response: "all", "nothing", "zero", "the part", "the first part", "one too many"
        self.taken = 202  # the status for a part
        self.once = False  # a second part is refused
        self.tells = True  # whether GET of an upload returns its state
        self.wants_post = False  # a blob has to come whole with the first request
        self.query = ""  # the query of an upload's address
        self.base = "/v2/ns/tiny/blobs/uploads/"  # the path of the addresses in Location
        self.front = ""  # scheme and host of the addresses in Location; empty: none
        self.storage = ""  # where requests for a blob are redirected; empty: nowhere
        self.expires = 0  # this many addresses for a part have expired when they are used
        self.moves = 0  # POST and PUT are redirected with this status
        self.cookie = False  # reads set a cookie, and writes that carry it are refused (as Harbor does)
        self.garbles = -1  # the number of the part that is stored as zeros; -1: none
        self.keeps = False  # an upload whose digest is wrong is not removed
        self.bursts = 0  # after every ten parts this many break off
        self.makes_another = False  # the digest returned for a manifest is another
        self.broken = 0
        self.largest = 0  # the most bytes that came with the request that ends an upload
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
        if "sid" in request.cookies and request.method not in ("GET", "HEAD"):
            return web.json_response({"errors": [{"code": "FORBIDDEN", "message": "CSRF token invalid"}]}, status=403)
        if status := self.refuses.get(request.method):
            return web.json_response({"errors": [{"message": "not today"}]}, status=status)
        return None

    async def blob(self, request: web.Request) -> web.Response:
        if refused := self.note(request):
            return refused
        if self.storage:
            return web.Response(status=307, headers={"Location": self.storage})
        if self.cookie and request.match_info["digest"] not in self.blobs:
            return web.Response(status=404, headers={"Set-Cookie": "sid=1; Path=/; HttpOnly"})
        return web.Response(status=200 if request.match_info["digest"] in self.blobs else 404)

    async def upload(self, request: web.Request) -> web.Response:
        if refused := self.note(request):
            return refused
        if self.moves and request.method in ("POST", "PUT") and "moved" not in request.query:
            where = f"{request.path_qs}{'&' if request.query_string else '?'}moved=1"
            return web.Response(status=self.moves, headers={"Location": where})
        name = request.match_info["id"]
        if request.method == "POST" and self.wants_post:
            return await self.whole(request)
        if request.method == "POST":
            name = f"u{len(self.seen)}"
            self.open[name] = bytearray()
            return self.standing(name, 202)
        if name not in self.open or not request.rel_url.raw_query_string.startswith(self.query.removeprefix("?")):
            return web.Response(status=404)
        if request.method == "GET":
            return self.standing(name, 204) if self.tells else web.Response(status=405)
        if request.method == "PATCH" and self.redirects:
            at = request.headers["Content-Range"].partition("-")[0]
            where = {"Location": f"/elsewhere/{name}/{at}", "Docker-Upload-Location": f"/v2/ns/tiny/blobs/uploads/{name}"}
            return web.Response(status=307, headers=where)
        if request.method == "PATCH":
            return await self.part(request, name, int(request.headers["Content-Range"].partition("-")[0]))
        end, there = await request.read(), bytes(self.open[name] if self.keeps else self.open.pop(name))
        content, wanted, self.largest = there + end, request.query["digest"], max(self.largest, len(end))
        self.etags.append(request.query.get("etag", ""))
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
        if self.expires:
            self.expires -= 1
            return web.Response(status=403, text="Request has expired")
        return await self.part(request, request.match_info["id"], int(request.match_info["at"]))

    async def part(self, request: web.Request, name: str, at: int) -> web.Response:
        if self.deaf:
            await asyncio.sleep(60)
        if self.cap and int(request.headers["Content-Length"]) > self.cap:
            self.refused.append(int(request.headers["Content-Length"]))
            if self.slams:
                assert request.transport
                request.transport.abort()
            return web.json_response({"errors": [{"message": "the request body is too large"}]}, status=self.too_large)
        content = await request.read()
        if self.breaks and at >= 3 * PART:
            self.breaks -= 1
            if self.forgets:
                del self.open[name]
            assert request.transport
            request.transport.close()
            return web.Response()
        if self.bursts and len(self.parts) % 10 == 9 and self.broken < self.bursts * (len(self.parts) // 10 + 1):
            self.broken += 1
            assert request.transport
            request.transport.close()
            return web.Response()
        if self.garbles == len(self.parts):
            content = bytes(len(content))
        if at and self.parts[-1][1] < self.least:
            return web.Response(status=416)
        if at != len(self.open[name]) or (at and self.once):
            return web.Response(status=416 if at != len(self.open[name]) else 400)
        await asyncio.sleep(self.pause)
        self.open[name] += content[: self.takes or None]
        self.parts.append((at, len(content)))
        return self.standing(name, self.taken, len(content))

    async def whole(self, request: web.Request) -> web.Response:
        content, wanted = await request.read(), request.query.get("digest", "")
        if digest_of(content) != wanted:
            return web.json_response({"errors": [{"code": "DIGEST_INVALID"}]}, status=400)
        self.blobs[wanted] = content
        return web.Response(status=201)

    def standing(self, name: str, status: int, part: int = 0) -> web.Response:
        there = len(self.open[name])
        last = max(there - 1, 0)
        if part:
            last = {"zero": 0, "the part": part - 1, "the first part": self.parts[0][1] - 1, "one too many": there}.get(self.says, last)
        headers = {"Location": f"{self.front}{self.base}{name}{self.query}", "Range": f"0-{last}"}
        if self.says == "nothing":
            del headers["Range"]
        if self.least and status == 202 and not part:
            headers["OCI-Chunk-Min-Length"] = str(self.least)
        return web.Response(status=status, headers=headers)

    async def manifest(self, request: web.Request) -> web.Response:
        if refused := self.note(request):
            return refused
        self.manifests["1"] = await request.read()
        return web.Response(status=201, headers={"Docker-Content-Digest": f"sha256:{'0' * 64}"} if self.makes_another else {})
