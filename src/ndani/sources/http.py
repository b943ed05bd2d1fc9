"""The only client that talks to registries, hubs and indexes. It fetches bytes and pages by URL; the sources interpret them.

Proxies and `.netrc` come from the environment unless the source sets others. Certificates come from the system, from pip's
own bundle and from the file that the user has set. A stalled transfer is ended. aiohttp's errors are translated here: a
transient one becomes `Interrupted`, every other one an error of `ndani.errors`.
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

_CONNECT_TIMEOUT_S = 20.0
STALL_TIMEOUT_S = 30.0  # without a byte
_READ_SIZE = 1 << 18
_MAX_HEADER_BYTES = 1 << 16  # of one header: a signed URL may be long
_MIN_BYTES_PER_S = 1000  # for a body that is read whole, after the stall timeout
MAX_REDIRECTS = 10
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class Interrupted(Exception):
    """A transfer failed, and another try may succeed. Its text is a clause of the final sentence.

    `retry_after` is the number of seconds that the server asked us to wait, or None.
    """

    def __init__(self, clause: str, retry_after: float | None = None) -> None:
        super().__init__(clause)
        self.retry_after = retry_after


class Unreachable(Interrupted):
    """No connection was established, or the server did not respond on it. `go_detail` is how a Go program's error continues
    after `dial tcp`, for clients that read Ollama's sentences; it is empty where our own clause says more.
    """

    def __init__(self, clause: str, go_detail: str) -> None:
        super().__init__(clause)
        self.go_detail = go_detail


class TlsFailed(Interrupted):
    """The server does not speak TLS, or no TLS that this machine trusts."""


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach a server. An empty field means the setting of the environment or the system."""

    proxy: str = ""
    certificates: str = ""  # a file of certificate authorities to trust
    client_certificate: str = ""
    trusted_hosts: tuple[str, ...] = ()  # hosts whose certificate is not verified
    logins: dict[str, tuple[str, str]] = field(default_factory=dict)  # scheme://host[:port] → user, password
    netrc: bool = True  # whether logins of .netrc are added to requests; a source with its own logins adds them itself
    settings: str = "`pip config list`"  # advice: where to correct a wrong address
    certificate: str = "set `cert` in pip's configuration"  # advice: what to do about an untrusted certificate


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response with any status. Header names are case-insensitive."""

    status: int
    headers: CIMultiDictProxy[str]
    url: str
    chunks: AsyncGenerator[bytes, None]
    stall_timeout: float = STALL_TIMEOUT_S

    async def read(self, limit: int) -> bytes:
        """The body, up to `limit` bytes of it. Raises Interrupted, also when the body arrives too slowly."""
        body, start = bytearray(), time.monotonic()
        async with contextlib.aclosing(self.chunks) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) >= limit:
                    break
                if time.monotonic() - start > self.stall_timeout + len(body) / _MIN_BYTES_PER_S:
                    raise Interrupted(f"{urlsplit(self.url).hostname} sends too slowly")
        return bytes(body[:limit])


@dataclass(frozen=True, slots=True)
class RangeResponse:
    """A body that is being received: its offset in the file, and the size of the whole file (or None)."""

    offset: int
    total: int | None
    chunks: AsyncGenerator[bytes, None]


class HttpClient:
    """An outbound connection pool. With `offline` every request raises Offline. Callers close it in the end."""

    def __init__(self, access: Access, *, offline: bool, stall_timeout: float = STALL_TIMEOUT_S) -> None:
        self._access, self._offline, self._stall_timeout = access, offline, stall_timeout
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close every connection."""
        if self._session:
            await self._session.close()

    async def get_text(self, url: str, accept: str) -> tuple[str, str, str]:
        """A text of up to 64 MB: the text, its media type, and its URL after redirects.

        Raises NotFound, SourceFailed, Offline, Interrupted.
        """
        async with self._get(url, {"Accept": accept}) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(_READ_SIZE):
                body += chunk
                if len(body) > 64 << 20:
                    raise SourceFailed(f"{without_credentials(url)} answered with more than a package index ever has")
            return body.decode("utf-8", "replace"), response.content_type, str(response.url)

    @asynccontextmanager
    async def get_range(self, url: str, start: int, end: int) -> AsyncIterator[RangeResponse]:
        """The bytes from `start` up to `end` (excluded). A server that does not support ranges sends the whole file.

        Raises NotFound, SourceFailed, Offline, Interrupted.
        """
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        async with self._get(url, headers) as response:
            offset, total = 0, response.content_length
            if response.status == 206:
                offset, total = content_range(response.headers.get("Content-Range", ""), url)
            yield RangeResponse(offset, total, self._chunks(response, url))

    @asynccontextmanager
    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        verify: bool = True,
        response_timeout: float = 0.0,
    ) -> AsyncIterator[HttpResponse]:
        """One request and its response, whatever its status. It follows no redirect and adds no login.

        `response_timeout` (seconds) is how long the response may take, where that is longer than the stall timeout. Raises
        Offline, SourceFailed, and Interrupted (Unreachable, TlsFailed) when the connection fails.
        """
        if self._offline:
            raise Offline(f"NDANI_OFFLINE is set, so {without_credentials(url)} was not asked; unset it first")
        session, target = self._open_session(), URL(url, encoded=True)
        if "Authorization" in headers:
            target = target.with_user(None)  # our login takes precedence over one in the URL
        # aiohttp has no timeout for a proxy's response to CONNECT, and none for a body that the server does not read.
        deadline = asyncio.timeout(min(_CONNECT_TIMEOUT_S, self._stall_timeout) + max(response_timeout, self._stall_timeout))
        with _translated_errors(url, self._access, before_response=True):
            try:
                async with (
                    deadline,
                    session.request(
                        method,
                        target,
                        data=self._watched_body(body, deadline) if isinstance(body, AsyncIterator) else body,
                        allow_redirects=False,
                        **_proxy_arguments(url, {"Accept-Encoding": "identity", **headers}, self._access),
                        ssl=verify,
                        timeout=self._timeout(max(response_timeout, self._stall_timeout)),
                    ) as response,
                ):
                    deadline.reschedule(None)
                    yield HttpResponse(response.status, response.headers, url, self._chunks(response, url), self._stall_timeout)
            except TimeoutError:
                if deadline.expired() and isinstance(body, AsyncIterator):
                    raise Interrupted(f"{urlsplit(url).hostname} took nothing for too long") from None
                raise

    async def _watched_body(self, body: AsyncIterator[bytes], deadline: asyncio.Timeout) -> AsyncIterator[bytes]:
        """The same bytes. `deadline` ends the request when no chunk is requested in time: then the server reads nothing.

        aiohttp's own timeout starts only when the whole body is written. A response before that disables `deadline`.
        """
        loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError):  # the request is over
            async for chunk in body:
                if deadline.when() is not None:
                    deadline.reschedule(loop.time() + self._stall_timeout)
                yield chunk
            deadline.reschedule(None)

    def _timeout(self, read: float) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(total=None, sock_connect=min(_CONNECT_TIMEOUT_S, self._stall_timeout), sock_read=read)

    async def _chunks(self, response: aiohttp.ClientResponse, url: str) -> AsyncGenerator[bytes, None]:
        with _translated_errors(url, self._access):
            async for chunk in response.content.iter_any():
                yield chunk

    @asynccontextmanager
    async def _get(self, url: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._offline:
            raise Offline(f"NDANI_OFFLINE is set, so {without_credentials(url)} was not asked; unset it to pull")
        # Each URL of a chain of redirects has its own proxy and its own login, so redirects are followed here.
        requires_tls = url.startswith("https:")
        for _ in range(MAX_REDIRECTS):
            if not is_fetchable(url):
                raise SourceFailed(f"{without_credentials(url)} is no address that can be asked; check {self._access.settings}")
            address = urlsplit(url)
            netloc = address.netloc.rpartition("@")[2]
            # A login for a server with TLS is not sent to that server without TLS.
            configured_login = self._access.logins.get(f"{address.scheme}://{netloc}") or self._access.logins.get(f"http://{netloc}")
            login = configured_login or (_netrc_login(address.hostname) if self._access.netrc else None)
            login = None if requires_tls and address.scheme != "https" else login
            login_header = {"Authorization": "Basic " + b64encode(":".join(login).encode()).decode()} if login else {}
            with _translated_errors(url, self._access):
                async with self._open_session().get(
                    urlunsplit(address._replace(netloc=netloc, fragment="")),
                    allow_redirects=False,
                    **_proxy_arguments(url, {**headers, **login_header}, self._access),
                    ssl=address.hostname not in self._access.trusted_hosts and netloc not in self._access.trusted_hosts,
                ) as response:
                    if response.status not in _REDIRECT_STATUSES or "Location" not in response.headers:
                        _require_success(response, url)
                        yield response
                        return
                    target = is_fetchable(urljoin(url, response.headers["Location"]))
            if not target:
                raise SourceFailed(f"{without_credentials(url)} sends to an address that cannot be asked; check {self._access.settings}")
            url = target
        raise SourceFailed(f"{without_credentials(url)} sends from one address to the next without end; check {self._access.settings}")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_tls_context(self._access)),
                timeout=self._timeout(self._stall_timeout),
                auto_decompress=self._access.netrc,  # a registry's digests are those of the bytes as sent
                # Some registries (Harbor) demand a browser's CSRF token from clients that return their cookies.
                cookie_jar=None if self._access.netrc else aiohttp.DummyCookieJar(),
                read_bufsize=_READ_SIZE,
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                headers={"User-Agent": f"ndani/{__version__}"},
            )
        return self._session


