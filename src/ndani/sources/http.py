"""The only outbound client of ndani. Bytes and pages by URL; what they mean is the sources' business.

Proxies and `.netrc` come from the environment unless the source says otherwise; certificates from the system, from
pip's own bundle and from whatever file the user has set. A transfer that stands still is broken off. Foreign errors
are renamed here: what may pass by itself is `Interrupted`, everything else is a sentence of the tree.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import netrc
import os
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from ndani import __version__
from ndani.errors import NotFound, Offline, SourceFailed
from ndani.sources.proxy import is_direct, proxy_of
from ndani.sources.urls import count_of, is_fetchable, without_credentials

_CONNECT = 20.0  # seconds until a connection stands
_STALL = 30.0  # seconds without a byte
_CHUNK = 1 << 18
_FIELD = 1 << 16  # bytes of one header: an address with a signature in it may be long
_PACE = 1000  # bytes per second that what is read whole comes with at least, once it has had its time to begin
_HOPS = 10
_MOVED = (301, 302, 303, 307, 308)
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class Interrupted(Exception):
    """A transfer broke off in a way that trying again may mend. Its text is a clause for the final sentence.

    `after` is how many seconds the other side asked to be left alone, or None.
    """

    def __init__(self, clause: str, after: float | None = None) -> None:
        super().__init__(clause)
        self.after = after


class Unreachable(Interrupted):
    """No connection came to stand, or nobody spoke on it. `detail` says it as a Go program would, for clients that read
    Ollama's sentences; nothing where the clause says more.
    """

    def __init__(self, clause: str, detail: str) -> None:
        super().__init__(clause)
        self.detail = detail


class NoTls(Interrupted):
    """What listens there does not speak TLS, or none that this machine trusts."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a place: empty fields mean what the environment and the system say."""

    proxy: str = ""
    certificates: str = ""  # a file of authorities to trust
    client_certificate: str = ""
    trusted_hosts: tuple[str, ...] = ()  # whose certificate is not asked for
    logins: dict[str, tuple[str, str]] = field(default_factory=dict)  # scheme://host[:port] → user, password
    netrc: bool = True  # whether logins of .netrc are added to requests; a source with logins of its own does that itself
    settings: str = "`pip config list`"  # where a user looks when the place is wrong
    certificate: str = "set `cert` in pip's configuration"  # what to do about one that is not trusted


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it came, whatever its status. The names of headers are found however they are cased."""

    status: int
    headers: CIMultiDictProxy[str]
    url: str
    chunks: AsyncGenerator[bytes, None]
    stall: float = _STALL

    async def read(self, limit: int) -> bytes:
        """The body, up to `limit` bytes of it. Raises Interrupted, also when it comes as if it should never end."""
        body, began = bytearray(), time.monotonic()
        async with contextlib.aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) >= limit:
                    break
                if time.monotonic() - began > self.stall + len(body) / _PACE:
                    raise Interrupted(f"{urlsplit(self.url).hostname} sends too slowly")
        return bytes(body[:limit])


@dataclass(frozen=True, slots=True)
class Reply:
    """A body that is coming: the place in the file where it begins, the size of the whole file (or None)."""

    begins: int
    total: int | None
    chunks: AsyncGenerator[bytes, None]


class HttpClient:
    """An outbound connection pool. With `offline` it opens nothing, and says so. Close it in the end."""

    def __init__(self, access: Access, *, offline: bool, stall: float = _STALL) -> None:
        self._access, self._offline, self._stall = access, offline, stall
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection."""
        if self._session:
            await self._session.close()

    async def page(self, url: str, accept: str) -> tuple[str, str, str]:
        """A text of up to 64 MB: the text, its media type, and the URL it came from in the end.

        Raises NotFound, SourceFailed, Offline, Interrupted.
        """
        async with self._ask(url, {"Accept": accept}) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_chunked(_CHUNK):
                body += chunk
                if len(body) > 64 << 20:
                    raise SourceFailed(f"{without_credentials(url)} answered with more than a package index ever has")
            return body.decode("utf-8", "replace"), answer.content_type, str(answer.url)

    @asynccontextmanager
    async def stretch(self, url: str, start: int, end: int) -> AsyncIterator[Reply]:
        """The bytes from `start` up to `end` (excluded); a server that cannot do ranges sends the whole file instead.

        Raises NotFound, SourceFailed, Offline, Interrupted.
        """
        wanted = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with self._ask(url, wanted) as answer:
            begins, total = 0, answer.content_length
            if answer.status == 206:
                begins, total = content_range(answer.headers.get("Content-Range", ""), url)
            yield Reply(begins, total, self._chunks(answer, url))

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        verify: bool = True,
        wait: float = 0.0,
    ) -> AsyncIterator[Answer]:
        """One request and its answer, whatever that is; no redirect is followed, no login added.

        `wait` is how many seconds the answer may take to come, where that is longer than a transfer may stand still.
        Raises Offline, SourceFailed, and Interrupted (Unreachable, NoTls) when the connection fails.
        """
        if self._offline:
            raise Offline(f"NDANI_OFFLINE is set, so {without_credentials(url)} was not asked; unset it first")
        session, address = self._opened(), URL(url, encoded=True)
        if "Authorization" in headers:
            address = address.with_user(None)  # what an address holds of a login does not count beside ours
        # aiohttp has no clock for a proxy's word on whether it lets us through, nor for a body that nobody takes.
        limit = asyncio.timeout(min(_CONNECT, self._stall) + max(wait, self._stall))
        with _renamed(url, self._access, speaking=True):
            try:
                async with (
                    limit,
                    session.request(
                        method,
                        address,
                        data=self._paced(body, limit) if isinstance(body, AsyncIterator) else body,
                        allow_redirects=False,
                        **_through(url, {"Accept-Encoding": "identity", **headers}, self._access),
                        ssl=verify,
                        timeout=self._timeout(max(wait, self._stall)),
                    ) as answer,
                ):
                    limit.reschedule(None)
                    yield Answer(answer.status, answer.headers, url, self._chunks(answer, url), self._stall)
            except TimeoutError:
                if limit.expired() and isinstance(body, AsyncIterator):
                    raise Interrupted(f"{urlsplit(url).hostname} took nothing for too long") from None
                raise

    async def _paced(self, body: AsyncIterator[bytes], limit: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The same bytes. `limit` ends the request when the next are not asked for in time: the other side takes none.

        aiohttp's own clock starts when all of them are written. Where an answer has come before that, `limit` has no end any more.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError):  # the request is over
            async for piece in body:
                if limit.when() is not None:
                    limit.reschedule(loop.time() + self._stall)
                yield piece
            limit.reschedule(None)

    def _timeout(self, read: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=min(_CONNECT, self._stall), sock_read=read)

    async def _chunks(self, answer: aiohttp.ClientResponse, url: str) -> AsyncGenerator[bytes, None]:
        with _renamed(url, self._access):
            async for chunk in answer.content.iter_any():
                yield chunk

    @asynccontextmanager
    async def _ask(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._offline:
            raise Offline(f"NDANI_OFFLINE is set, so {without_credentials(url)} was not asked; unset it to pull")
        # Each address on the way has its own proxy and its own login, so redirects are followed here.
        guarded = url.startswith("https:")
        for _ in range(_HOPS):
            if not is_fetchable(url):
                raise SourceFailed(f"{without_credentials(url)} is no address that can be asked; check {self._access.settings}")
            parts = urlsplit(url)
            place = parts.netloc.rpartition("@")[2]
            # A login that was given for a place with TLS is not shown there without it.
            mine = self._access.logins.get(f"{parts.scheme}://{place}") or self._access.logins.get(f"http://{place}")
            login = mine or (_netrc(parts.hostname) if self._access.netrc else None)
            login = None if guarded and parts.scheme != "https" else login
            own = {"Authorization": "Basic " + b64encode(":".join(login).encode()).decode()} if login else {}
            with _renamed(url, self._access):
                async with self._opened().get(
                    urlunsplit(parts._replace(netloc=place, fragment="")),
                    allow_redirects=False,
                    **_through(url, {**headers, **own}, self._access),
                    ssl=parts.hostname not in self._access.trusted_hosts and place not in self._access.trusted_hosts,
                ) as answer:
                    if answer.status not in _MOVED or "Location" not in answer.headers:
                        _check(answer, url)
                        yield answer
                        return
                    target = is_fetchable(urljoin(url, answer.headers["Location"]))
            if not target:
                raise SourceFailed(f"{without_credentials(url)} sends to an address that cannot be asked; check {self._access.settings}")
            url = target
        raise SourceFailed(f"{without_credentials(url)} sends from one address to the next without end; check {self._access.settings}")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_trust(self._access)),
                timeout=self._timeout(self._stall),
                auto_decompress=self._access.netrc,  # a registry's blobs are what their digests say, as they came
                # Of who shows a registry's cookies some (Harbor) want what only a browser has.
                cookie_jar=None if self._access.netrc else aiohttp.DummyCookieJar(),
                read_bufsize=_CHUNK,
                max_line_size=_FIELD,
                max_field_size=_FIELD,
                headers={"User-Agent": f"ndani/{__version__}"},
            )
        return self._session


