"""Models in a registry of the Ollama/OCI protocol, whoever runs it: `host/namespace/model:tag`.

`Registry` is the conversation (scheme, credentials, redirects, when to try again); `RegistrySource` the models that come
from it. What is sent there is `push`. A manifest is kept to the letter, for its digest is the model's id.
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
from ndani.sources.http import Access, Answer, HttpClient, Interrupted, NoTls, Unreachable, content_range
from ndani.sources.manifest import read_manifest
from ndani.sources.read_ahead import AT_ONCE, PIECE, Segment, cut, in_order
from ndani.sources.retry import RetryPolicy, retry
from ndani.sources.token import Credentials
from ndani.sources.urls import count_of, is_fetchable, origin, without_credentials
from ndani.store import layout as kinds
from ndani.untrusted_json import InvalidJson, decode

_ACCEPT = f"{kinds.MANIFEST}, {kinds.OCI_MANIFEST};q=0.5"
_MANIFEST_LIMIT = 4 << 20
_HOPS = 10
_STALL = 30.0
#: What OpenSSL says, in its versions, of an answer that is not TLS at all.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
#: A pause of so many seconds is a point in time: 2001 and later.
_EPOCH = 10**9
_PASSING = {408, 425, 429, 500, 502, 503, 504}

UploadBody = Callable[[], "bytes | AsyncIterator[bytes]"]


class Registry:
    """One registry and one model's place in it. Without `insecure`, https with a certificate this machine trusts."""

    def __init__(
        self,
        name: Name,
        *,
        insecure: bool,
        offline: bool,
        key: Path,
        at: str = "",
        token: str = "",
        retries: RetryPolicy | None = None,
        stall: float = _STALL,
    ) -> None:
        """`at` is whom to ask instead of the name's own host, `http://…` where TLS is not wanted; `token` is shown to nobody else."""
        scheme, _, host = at.rpartition("://")
        self.name, self.host, self.insecure = name, host or name.host, insecure
        self._plain = insecure or scheme == "http"
        self.retries = retries or RetryPolicy()
        access = Access(
            netrc=False,
            certificates=os.environ.get("SSL_CERT_FILE", ""),
            settings="the name of the model",
            certificate="name its authority's file in SSL_CERT_FILE, or use --insecure where nobody listens in",
        )
        self._client = HttpClient(access, offline=offline, stall=stall)
        self._scheme = scheme or "https"
        self._credentials = Credentials(key, token, origin(self.url()))
        self._reached = False
        #: The status of the last answer, 0 before the first.
        self.answered = 0

    def url(self, *path: str) -> str:
        """The address of something of this model: `manifests/latest`, `blobs/sha256:…`."""
        return "/".join((f"{self._scheme}://{self.host}/v2/{self.name.namespace}/{self.name.model}", *path))

    def hub(self, *path: str) -> str:
        """The address of something of this repository at a hub's own routes: `api/models/…`, `resolve/…` (`sources.hub`)."""
        return "/".join((f"{self._scheme}://{self.host}", *path))

    @property
    def _repository(self) -> str:
        return f"repository:{self.name.namespace}/{self.name.model}"

    def pushes(self) -> None:
        """From now on a token is asked for that is good for a push: some registries only ever name a pull."""
        self._credentials.pushes(self._repository)

    @property
    def has_token(self) -> bool:
        """Whether the user has given us a token for it."""
        return self._credentials.given

    async def close(self) -> None:
        """Let go of connections."""
        await self._client.close()

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: UploadBody | None = None,
        *,
        follow: bool = True,
        wait: float = 0.0,
    ) -> AsyncIterator[Answer]:
        """One request, carried through redirects and questions about who we are; the answer may be any other status.

        Without `follow`, a redirect is an answer like others. `wait` as in `Client.request`.

        Raises Interrupted for what may pass (with the pause that was asked for), SourceFailed, Offline.
        """
        hops = wins = 0
        while True:
            own = self._credentials.header(url)
            sent, content = {**(headers or {}), **own}, body and body()
            async with self._client.request(method, url, sent, content, verify=not self.insecure, wait=wait) as answer:
                self.answered = answer.status
                if answer.status == 401 and origin(url) == origin(self.url()):
                    challenge = _challenge(answer)
                    if not challenge and urlsplit(url).path.startswith("/v2/"):
                        challenge = await self._asked_for()
                    await self._credentials.answer(url, challenge, own.get("Authorization"), wins > 0, self._plainly)
                    wins += 1
                elif follow and _redirects(method, answer):
                    url, hops = self.follow(url, answer.headers["Location"]), hops + 1
                    if hops > _HOPS:
                        raise SourceFailed(f"{self.host} sends from one address to the next without end; try again later")
                elif answer.status in _PASSING:
                    raise Interrupted(f"{urlsplit(url).netloc} answered {answer.status}", _pause(answer.headers.get("Retry-After", "")))
                else:
                    yield answer
                    return

    def follow(self, url: str, location: str) -> str:
        """Where `url` sends us to. Raises SourceFailed when that is no address, or without TLS and must not be."""
        try:
            target = is_fetchable(urljoin(url, location))
        except ValueError:
            target = ""
        if target.startswith("http://") and self._scheme == "https" and target[7:].partition("/")[0].lower() == self.host.lower():
            target = f"https://{target[7:]}"  # a registry behind a proxy that speaks TLS for it may not know that
        if not target:
            raise SourceFailed(
                f"{self.host} sends to {without_credentials(location)}, which is no address that can be asked; check the model's name"
            )
        if not target.startswith("https://") and not self._plain:
            raise SourceFailed(f"insecure protocol http: {self.host} sends to {without_credentials(target)}; `--insecure` allows it")
        return target

    async def _plainly(self, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        for _ in range(_HOPS):
            async with self._client.request("GET", url, headers, verify=not self.insecure) as answer:
                if answer.status in _PASSING:
                    raise Interrupted(f"{urlsplit(url).netloc} answered {answer.status}", _pause(answer.headers.get("Retry-After", "")))
                if not _redirects("GET", answer):
                    return answer.status, await answer.read(1 << 20)
                target = self.follow(url, answer.headers["Location"])
            if origin(target) != origin(url):
                headers = {}  # what was shown there is for nobody else
            url = target
        raise SourceFailed(f"{urlsplit(url).netloc} sends from one address to the next without end; try again later")

    async def _asked_for(self) -> str:
        """How it asks who we are at its front door: some say nothing of it in answer to HEAD, or deeper inside."""
        async with self._client.request("GET", f"{self._scheme}://{self.host}/v2/", {}, verify=not self.insecure) as answer:
            found = _challenge(answer) if answer.status == 401 else ""
        # What it names there is no scope, or that of an example.
        bare = re.sub(r',?\s*scope="[^"]*"', "", found)
        return re.sub(r"(?i)\bbearer\s+", f'Bearer scope="{self._repository}:pull",', bare, count=1)

    async def settle(self) -> None:
        """With `insecure`: find out whether https is spoken there; the certificate is not asked for, and http will do."""
        if not self.insecure or self._scheme == "http":
            return
        try:
            async with self._client.request("GET", f"https://{self.host}/v2/", {}, verify=False):
                return
        except Interrupted:
            self._scheme = "http"

    @asynccontextmanager
    async def greeted(self, method: str, url: str) -> AsyncIterator[Answer]:
        """A first request, whose failure to reach anybody is said at once and as Ollama says it. Raises Failed besides."""
        try:
            async with self.ask(method, url, {"Accept": _ACCEPT}) as answer:
                self._reached = True
                yield answer
        except NoTls as error:
            if not any(word in str(error) for word in _NO_TLS):
                raise SourceFailed(str(error)) from None
            raise SourceFailed(f"insecure protocol http: {self.host} does not speak https; `--insecure` allows that") from None
        except Unreachable as error:
            if self._reached:
                raise  # somebody was there, and may be back in a second
            if not error.detail:
                raise SourceFailed(f"{error}; correct that, and try again") from None
            # Failed is 500, Ollama's status for it.
            raise Failed(f'{method.title()} "{url}": dial tcp{":" if error.detail.startswith("lookup") else ""} {error.detail}') from None

    async def manifest(self) -> bytes:
        """The manifest to the letter. Raises NotFound, SourceFailed, Offline, and Failed when nobody can be reached."""
        await self.settle()
        url = self.url("manifests", self.name.tag)
        try:
            return await retry(self.retries, lambda: self._manifest(url))
        except (NotFound, SourceFailed, Failed) as error:
            raise type(error)(f"pull model manifest: {error}") from None

    async def _manifest(self, url: str) -> bytes:
        async with self.greeted("GET", url) as answer:
            if answer.status == 404:
                raise NotFound("file does not exist")
            content = await answer.read(_MANIFEST_LIMIT)
            if answer.status != 200:
                raise SourceFailed(f"{self.host} answered {answer.status}{reason(content)}; check the name of the model")
            announced = answer.headers.get("Docker-Content-Digest", "")
        if announced.startswith("sha256:") and announced != (got := kinds.digest_of(content)):
            raise SourceFailed(f"digest mismatch: the manifest was announced as {announced} and is {got}; try again")
        return content


class RegistrySource:
    """One model of one registry."""

    def __init__(self, registry: Registry, piece: int = PIECE, at_once: int = AT_ONCE) -> None:
        self._registry, self._piece, self._at_once = registry, piece, at_once
        self._ranges = True
        self._places: dict[str, str] = {}

    async def plan(self) -> PullPlan:
        """What the model is made of, as its manifest says. Raises as `Registry.manifest` does."""
        return read_manifest(await self._registry.manifest(), self._registry.name, self._registry.host)

    async def open(self, part: Part, start: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `start` on, several pieces at once. Errors as in `Source.open`."""
        if self._ranges:
            at = start
            try:
                pieces = cut(start, part.size, self._piece)
                async with aclosing(in_order(pieces, lambda piece: self._insist(part, piece), self._at_once)) as chunks:
                    async for chunk in chunks:
                        at += len(chunk)
                        yield chunk
                return
            except _Unranged:
                self._ranges, start = False, at
        whole = Segment(start, part.size)
        async with aclosing(in_order([whole], lambda piece: self._insist(part, piece), 1)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def close(self) -> None:
        """Close the connections."""
        await self._registry.close()

    def _address(self, part: Part) -> str:
        """Where the bytes of a part are asked for."""
        return self._registry.url("blobs", f"sha256:{part.file.sha256}")

    async def _insist(self, part: Part, piece: Segment) -> None:
        await retry(self._registry.retries, lambda: self._stream(part, piece), lambda: piece.got)

    async def _stream(self, part: Part, piece: Segment) -> None:
        """One request's worth of a piece: what is missing of it."""
        url = self._address(part)
        place = self._places.get(part.file.sha256, url)
        try:
            await self._fetch(part, piece, place, url)
        except (Interrupted, NotFound, SourceFailed) as error:
            if place == url:
                raise
            # Where we were sent to was good for a while only, or is down by now; the registry says where to go instead.
            # Other pieces may have found out before us, and have theirs already.
            if self._places.get(part.file.sha256) == place:
                del self._places[part.file.sha256]
            raise error if isinstance(error, Interrupted) else Interrupted(str(error)) from None

    async def _fetch(self, part: Part, piece: Segment, place: str, url: str) -> None:
        """The same from `place`, which the registry has sent us to if it is not `url`."""
        headers = {"Range": f"bytes={piece.next}-{piece.end - 1}"}
        async with self._registry.ask("GET", place, headers) as answer:
            if answer.status not in (200, 206):
                if place != url:
                    raise Interrupted(f"{urlsplit(answer.url).netloc} answered {answer.status}")
                raise self._refused(part, answer)
            begins = self._begins(part, answer)
            if begins > piece.next:
                raise Interrupted(f"{urlsplit(answer.url).netloc} sent another range of {part.file.name} than was asked for")
            if origin(answer.url) != origin(url):
                self._places[part.file.sha256] = answer.url
            if begins != piece.next and self._ranges:
                raise _Unranged
            skip = piece.next - begins
            async with aclosing(answer.chunks) as chunks:
                async for chunk in chunks:
                    if skip < len(chunk):
                        piece.put(chunk[skip:])
                    skip = max(skip - len(chunk), 0)
                    if piece.next == piece.end:
                        return
        raise Interrupted(f"{urlsplit(answer.url).netloc} ended {part.file.name} too early")

    def _begins(self, part: Part, answer: Answer) -> int:
        begins, total, where = 0, count_of(answer.headers.get("Content-Length", "")), urlsplit(answer.url).netloc
        if (packed := answer.headers.get("Content-Encoding", "").strip().lower()) not in ("", "identity"):
            raise SourceFailed(f"{where} sends {part.file.name} as {packed[:20]}, which was not asked for; have it send files as they are")
        if answer.status == 206:
            begins, total = content_range(answer.headers.get("Content-Range", ""), answer.url)
        if total not in (None, part.size):
            raise SourceFailed(f"{part.file.name} has {total} bytes at {where}, and {part.size} were expected; push it there again")
        return begins

    def _refused(self, part: Part, answer: Answer) -> NotFound | SourceFailed:
        where = urlsplit(answer.url).netloc
        if answer.status in (404, 410):
            return NotFound(f"{where} lacks {part.file.name}, which the model needs; push it there again")
        if answer.status == 416:
            return SourceFailed(f"{part.file.name} is shorter at {where} than it should be; push it there again")
        return SourceFailed(f"{where} refused {part.file.name} ({answer.status}); try again later")


class _Unranged(Exception):
    """The server sends files from their beginning only."""


def reason(body: bytes) -> str:
    """What a registry's error body says, as a clause: its first message, or nothing."""
    try:
        found = decode(body, dict[str, Any])
    except InvalidJson:
        return ""
    errors = found.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else {}
    texts = [first.get(key) for key in ("message", "code")] if isinstance(first, dict) else [first]
    words = (" ".join(text.split())[:200] for text in (*texts, found.get("error"), found.get("message")) if isinstance(text, str))
    return next((f" ({clean})" for clean in words if clean), "")


def _challenge(answer: Answer) -> str:
    """Every `WWW-Authenticate` of an answer, as one."""
    return ", ".join(answer.headers.getall("WWW-Authenticate", ()))


def _redirects(method: str, answer: Answer) -> bool:
    """Whether an answer sends elsewhere with the same request. One to an upload with an address of its own does more than that."""
    if "Location" not in answer.headers or "Docker-Upload-Location" in answer.headers:
        return False
    return answer.status in (307, 308) or (method in ("GET", "HEAD") and answer.status in (301, 302, 303))


def _pause(text: str) -> float | None:
    """Seconds of a Retry-After, which is a number or a date (some count it from 1970), or None when it is neither."""
    if (seconds := count_of(text.strip())) is not None:
        return max(seconds - time.time(), 0.0) if seconds >= _EPOCH else float(seconds)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
