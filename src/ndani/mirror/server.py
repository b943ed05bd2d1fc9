"""A store of ours as a registry to pull from, read-only: the distribution protocol's manifests, blobs, tags and catalogue.

A server of its own, beside `serve` and without a model in it. What a manifest of the repository names is served, and
nothing else. A blob's answer carries a `Location` of its own: Ollama fetches from there and from nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncGenerator, Generator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ndani import jail
from ndani.api.edge.access_log import AccessLog
from ndani.api.edge.connection import Connection
from ndani.api.edge.disconnect import CancelOnDisconnect
from ndani.api.edge.host_guard import HostGuard
from ndani.api.edge.library_log import capture_library_logs
from ndani.api.edge.listening import addresses_of, hung_up, listening, loopback_addresses
from ndani.api.edge.redirects import redirect
from ndani.api.server import GRACE
from ndani.errors import NdaniError, NotFound
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log, open_log
from ndani.names import DEFAULT_HOST
from ndani.settings import Settings
from ndani.store import Store, StoredModel
from ndani.store.layout import digest_of
from ndani.store.threads import in_thread

#: Where a mirror listens when nobody says where.
PORT = 11435

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")
_COUNT = re.compile(r"[0-9]{1,9}\Z")
_HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0"}
_MOST = 1000  # names on one page of a list
#: The protocol's codes, and what they mean in a sentence.
_MEANING = {
    "NAME_UNKNOWN": "no such model here; /v2/_catalog lists them",
    "MANIFEST_UNKNOWN": "no such tag of this model here; /v2/NAME/tags/list lists them",
    "BLOB_UNKNOWN": "no model of this name has such a blob here",
    "UNSUPPORTED": "this mirror is read-only; push to a registry instead",
    "RANGE_INVALID": "the blob has no such bytes",
}


class MirrorRoutes:
    """The routes over one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def root(self, request: Request) -> Response:
        """GET /v2/: this is a registry."""
        return JSONResponse({}, headers=_HEADERS)

    async def catalog(self, request: Request) -> Response:
        """GET /v2/_catalog: the repositories, in pages of `n` after `last`."""
        entries = await asyncio.to_thread(self._store.entries)
        return _page(request, "/v2/_catalog", "repositories", sorted({_repository(entry) for entry in entries}), {})

    async def tags(self, request: Request) -> Response:
        """GET /v2/NAME/tags/list."""
        entries = await self._entries(request)
        name = request.path_params["name"]
        return _page(request, f"/v2/{name}/tags/list", "tags", sorted({entry.name.tag for entry in entries}), {"name": name})

    async def manifest(self, request: Request) -> Response:
        """GET /v2/NAME/manifests/REFERENCE: by tag or by digest, to the letter."""
        wanted = request.path_params["reference"]
        for entry in await self._entries(request):
            if wanted.lower() in (entry.name.tag.lower(), f"sha256:{entry.digest}"):
                try:
                    content = await asyncio.to_thread(entry.path.read_bytes)
                except FileNotFoundError:  # removed since it was looked up
                    break
                digest = digest_of(content)
                return Response(content, headers={**_HEADERS, "Docker-Content-Digest": digest}, media_type=entry.manifest.media_type)
        raise HTTPException(404, "MANIFEST_UNKNOWN")

    async def blob(self, request: Request) -> Response:
        """GET /v2/NAME/blobs/DIGEST: a file that a manifest of this repository names, or the range of it that is asked for."""
        wanted = request.path_params["digest"].lower()
        for entry in await self._entries(request):
            for layer in (entry.manifest.config, *entry.layers):
                if layer.digest == wanted and self._store.blobs.has(wanted, layer.size):
                    return await _content(request, self._store.layout.blob(wanted), wanted, layer.size)
        raise HTTPException(404, "BLOB_UNKNOWN")

    async def _entries(self, request: Request) -> list[StoredModel]:
        """The models of the repository in the path; those of the default registry hide others of the same name."""
        entries = await asyncio.to_thread(self._store.entries, request.path_params["name"])
        if not entries:
            raise HTTPException(404, "NAME_UNKNOWN")
        return sorted(entries, key=lambda entry: entry.name.host.lower() != DEFAULT_HOST)


def build(store: Store, loopback_addresses: frozenset[str], log: Log) -> Starlette:
    """The application over one store; at the addresses `loopback_addresses` no rebound name is served."""
    mirror = MirrorRoutes(store)
    read = ["GET"]
    app = Starlette(
        routes=[
            Route("/v2/", mirror.root, methods=read),
            Route("/v2/_catalog", mirror.catalog, methods=read),
            Route("/v2/{name:path}/tags/list", mirror.tags, methods=read),
            Route("/v2/{name:path}/manifests/{reference}", mirror.manifest, methods=read),
            Route("/v2/{name:path}/blobs/{digest}", mirror.blob, methods=read),
        ],
        middleware=[
            Middleware(AccessLog, log=log, counts=Counts()),
            Middleware(HostGuard, guarded=loopback_addresses),
            Middleware(CancelOnDisconnect),
        ],
        exception_handlers={HTTPException: _refused, NdaniError: _failed},
    )
    app.router.redirect_slashes = False
    return app


