"""Serves a store as a read-only registry: the manifests, blobs, tags and catalogue of the distribution protocol.

It is a separate server beside `serve` and runs no model. It serves only what a manifest of the repository names. The response
for a blob has a `Location` header that names its own URL, because Ollama fetches a blob only from there.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncGenerator, Mapping
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
from ndani.api.edge.error_boundary import ErrorBoundary
from ndani.api.edge.host_guard import HostGuard
from ndani.api.edge.library_log import capture_library_logs
from ndani.api.edge.listening import addresses_of, listening, loopback_addresses
from ndani.api.edge.redirects import redirect
from ndani.api.edge.running_requests import RequestIds, RunningRequests
from ndani.api.edge.signals import HangupServer
from ndani.api.ollama.responses import ERRORS
from ndani.api.server import SHUTDOWN_GRACE
from ndani.background import run_in_thread
from ndani.errors import NdaniError, NotFound
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log, open_log
from ndani.names import DEFAULT_HOST
from ndani.settings import Settings
from ndani.store import Store, StoredModel
from ndani.store.layout import digest_of

#: The default port.
PORT = 11435

_CHUNK_SIZE = 1 << 20
_RANGE_HEADER = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")
_PAGE_SIZE = re.compile(r"[0-9]{1,9}\Z")
_HEADERS = {"Docker-Distribution-Api-Version": "registry/2.0"}
_MAX_PAGE_SIZE = 1000  # names on one page of a list
#: The protocol's error codes, and their messages.
_MESSAGES = {
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
        """GET /v2/: tells clients that this is a registry."""
        return JSONResponse({}, headers=_HEADERS)

    async def catalog(self, request: Request) -> Response:
        """GET /v2/_catalog: the repositories, in pages of `n` after `last`."""
        entries = await asyncio.to_thread(self._store.stored_models)
        return _page(request, "/v2/_catalog", "repositories", sorted({_repository(entry) for entry in entries}), {})

    async def tags(self, request: Request) -> Response:
        """GET /v2/NAME/tags/list."""
        entries = await self._entries(request)
        name = request.path_params["name"]
        return _page(request, f"/v2/{name}/tags/list", "tags", sorted({entry.name.tag for entry in entries}), {"name": name})

    async def manifest(self, request: Request) -> Response:
        """GET /v2/NAME/manifests/REFERENCE: the manifest's bytes, by tag or by digest."""
        reference = request.path_params["reference"]
        for entry in await self._entries(request):
            if reference.lower() in (entry.name.tag.lower(), f"sha256:{entry.digest}"):
                try:
                    content = await asyncio.to_thread(entry.path.read_bytes)
                except FileNotFoundError:  # removed in the meantime
                    break
                digest = digest_of(content)
                return Response(content, headers={**_HEADERS, "Docker-Content-Digest": digest}, media_type=entry.manifest.media_type)
        raise HTTPException(404, "MANIFEST_UNKNOWN")

    async def blob(self, request: Request) -> Response:
        """GET /v2/NAME/blobs/DIGEST: a blob that a manifest of this repository names, or the requested range of it."""
        digest = request.path_params["digest"].lower()
        for entry in await self._entries(request):
            for layer in (entry.manifest.config, *entry.layers):
                if layer.digest == digest and self._store.blobs.has(digest, layer.size):
                    return await _blob_response(request, self._store.layout.blob(digest), digest, layer.size)
        raise HTTPException(404, "BLOB_UNKNOWN")

    async def _entries(self, request: Request) -> list[StoredModel]:
        """The models of the repository in the path. Models of the default registry come first, before others of the same name."""
        entries = await asyncio.to_thread(self._store.stored_models, request.path_params["name"])
        if not entries:
            raise HTTPException(404, "NAME_UNKNOWN")
        return sorted(entries, key=lambda entry: entry.name.host.lower() != DEFAULT_HOST)


def build(store: Store, loopback_addresses: frozenset[str], log: Log) -> Starlette:
    """The application over one store. At the addresses `loopback_addresses` it refuses foreign host names (DNS rebinding)."""
    mirror = MirrorRoutes(store)
    methods = ["GET"]
    app = Starlette(
        routes=[
            Route("/v2/", mirror.root, methods=methods),
            Route("/v2/_catalog", mirror.catalog, methods=methods),
            Route("/v2/{name:path}/tags/list", mirror.tags, methods=methods),
            Route("/v2/{name:path}/manifests/{reference}", mirror.manifest, methods=methods),
            Route("/v2/{name:path}/blobs/{digest}", mirror.blob, methods=methods),
        ],
        middleware=[
            Middleware(RequestIds, running=RunningRequests()),
            Middleware(AccessLog, log=log, counts=Counts()),
            Middleware(ErrorBoundary, log=log, error_format=lambda _: ERRORS),
            Middleware(HostGuard, loopback_addresses=loopback_addresses),
            Middleware(CancelOnDisconnect),
        ],
        exception_handlers={HTTPException: _http_error, NdaniError: _ndani_error},
    )
    app.router.redirect_slashes = False
    return app


