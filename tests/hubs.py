"""A stand-in for Hugging Face: the routes that list and serve a repository of files; it misbehaves as `StandIn` does.

It follows the hub's documented behaviour: `resolve` redirects a large file to storage on another host, with its sha256
and size in `X-Linked-Etag` and `X-Linked-Size`; small files lie in git, under git's digests; a client without access to
a repository gets 401 without a challenge; the routes below `/v2` refuse models in several parts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

from ndani.names import Name, parse
from registries import StandIn

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub(StandIn):
    """One repository, `ns/tiny`, with `files` by path. Names that end in `large` are in large file storage, others in git."""

    files: dict[str, bytes] = field(default_factory=dict)
    large: tuple[str, ...] = (".gguf", ".safetensors")
    expires: int = -1  # how many requests an address in storage is valid for; -1: all
    used: Counter[str] = field(default_factory=Counter)
    lists: str = "revision"  # the route that lists files, or "tree"; "bare": the list has no sizes and no digests
    page: int = 2  # files on a page of the tree
    odd: list[object] = field(default_factory=list)  # the items of the list, instead of the files
    raw: bytes = b""  # the body of the list, instead of JSON

    @property
    def name(self) -> Name:
        return parse("hf.co/ns/tiny:Q8_0")

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}"

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v2/{rest:.*}", self.no_registry)
        app.router.add_get("/api/models/ns/tiny/revision/main", self.revision)
        app.router.add_get("/api/models/ns/tiny/tree/{revision}", self.tree)
        app.router.add_get("/ns/tiny/resolve/{revision}/{path:.*}", self.resolve)
        app.router.add_get("/elsewhere/{digest}", self.give_blob)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        self.blobs = {f"sha256:{hashlib.sha256(content).hexdigest()}": content for content in self.files.values()}
        return runner

    def refusal(self, request: web.Request) -> web.Response | None:
        wanted, self.token = self.token, ""
        refused = super().refusal(request)
        self.token = wanted
        if refused or request.path.startswith("/elsewhere") or not wanted:
            return refused
        if request.headers.get("Authorization") == f"Bearer {wanted}" and not self.never:
            return None
        return web.json_response({"error": "Invalid username or password."}, status=401, headers={"X-Error-Code": "RepoNotFound"})

    async def no_registry(self, request: web.Request) -> web.Response:
        self.note(request)
        return web.json_response({"error": "The specified repository contains sharded GGUF. Ollama does not support this yet."}, status=400)

    async def revision(self, request: web.Request) -> web.Response:
        if refused := self.refusal(request):
            return refused
        if self.lists == "tree":
            return web.json_response({"error": "not found"}, status=404)
        siblings = []
        for path, content in self.files.items():
            entry: dict[str, object] = {"rfilename": path}
            if self.lists == "revision":
                entry |= {"size": len(content), "blobId": git_id(content)}
                if path.endswith(self.large):
                    entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        if self.raw:
            return web.Response(body=self.raw, content_type="application/json")
        return web.json_response({"id": "ns/tiny", "sha": SHA, "siblings": self.odd or siblings})

    async def tree(self, request: web.Request) -> web.Response:
        if refused := self.refusal(request):
            return refused
        leaves: list[dict[str, object]] = [{"type": "directory", "path": "folder", "oid": SHA, "size": 0}]
        for path, content in self.files.items():
            leaf: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
            if path.endswith(self.large) and self.lists != "bare":
                leaf["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            leaves.append(leaf)
        at = int(request.query.get("cursor", "0"))
        headers = {}
        if at + self.page < len(leaves):
            headers["Link"] = f'<http://{self.host}{request.path}?recursive=true&cursor={at + self.page}>; rel="next"'
        return web.Response(text=json.dumps(leaves[at : at + self.page]), content_type="application/json", headers=headers)

    async def resolve(self, request: web.Request) -> web.StreamResponse:
        if refused := self.refusal(request):
            return refused
        path = request.match_info["path"]
        if path not in self.files or request.match_info["revision"] not in (SHA, "main"):
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        content = self.files[path]
        if not path.endswith(self.large):
            return web.Response(body=content, headers={"ETag": f'"{git_id(content)}"', "X-Repo-Commit": SHA})
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": SHA}
        where = f"{self.elsewhere or self.endpoint}/elsewhere/sha256:{sha256}?good={len(self.seen)}"
        return web.Response(status=302, headers={"Location": where, **linked})

    async def give_blob(self, request: web.Request) -> web.StreamResponse:
        self.used[request.query_string] += 1
        if 0 <= self.expires < self.used[request.query_string]:
            self.note(request)
            return web.Response(status=403, text="<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        return await super().give_blob(request)


def git_id(content: bytes) -> str:
    """The digest that git gives a file of this content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