def serve(settings: Settings) -> int:
    """Run a mirror of the store at `settings.host` until it is told to stop; the exit code. Raises Misconfigured."""
    jail.make_undumpable()
    log = open_log(settings.log_file, settings.debug)
    with listening(settings, "say another one with --host") as listeners, capture_library_logs(log):
        app = build(Store(settings.models), loopback_addresses(listeners), log)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2 * GRACE,
            http=Connection, ws="none", timeout_keep_alive=75, proxy_headers=False,
        )  # fmt: skip
        log.info(f"mirror of {settings.models} on {addresses_of(listeners)}")
        asyncio.run(_Server(config).serve(sockets=listeners))
        log.info("stopped")
    return 0


class _Server(uvicorn.Server):
    """uvicorn, with an end of our own: who still reads after a while is cut off, as if they had left, and no signal is raised again."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers get GRACE seconds to be read to their end. (uvicorn would cancel them, which is a fault in its log.)"""
        cutting = asyncio.get_running_loop().call_later(GRACE, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()

    def _cut(self) -> None:
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport:
                transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """uvicorn's signals, and those of a terminal that goes."""
        with super().capture_signals(), hung_up(self.handle_exit):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _repository(entry: StoredModel) -> str:
    return f"{entry.name.namespace}/{entry.name.model}"


def _page(request: Request, path: str, field: str, names: list[str], more: Mapping[str, Any]) -> Response:
    """One page of a list, and in `Link` where the next one is."""
    addresses_of, last = request.query_params.get("n", ""), request.query_params.get("last", "")
    count = min(int(addresses_of), _MOST) if _COUNT.match(addresses_of) and int(addresses_of) else _MOST
    rest = [name for name in names if name > last]
    headers = dict(_HEADERS)
    if len(rest) > count:
        headers["Link"] = f'<{path}?n={count}&last={rest[count - 1]}>; rel="next"'
    return JSONResponse({**more, field: rest[:count]}, headers=headers)


async def _content(request: Request, path: Path, digest: str, size: int) -> Response:
    headers = {
        **_HEADERS,
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "Docker-Content-Digest": digest,
        "Etag": f'"{digest}"',
        "Location": request.url.path,
    }
    status, first, end = 200, 0, size
    # Several ranges at once, and what is no range at all, get the whole: the protocol allows that.
    if wanted := _RANGE.match(request.headers.get("range", "")):
        begin, last = wanted.groups()
        if begin:
            first, end = int(begin), min(int(last) + 1 if last else size, size)
        elif last:
            first = max(size - int(last), 0)
        if first >= end:
            raise HTTPException(416, "RANGE_INVALID", {"Content-Range": f"bytes */{size}"})
        status = 206
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - first)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    try:
        handle = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # removed since it was looked up; once it is open it can be read to its end
        raise HTTPException(404, "BLOB_UNKNOWN") from None
    return _FileRange(handle, first, end, status, headers)


class _FileRange(StreamingResponse):
    """Bytes of an open file, which is closed when they are sent, or when nobody wants them any more."""

    def __init__(self, handle: int, first: int, end: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(_pieces(handle, first, end), status, headers)
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Once its (empty) body is read, `CancelOnDisconnect` knows when the client has gone; Starlette's own way would call
            # that a success.
            while (message := await receive()).get("more_body"):
                pass
            if message["type"] == "http.disconnect":
                return
            await self.stream_response(send)
        finally:
            os.close(self._handle)


async def _pieces(handle: int, first: int, end: int) -> AsyncGenerator[bytes]:
    while first < end and (piece := await in_thread(os.pread, handle, min(_PIECE, end - first), first)):
        first += len(piece)
        yield piece


async def _refused(request: Request, error: Exception) -> Response:
    """An error in the registry's shape, or a redirect to the path that was meant."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and request.method in ("GET", "HEAD") and (found := redirect(request)):
        return found
    status, code = error.status_code, error.detail
    if status == 405 or request.method not in ("GET", "HEAD"):
        status, code = 405, "UNSUPPORTED"
    return _error(
        status,
        code if code in _MEANING else "NAME_UNKNOWN",
        "",
        dict(error.headers or {}) | ({"Allow": "GET, HEAD"} if status == 405 else {}),
    )


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, NdaniError)
    return _error(404 if isinstance(error, NotFound) else error.status, "UNKNOWN", str(error), {})


def _error(status: int, code: str, sentence: str, headers: dict[str, str]) -> Response:
    body = {"errors": [{"code": code, "message": sentence or _MEANING[code], "detail": None}]}
    return JSONResponse(body, status, {**_HEADERS, **headers})