def serve(settings: Settings) -> int:
    """Run a mirror of the store at `settings.host` until a signal stops it; returns the exit code. Raises Misconfigured."""
    jail.make_undumpable()
    log = open_log(settings.log_file, settings.debug)
    with listening(settings, "say another one with --host") as listeners, capture_library_logs(log):
        app = build(Store(settings.models), loopback_addresses(listeners), log)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2 * SHUTDOWN_GRACE,
            http=Connection, ws="none", timeout_keep_alive=75, proxy_headers=False,
        )  # fmt: skip
        log.info(f"mirror of {settings.models} on {addresses_of(listeners)}")
        asyncio.run(_Server(config).serve(sockets=listeners))
        log.info("stopped")
    return 0


class _Server(HangupServer):
    """uvicorn with another shutdown: connections that are still open after a grace period are aborted, as if the client had
    left. Signals are not raised again.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Give responses SHUTDOWN_GRACE seconds to finish. (uvicorn would cancel them, and log that as an error.)"""
        timer = asyncio.get_running_loop().call_later(SHUTDOWN_GRACE, self._abort_connections)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _abort_connections(self) -> None:
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport:
                transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _repository(entry: StoredModel) -> str:
    return f"{entry.name.namespace}/{entry.name.model}"


def _page(request: Request, path: str, field: str, names: list[str], fields: Mapping[str, Any]) -> Response:
    """One page of a list, with the URL of the next one in `Link`."""
    requested, last = request.query_params.get("n", ""), request.query_params.get("last", "")
    count = min(int(requested), _MAX_PAGE_SIZE) if _PAGE_SIZE.match(requested) and int(requested) else _MAX_PAGE_SIZE
    remaining = [name for name in names if name > last]
    headers = dict(_HEADERS)
    if len(remaining) > count:
        headers["Link"] = f'<{path}?n={count}&last={remaining[count - 1]}>; rel="next"'
    return JSONResponse({**fields, field: remaining[:count]}, headers=headers)


async def _blob_response(request: Request, path: Path, digest: str, size: int) -> Response:
    headers = {
        **_HEADERS,
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "bytes",
        "Docker-Content-Digest": digest,
        "Etag": f'"{digest}"',
        "Location": request.url.path,
    }
    status, start, end = 200, 0, size
    # Several ranges, or an invalid range, get the whole blob: HTTP allows that.
    if match := _RANGE_HEADER.match(request.headers.get("range", "")):
        first_text, last_text = match.groups()
        if first_text:
            start, end = int(first_text), min(int(last_text) + 1 if last_text else size, size)
        elif last_text:
            start = max(size - int(last_text), 0)
        if start >= end:
            raise HTTPException(416, "RANGE_INVALID", {"Content-Range": f"bytes */{size}"})
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    try:
        descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # removed in the meantime; once it is open it can be read to its end
        raise HTTPException(404, "BLOB_UNKNOWN") from None
    return _FileRange(descriptor, start, end, status, headers)


class _FileRange(StreamingResponse):
    """Streams a range of an open file, and closes the file at the end or when the client leaves."""

    def __init__(self, descriptor: int, start: int, end: int, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(_chunks(descriptor, start, end), status, headers)
        self._descriptor = descriptor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # Once the (empty) request body is read, `CancelOnDisconnect` notices when the client leaves. Starlette's own
            # handling would count that as a success.
            while (message := await receive()).get("more_body"):
                pass
            if message["type"] == "http.disconnect":
                return
            await self.stream_response(send)
        finally:
            os.close(self._descriptor)


async def _chunks(descriptor: int, start: int, end: int) -> AsyncGenerator[bytes]:
    while start < end and (chunk := await run_in_thread(os.pread, descriptor, min(_CHUNK_SIZE, end - start), start)):
        start += len(chunk)
        yield chunk


async def _http_error(request: Request, error: Exception) -> Response:
    """An error in the registry's format, or a redirect to the intended path."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and request.method in ("GET", "HEAD") and (redirection := redirect(request)):
        return redirection
    status, code = error.status_code, error.detail
    if status == 405 or request.method not in ("GET", "HEAD"):
        status, code = 405, "UNSUPPORTED"
    return _error_response(
        status,
        code if code in _MESSAGES else "NAME_UNKNOWN",
        "",
        dict(error.headers or {}) | ({"Allow": "GET, HEAD"} if status == 405 else {}),
    )


async def _ndani_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, NdaniError)
    return _error_response(404 if isinstance(error, NotFound) else error.status, "UNKNOWN", str(error), {})


def _error_response(status: int, code: str, message: str, headers: dict[str, str]) -> Response:
    body = {"errors": [{"code": code, "message": message or _MESSAGES[code], "detail": None}]}
    return JSONResponse(body, status, {**_HEADERS, **headers})