def _proxy_for(url: str, access: Access) -> tuple[str | None, str]:
    """The proxy for this URL, or None, and the setting that names it (NO_PROXY applies to every proxy). Raises SourceFailed."""
    proxy, setting = proxy_of(url, os.environ)
    if access.proxy:
        configured = access.proxy if "://" in access.proxy else f"http://{access.proxy}"
        proxy, setting = ("", "") if is_direct(url, os.environ) else (configured, access.settings)
    if proxy and not is_fetchable(proxy):
        raise SourceFailed(f"{setting} is {without_credentials(proxy)!r}, which is no proxy that can be used; write it as http://host:3128")
    return proxy or None, setting


def _proxy_arguments(url: str, headers: Mapping[str, str], access: Access) -> dict[str, Any]:
    """aiohttp's arguments for the headers and the proxy of this URL. The proxy's login is sent in UTF-8, as other clients do."""
    proxy, _ = _proxy_for(url, access)
    parts = urlsplit(proxy or "")
    if not parts.username:
        return {"headers": headers, "proxy": proxy}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode(errors="surrogateescape")
    login_header = {"Proxy-Authorization": "Basic " + b64encode(login).decode()}
    proxy_without_login = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if url.startswith("https:"):  # the login is for the proxy only, which cannot read the encrypted request
        return {"headers": headers, "proxy": proxy_without_login, "proxy_headers": login_header}
    return {"headers": {**headers, **login_header}, "proxy": proxy_without_login}