def _proxy(url: str, access: Access) -> tuple[str | None, str]:
    """The proxy for this URL, or None, and where it is set; one that the source names is passed by as well. Raises SourceFailed."""
    proxy, where = proxy_of(url, os.environ)
    if access.proxy:
        named = access.proxy if "://" in access.proxy else f"http://{access.proxy}"
        proxy, where = ("", "") if is_direct(url, os.environ) else (named, access.settings)
    if proxy and not is_fetchable(proxy):
        raise SourceFailed(f"{where} is {without_credentials(proxy)!r}, which is no proxy that can be used; write it as http://host:3128")
    return proxy or None, where


def _through(url: str, headers: Mapping[str, str], access: Access) -> dict[str, Any]:
    """The headers and the proxy for this URL as aiohttp wants them: the proxy's login apart, in UTF-8 as other clients send it."""
    proxy, _ = _proxy(url, access)
    parts = urlsplit(proxy or "")
    if not parts.username:
        return {"headers": headers, "proxy": proxy}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode(errors="surrogateescape")
    told = {"Proxy-Authorization": "Basic " + b64encode(login).decode()}
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if url.startswith("https:"):  # it is for the proxy's eyes, which sees nothing of the request but where it goes
        return {"headers": headers, "proxy": bare, "proxy_headers": told}
    return {"headers": {**headers, **told}, "proxy": bare}


