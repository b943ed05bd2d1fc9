"""Models in any registry that speaks the Ollama/OCI protocol: `host/namespace/model:tag`.

`Registry` sends the requests (scheme, credentials, redirects, retries); `RegistrySource` pulls models from it. `push` sends
models to it. The bytes of a manifest are kept unchanged, because their digest is the model's id.
"""

from __future__ import annotations

import email.utils
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from ndani.errors import Failed, NotFound, SourceFailed
from ndani.names import Name
from ndani.sources import Part, PullPlan
from ndani.sources.http import (
    MAX_REDIRECTS,
    STALL_TIMEOUT_S,
    TRANSIENT_STATUSES,
    Access,
    HttpClient,
    HttpResponse,
    Interrupted,
    TlsFailed,
    Unreachable,
    content_range,
)
from ndani.sources.manifest import read_manifest
from ndani.sources.read_ahead import SEGMENT_SIZE, STREAMS, Segment, in_order, split
from ndani.sources.retry import RetryPolicy, retry
from ndani.sources.token import Credentials
from ndani.sources.urls import count_of, is_fetchable, origin, without_credentials
from ndani.store.layout import MANIFEST, OCI_MANIFEST, digest_of
from ndani.untrusted_json import InvalidJson, decode

_ACCEPT = f"{MANIFEST}, {OCI_MANIFEST};q=0.5"
_MAX_MANIFEST = 4 << 20
#: OpenSSL's names, in its different versions, for a response that is not TLS at all.
_NOT_TLS_REASONS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
#: A Retry-After of this many seconds or more is a Unix timestamp (2001 and later), not a delay.
_MIN_TIMESTAMP = 10**9

UploadBody = Callable[[], "bytes | AsyncIterator[bytes]"]