def _netrc_login(host: str | None) -> tuple[str, str] | None:
    """User and password of `.netrc` for a host. An unreadable file counts as none, as it does for pip."""
    with contextlib.suppress(OSError, UnicodeDecodeError, netrc.NetrcParseError):
        path = Path(os.environ.get("NETRC") or Path(os.environ.get("HOME") or "~").expanduser() / ".netrc")
        if entry := netrc.netrc(str(path)).authenticators(host or ""):
            return entry[0] or "", entry[2] or ""
    return None


def _tls_context(access: Access) -> ssl.SSLContext:
    bundles = (os.environ.get(variable) for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))
    authorities = access.certificates or next(filter(None, bundles), "")
    file = authorities or "of this system"
    try:
        if authorities:
            is_folder = Path(authorities).is_dir()
            context = ssl.create_default_context(cafile=None if is_folder else authorities, capath=authorities if is_folder else None)
        else:
            context = ssl.create_default_context()
            _add_pip_authorities(context)
        if access.client_certificate:
            file = access.client_certificate
            context.load_cert_chain(file)
    except (OSError, ssl.SSLError) as error:
        raise SourceFailed(f"the file of certificates {file} cannot be used ({error.strerror or error}); {access.certificate}") from None
    return context


def _add_pip_authorities(context: ssl.SSLContext) -> None:
    """Trust pip's own certificate authorities too: a machine without any must reach what pip reaches."""
    pip = importlib.util.find_spec("pip")
    if pip and pip.origin:
        with contextlib.suppress(OSError, ssl.SSLError):
            context.load_verify_locations(Path(pip.origin).parent / "_vendor" / "certifi" / "cacert.pem")