def _netrc(host: str | None) -> tuple[str, str] | None:
    """User and password of `.netrc` for a host. One that cannot be read is none, as for pip."""
    with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        path = Path(os.environ.get("NETRC") or Path(os.environ.get("HOME") or "~").expanduser() / ".netrc")
        if found := netrc.netrc(str(path)).authenticators(host or ""):
            return found[0] or "", found[2] or ""
    return None


def _trust(access: Access) -> ssl.SSLContext:
    named = access.certificates or next(filter(None, (os.environ.get(v) for v in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))), "")
    what = named or "of this system"
    try:
        if named:
            folder = Path(named).is_dir()
            trust = ssl.create_default_context(cafile=None if folder else named, capath=named if folder else None)
        else:
            trust = ssl.create_default_context()
            _trust_as_pip_does(trust)
        if access.client_certificate:
            what = access.client_certificate
            trust.load_cert_chain(what)
    except (OSError, ssl.SSLError) as error:
        raise SourceFailed(f"the file of certificates {what} cannot be used ({error.strerror or error}); {access.certificate}") from None
    return trust


def _trust_as_pip_does(trust: ssl.SSLContext) -> None:
    """pip carries its own authorities: a bare machine without any must reach what pip reaches."""
    pip = importlib.util.find_spec("pip")
    if pip and pip.origin:
        with contextlib.suppress(OSError, ssl.SSLError):
            trust.load_verify_locations(Path(pip.origin).parent / "_vendor" / "certifi" / "cacert.pem")