class Registry:
    """One registry, and one model's repository in it. Without `insecure` it needs https and a trusted certificate."""

    def __init__(
        self,
        name: Name,
        *,
        insecure: bool,
        offline: bool,
        key: Path,
        endpoint: str = "",
        token: str = "",
        retries: RetryPolicy | None = None,
        stall_timeout: float = STALL_TIMEOUT_S,
    ) -> None:
        """`endpoint` replaces the name's own host (`http://…` means without TLS). `token` is sent to this server only."""
        scheme, _, host = endpoint.rpartition("://")
        self.name, self.host, self.insecure = name, host or name.host, insecure
        self._allows_http = insecure or scheme == "http"
        self.retries = retries or RetryPolicy()
        access = Access(
            netrc=False,
            certificates=os.environ.get("SSL_CERT_FILE", ""),
            settings="the name of the model",
            certificate="name its authority's file in SSL_CERT_FILE, or use --insecure where nobody listens in",
        )
        self._client = HttpClient(access, offline=offline, stall_timeout=stall_timeout)
        self._scheme = scheme or "https"
        self._credentials = Credentials(key, token, origin(self.url()))
        self._reached = False
        #: The status of the last response, 0 before the first.
        self.last_status = 0

    def url(self, *path: str) -> str:
        """The URL of a resource of this model: `manifests/latest`, `blobs/sha256:…`."""
        return "/".join((f"{self._scheme}://{self.host}/v2/{self.name.namespace}/{self.name.model}", *path))

    def hub_url(self, *path: str) -> str:
        """The URL of a route of the hub's own API: `api/models/…`, `resolve/…` (`sources.hub`)."""
        return "/".join((f"{self._scheme}://{self.host}", *path))

    @property
    def _repository(self) -> str:
        return f"repository:{self.name.namespace}/{self.name.model}"

    def request_push_access(self) -> None:
        """Request tokens that permit a push from now on: some registries name only the scope of a pull."""
        self._credentials.request_push_access(self._repository)

    @property
    def has_token(self) -> bool:
        """Whether the user has set a token for it."""
        return self._credentials.has_user_token

    @property
    def token_refused(self) -> bool:
        """Whether the last authentication failed because of the user's token; its error then says so."""
        return self._credentials.user_token_refused

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: UploadBody | None = None,
        *,
        follow: bool = True,
        response_timeout: float = 0.0,
    ) -> AsyncIterator[HttpResponse]:
        """One request, with redirects followed and authentication done. The response may have any other status.

        Without `follow`, a redirect is returned like any other response. `response_timeout` as in `HttpClient.request`.
        Raises Interrupted for a transient status (with its Retry-After), SourceFailed, Offline.
        """
        redirects = authentications = 0
        while True:
            credentials = self._credentials.headers_for(url)
            sent_headers, content = {**(headers or {}), **credentials}, body and body()
            async with self._client.request(
                method, url, sent_headers, content, verify=not self.insecure, response_timeout=response_timeout
            ) as response:
                self.last_status = response.status
                if response.status == 401 and origin(url) == origin(self.url()):
                    challenge = _challenge(response)
                    if not challenge and urlsplit(url).path.startswith("/v2/"):
                        challenge = await self._root_challenge()
                    await self._credentials.authenticate(url, challenge, credentials.get("Authorization"), authentications > 0, self._get)
                    authentications += 1
                elif follow and _is_redirect(method, response):
                    url, redirects = self.follow(url, response.headers["Location"]), redirects + 1
                    if redirects > MAX_REDIRECTS:
                        raise SourceFailed(f"{self.host} sends from one address to the next without end; try again later")
                elif response.status in TRANSIENT_STATUSES:
                    raise _transient(url, response)
                else:
                    yield response
                    return

    def follow(self, url: str, location: str) -> str:
        """The URL that `url` redirects to. Raises SourceFailed when it is invalid, or has no TLS and that is not permitted."""
        try:
            target = is_fetchable(urljoin(url, location))
        except ValueError:
            target = ""
        target_host = target.removeprefix("http://").partition("/")[0].lower()
        if target.startswith("http://") and self._scheme == "https" and target_host == self.host.lower():
            target = f"https://{target[7:]}"  # a registry behind a TLS proxy may not know that its clients use https
        if not target:
            raise SourceFailed(
                f"{self.host} sends to {without_credentials(location)}, which is no address that can be asked; check the model's name"
            )
        if not target.startswith("https://") and not self._allows_http:
            raise SourceFailed(f"insecure protocol http: {self.host} sends to {without_credentials(target)}; `--insecure` allows it")
        return target

    async def _get(self, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        for _ in range(MAX_REDIRECTS):
            async with self._client.request("GET", url, headers, verify=not self.insecure) as response:
                if response.status in TRANSIENT_STATUSES:
                    raise _transient(url, response)
                if not _is_redirect("GET", response):
                    return response.status, await response.read(1 << 20)
                target = self.follow(url, response.headers["Location"])
            if origin(target) != origin(url):
                headers = {}  # credentials are for the first server only
            url = target
        raise SourceFailed(f"{urlsplit(url).netloc} sends from one address to the next without end; try again later")

    async def _root_challenge(self) -> str:
        """The challenge of `/v2/`: some registries send none in response to HEAD, or on other routes."""
        async with self._client.request("GET", f"{self._scheme}://{self.host}/v2/", {}, verify=not self.insecure) as response:
            challenge = _challenge(response) if response.status == 401 else ""
        # On that route the challenge has no scope, or an example's.
        without_scope = re.sub(r',?\s*scope="[^"]*"', "", challenge)
        return re.sub(r"(?i)\bbearer\s+", f'Bearer scope="{self._repository}:pull",', without_scope, count=1)

    async def detect_scheme(self) -> None:
        """With `insecure`: find out whether the server speaks https. Any certificate will do; without https, http is used."""
        if not self.insecure or self._scheme == "http":
            return
        try:
            async with self._client.request("GET", f"https://{self.host}/v2/", {}, verify=False):
                return
        except Interrupted:
            self._scheme = "http"

    @asynccontextmanager
    async def first_request(self, method: str, url: str) -> AsyncIterator[HttpResponse]:
        """As `request`, but when the server cannot be reached it raises Failed at once, with Ollama's wording."""
        try:
            async with self.request(method, url, {"Accept": _ACCEPT}) as response:
                self._reached = True
                yield response
        except TlsFailed as error:
            if not any(reason in str(error) for reason in _NOT_TLS_REASONS):
                raise SourceFailed(str(error)) from None
            raise SourceFailed(f"insecure protocol http: {self.host} does not speak https; `--insecure` allows that") from None
        except Unreachable as error:
            if self._reached:
                raise  # it was reachable before, and may be again in a second
            if not error.go_detail:
                raise SourceFailed(f"{error}; correct that, and try again") from None
            raise Failed(f'{method.title()} "{url}": dial tcp{error.go_detail}') from None  # 500 is Ollama's status for this

    async def manifest(self) -> bytes:
        """The bytes of the manifest. Raises NotFound, SourceFailed, Offline, and Failed when the server cannot be reached."""
        await self.detect_scheme()
        url = self.url("manifests", self.name.tag)
        try:
            return await retry(self.retries, lambda: self._manifest(url))
        except (NotFound, SourceFailed, Failed) as error:
            raise type(error)(f"pull model manifest: {error}") from None

    async def _manifest(self, url: str) -> bytes:
        async with self.first_request("GET", url) as response:
            if response.status == 404:
                raise NotFound("file does not exist")
            content = await response.read(_MAX_MANIFEST)
            if response.status != 200:
                raise SourceFailed(f"{self.host} answered {response.status}{error_clause(content)}; check the name of the model")
            announced = response.headers.get("Docker-Content-Digest", "")
        if announced.startswith("sha256:") and announced != (got := digest_of(content)):
            raise SourceFailed(f"digest mismatch: the manifest was announced as {announced} and is {got}; try again")
        return content


class RegistrySource:
    """One model of one registry."""

    def __init__(self, registry: Registry, segment_size: int = SEGMENT_SIZE, streams: int = STREAMS) -> None:
        self._registry, self._segment_size, self._streams = registry, segment_size, streams
        self._supports_ranges = True
        self._redirect_targets: dict[str, str] = {}

    async def plan(self) -> PullPlan:
        """The plan of the model's manifest. Raises what `Registry.manifest` raises."""
        return read_manifest(await self._registry.manifest(), self._registry.name, self._registry.host)

    async def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `start` on, with several requests in parallel. Errors as in `Source.open`."""
        if self._supports_ranges:
            offset = start
            try:
                segments = split(start, part.size, self._segment_size)
                async with aclosing(in_order(segments, lambda segment: self._fetch_with_retries(part, segment), self._streams)) as chunks:
                    async for chunk in chunks:
                        offset += len(chunk)
                        yield chunk
                return
            except _RangesUnsupported:
                self._supports_ranges, start = False, offset
        entire = Segment(start, part.size)
        async with aclosing(in_order([entire], lambda segment: self._fetch_with_retries(part, segment), 1)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Close the connections."""
        await self._registry.close()

    def _url(self, part: Part) -> str:
        """The URL of a part's bytes."""
        return self._registry.url("blobs", f"sha256:{part.file.sha256}")

    async def _fetch_with_retries(self, part: Part, segment: Segment) -> None:
        await retry(self._registry.retries, lambda: self._stream(part, segment), lambda: segment.received)

    async def _stream(self, part: Part, segment: Segment) -> None:
        """Request the missing bytes of a segment, once."""
        url = self._url(part)
        target = self._redirect_targets.get(part.file.sha256, url)
        try:
            await self._fetch(part, segment, target, url)
        except (Interrupted, NotFound, SourceFailed) as error:
            if target == url:
                raise
            # The redirect target has expired, or is down by now; the registry knows another one. Another segment's request
            # may have replaced it already.
            if self._redirect_targets.get(part.file.sha256) == target:
                del self._redirect_targets[part.file.sha256]
            raise error if isinstance(error, Interrupted) else Interrupted(str(error)) from None

    async def _fetch(self, part: Part, segment: Segment, target: str, url: str) -> None:
        """As `_stream`, from `target`: either `url` itself, or the URL that the registry redirected it to."""
        headers = {"Range": f"bytes={segment.next_offset}-{segment.end - 1}"}
        async with self._registry.request("GET", target, headers) as response:
            if response.status not in (200, 206):
                if target != url:
                    raise Interrupted(f"{urlsplit(response.url).netloc} answered {response.status}")
                raise self._blob_error(part, response)
            offset = self._body_offset(part, response)
            if offset > segment.next_offset:
                raise Interrupted(f"{urlsplit(response.url).netloc} sent another range of {part.file.name} than was asked for")
            if origin(response.url) != origin(url):
                self._redirect_targets[part.file.sha256] = response.url
            if offset != segment.next_offset and self._supports_ranges:
                raise _RangesUnsupported
            skip = segment.next_offset - offset
            async with aclosing(response.chunks) as chunks:
                async for chunk in chunks:
                    if skip < len(chunk):
                        segment.put(chunk[skip:])
                    skip = max(skip - len(chunk), 0)
                    if segment.next_offset == segment.end:
                        return
        raise Interrupted(f"{urlsplit(response.url).netloc} ended {part.file.name} too early")

    def _body_offset(self, part: Part, response: HttpResponse) -> int:
        offset, total, server = 0, count_of(response.headers.get("Content-Length", "")), urlsplit(response.url).netloc
        if (encoding := response.headers.get("Content-Encoding", "").strip().lower()) not in ("", "identity"):
            raise SourceFailed(
                f"{server} sends {part.file.name} as {encoding[:20]}, which was not asked for; have it send files as they are"
            )
        if response.status == 206:
            offset, total = content_range(response.headers.get("Content-Range", ""), response.url)
        if total not in (None, part.size):
            raise SourceFailed(f"{part.file.name} has {total} bytes at {server}, and {part.size} were expected; push it there again")
        return offset

    def _blob_error(self, part: Part, response: HttpResponse) -> NotFound | SourceFailed:
        server = urlsplit(response.url).netloc
        if response.status in (404, 410):
            return NotFound(f"{server} lacks {part.file.name}, which the model needs; push it there again")
        if response.status == 416:
            return SourceFailed(f"{part.file.name} is shorter at {server} than it should be; push it there again")
        return SourceFailed(f"{server} refused {part.file.name} ({response.status}); try again later")


class _RangesUnsupported(Exception):
    """The server does not support range requests."""


def error_clause(body: bytes) -> str:
    """The first message of a registry's error body, as a clause in parentheses; "" when there is none."""
    try:
        fields = decode(body, dict[str, Any])
    except InvalidJson:
        return ""
    errors = fields.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else {}
    texts = [first.get(key) for key in ("message", "code")] if isinstance(first, dict) else [first]
    clauses = (" ".join(text.split())[:200] for text in (*texts, fields.get("error"), fields.get("message")) if isinstance(text, str))
    return next((f" ({clause})" for clause in clauses if clause), "")


def _challenge(response: HttpResponse) -> str:
    """All `WWW-Authenticate` headers of a response, joined."""
    return ", ".join(response.headers.getall("WWW-Authenticate", ()))


def _is_redirect(method: str, response: HttpResponse) -> bool:
    """Whether a response redirects the same request. A response to an upload with `Docker-Upload-Location` does not."""
    if "Location" not in response.headers or "Docker-Upload-Location" in response.headers:
        return False
    return response.status in (307, 308) or (method in ("GET", "HEAD") and response.status in (301, 302, 303))


def _transient(url: str, response: HttpResponse) -> Interrupted:
    return Interrupted(f"{urlsplit(url).netloc} answered {response.status}", _retry_after(response.headers.get("Retry-After", "")))


def _retry_after(text: str) -> float | None:
    """Seconds of a Retry-After: a number, a date, or (from some servers) a Unix timestamp. None when it is invalid."""
    if (seconds := count_of(text.strip())) is not None:
        return max(seconds - time.time(), 0.0) if seconds >= _MIN_TIMESTAMP else float(seconds)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