def _require_success(response: aiohttp.ClientResponse, url: str) -> None:
    status, shown_url = response.status, without_credentials(url)
    if status in (200, 206):
        return
    if status in (404, 410):
        raise NotFound(f"{shown_url} is not there ({status}); check the index that `pip config list` names")
    if status in (401, 403, 407):
        raise SourceFailed(f"{shown_url} refused access ({status}); check the login in pip's configuration or .netrc")
    if status in TRANSIENT_STATUSES:
        raise Interrupted(f"{shown_url} answered {status}")
    raise SourceFailed(f"{shown_url} answered {status}, which is no download; check the index that `pip config list` names")


def content_range(value: str, url: str) -> tuple[int, int | None]:
    """The offset of a partial body and the size of the file (or None), from `bytes 5-9/100`. Raises SourceFailed."""
    byte_range, _, total = value.removeprefix("bytes ").partition("/")
    first = count_of(byte_range.partition("-")[0])
    if first is None:
        raise SourceFailed(f"{without_credentials(url)} answered with a range that cannot be read; try again or use another index")
    return first, count_of(total)


@contextmanager
def _translated_errors(url: str, access: Access, *, before_response: bool = False) -> Iterator[None]:
    """Translate aiohttp's errors into ours. `before_response`: no response has begun, so callers get Unreachable or TlsFailed."""
    parts = urlsplit(url)
    host = parts.hostname or url
    proxy, variable = _proxy_for(url, access)
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ServerFingerprintMismatch) as error:
        reason = getattr(error, "certificate_error", None) or error
        raise SourceFailed(f"{host} has no certificate that this machine trusts ({reason}); {access.certificate}") from None
    except aiohttp.ClientConnectorSSLError as error:
        raise (TlsFailed if before_response else SourceFailed)(
            f"{host} has no TLS that this machine trusts ({_tls_reason(error.os_error)}); {access.certificate}"
        ) from None
    except (aiohttp.InvalidURL, UnicodeError):  # Python's IDNA codec rejects empty and overlong labels
        raise SourceFailed(f"{without_credentials(url)} is no address that can be asked; check {access.settings}") from None
    except TimeoutError:
        clause = f"{host} sent nothing for too long"
        if before_response and proxy:
            proxy_server = f"the proxy {urlsplit(proxy).netloc.rpartition('@')[2]} that {variable} names"
            raise Unreachable(f"{proxy_server}, or {host} behind it, did not answer in time", "") from None
        server = f"{host}:{parts.port or {'http': 80}.get(parts.scheme, 443)}"
        raise (Unreachable(clause, f" {server}: i/o timeout") if before_response else Interrupted(clause)) from None
    except aiohttp.ClientHttpProxyError as error:
        clause = f"the proxy that {variable} names did not let us through to {host} ({error.status} {error.message})"
        if error.status in TRANSIENT_STATUSES:
            raise Unreachable(clause, "") from None
        raise SourceFailed(f"{clause}; correct {variable}, or name {host} in no_proxy") from None
    except aiohttp.ClientProxyConnectionError as error:
        reason = _system_error(error.os_error)
        raise Unreachable(f"the proxy {error.host}:{error.port} that {variable} names cannot be reached ({reason})", "") from None
    except aiohttp.ClientConnectorDNSError as error:
        raise Unreachable(f"{host} cannot be reached ({error.os_error.strerror or error})", f": lookup {host}: no such host") from None
    except aiohttp.ClientConnectorError as error:
        reason = _system_error(error.os_error)
        raise Unreachable(f"{host} cannot be reached ({reason})", f" {error.host}:{error.port}: connect: {reason.lower()}") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise Interrupted(f"the connection to {host} broke off ({type(error).__name__})") from None


def _tls_reason(error: OSError) -> str:
    return getattr(error, "reason", None) or error.strerror or str(error)


def _system_error(error: OSError) -> str:
    # asyncio puts its own sentence around the system's message; errno has the original error.
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