def _check(answer: aiohttp.ClientResponse, url: str) -> None:
    status, place = answer.status, without_credentials(url)
    if status in (200, 206):
        return
    if status in (404, 410):
        raise NotFound(f"{place} is not there ({status}); check the index that `pip config list` names")
    if status in (401, 403, 407):
        raise SourceFailed(f"{place} refused access ({status}); check the login in pip's configuration or .netrc")
    if status in _PASSING:
        raise Interrupted(f"{place} answered {status}")
    raise SourceFailed(f"{place} answered {status}, which is no download; check the index that `pip config list` names")


def content_range(value: str, url: str) -> tuple[int, int | None]:
    """Where a partial body begins and how large the file is, from `bytes 5-9/100`. Raises SourceFailed."""
    span, _, total = value.removeprefix("bytes ").partition("/")
    first = count_of(span.partition("-")[0])
    if first is None:
        raise SourceFailed(f"{without_credentials(url)} answered with a range that cannot be read; try again or use another index")
    return first, count_of(total)


@contextmanager
def _renamed(url: str, access: Access, *, speaking: bool = False) -> Iterator[None]:
    """The border to aiohttp: its errors end here. `speaking`: until an answer begins, with who may know what to make of it."""
    parts = urlsplit(url)
    place = parts.hostname or url
    proxy, variable = _proxy(url, access)
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch) as error:
        why = getattr(error, "certificate_error", None) or error
        raise SourceFailed(f"{place} has no certificate that this machine trusts ({why}); {access.certificate}") from None
    except aiohttp.ClientConnectorSSLError as error:
        raise (NoTls if speaking else SourceFailed)(
            f"{place} has no TLS that this machine trusts ({_tls(error.os_error)}); {access.certificate}"
        ) from None
    except (aiohttp.InvalidURL, UnicodeError):  # a name with nothing or too much between two dots is no text to Python
        raise SourceFailed(f"{without_credentials(url)} is no address that can be asked; check {access.settings}") from None
    except TimeoutError:
        silence = f"{place} sent nothing for too long"
        if speaking and proxy:
            between = f"the proxy {urlsplit(proxy).netloc.rpartition('@')[2]} that {variable} names"
            raise Unreachable(f"{between}, or {place} behind it, did not answer in time", "") from None
        where = f"{place}:{parts.port or {'http': 80}.get(parts.scheme, 443)}"
        raise (Unreachable(silence, f"{where}: i/o timeout") if speaking else Interrupted(silence)) from None
    except aiohttp.ClientHttpProxyError as error:
        said = f"the proxy that {variable} names did not let us through to {place} ({error.status} {error.message})"
        if error.status in _PASSING:
            raise Unreachable(said, "") from None
        raise SourceFailed(f"{said}; correct {variable}, or name {place} in no_proxy") from None
    except aiohttp.ClientProxyConnectionError as error:
        why = _system_error(error.os_error)
        raise Unreachable(f"the proxy {error.host}:{error.port} that {variable} names cannot be reached ({why})", "") from None
    except aiohttp.ClientConnectorDNSError as error:
        raise Unreachable(f"{place} cannot be reached ({error.os_error.strerror or error})", f"lookup {place}: no such host") from None
    except aiohttp.ClientConnectorError as error:
        why = _system_error(error.os_error)
        raise Unreachable(f"{place} cannot be reached ({why})", f"{error.host}:{error.port}: connect: {why.lower()}") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Interrupted(f"the connection to {place} broke off ({type(error).__name__})") from None


def _tls(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)


def _system_error(error: OSError) -> str:
    # asyncio words its own sentence around the system's; the number still says what happened.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
