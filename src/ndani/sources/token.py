"""Who we are to a registry: nobody first, then a login of `.netrc`, a bearer token, and in the end this user's own key.

Each step is taken only when the registry asks for it. What is won is shown to the registry alone: `header` gives
nothing for any other place. The exchange is that of the distribution protocol; the signed form is Ollama's.
"""

from __future__ import annotations

import asyncio
import netrc
import os
import re
import secrets
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec

from ndani.errors import SourceFailed
from ndani.sources.http import shown
from ndani.sources.identity import open_identity

_FIELD = re.compile(r'([a-z]+)="([^"]*)"')

#: Asks a URL with these headers: status and body.
Ask = Callable[[str, dict[str, str]], Awaitable[tuple[int, bytes]]]


class _Grant(msgspec.Struct):
    """What a token server answers; the two names mean the same."""

    token: str = ""
    access_token: str = ""


class Credentials:
    """The credentials of one conversation with one registry."""

    def __init__(self, key: Path, token: str = "", place: str = "") -> None:
        """`token` is one that the user has given us for `place`, an `origin`, and for nobody else."""
        self._key = key
        self._header = f"Bearer {token}" if token else ""
        self._origin = place
        self._given = bool(token)
        #: How far we have gone: nothing, a token as anybody or with the login, a token for our signature.
        self._step = 0
        self._asking = asyncio.Lock()
        self._hint = ""

    def header(self, url: str) -> dict[str, str]:
        """What to send along to this URL."""
        return {"Authorization": self._header} if self._header and origin(url) == self._origin else {}

    async def answer(self, url: str, challenge: str, sent: str | None, fresh: bool, ask: Ask) -> None:
        """The registry at `url` said 401 with this `WWW-Authenticate`, after `sent`. Raises SourceFailed when nothing is left to try.

        `fresh` says that what was sent had been won for this very request: then it is not enough, and the next step is due.
        """
        async with self._asking:
            if sent == (self._header or None):  # else another request has renewed it meanwhile
                await self._win(url, challenge, fresh, ask)

    async def _win(self, url: str, challenge: str, fresh: bool, ask: Ask) -> None:
        place = urlsplit(url).netloc
        scheme, _, rest = challenge.partition(" ")
        login = _login(url)
        self._origin = origin(url)
        if scheme.lower() == "basic":
            if not login:
                raise SourceFailed(f"{place} asks for a user and a password; put them into ~/.netrc and try again")
            if fresh:
                raise SourceFailed(f"{place} refused the user and password of ~/.netrc; correct them and try again")
            self._header = f"Basic {login}"
            return
        if scheme.lower() != "bearer" and self._given:
            raise SourceFailed(f"{place} refused the token of HF_TOKEN for this model; check the token, and what it may read there")
        if scheme.lower() != "bearer":
            raise SourceFailed(f"{place} refused access and named no way to get it that is known here ({scheme or 'none'})")
        said = dict(_FIELD.findall(rest))
        if fresh or not self._step:
            self._step += 1
        token = ""
        while not token:
            if self._step > 2:
                raise SourceFailed(f"{place} refused access to this model{self._hint}; check its name, or your account there")
            token = await self._token(said, url, login, ask)
            if not token:
                self._step += 1
        self._header = f"Bearer {token}"

    async def _token(self, said: dict[str, str], url: str, login: str, ask: Ask) -> str:
        realm = said.get("realm", "")
        if not realm.startswith(("https://", "http://")) or (realm.startswith("http://") and url.startswith("https://")):
            raise SourceFailed(f"{urlsplit(url).netloc} names {shown(realm) or 'nothing'} for its tokens, which cannot be trusted")
        query = [(name, said[name]) for name in ("service",) if said.get(name)]
        query += [("scope", scope) for scope in said.get("scope", "").split()]
        headers = {}
        ours = urlsplit(realm).hostname == urlsplit(url).hostname
        if self._step == 1:
            if known := login if ours else _login(realm):
                headers["Authorization"] = f"Basic {known}"
        elif not ours:
            # A signature for another host's eyes could be used there in our name.
            return ""
        else:
            query += [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        target = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        if self._step == 2:
            headers["Authorization"] = self._signed(target)
        status, body = await ask(target, headers)
        if status in (400, 401, 403):
            return ""
        if status != 200:
            raise SourceFailed(f"{shown(realm)} gave no token ({status}); try again later")
        try:
            grant = msgspec.json.decode(body, type=_Grant)
        except msgspec.DecodeError:
            raise SourceFailed(f"{shown(realm)} answered with something that is no token; check the name of the registry") from None
        return grant.token or grant.access_token

    def _signed(self, target: str) -> str:
        identity = open_identity(self._key)
        self._hint = f", to the key ssh-ed25519 {identity.shown} as well"
        nothing = b64encode(sha256(b"").hexdigest().encode()).decode()
        return f"{identity.shown}:{b64encode(identity.sign(f'GET,{target},{nothing}'.encode())).decode()}"


def origin(url: str) -> str:
    """Scheme, host and port: what a credential belongs to."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.hostname or '').lower()}:{parts.port or {'https': 443}.get(parts.scheme, 80)}"


def _login(url: str) -> str:
    """User and password of `.netrc` for the host of a URL, as Basic wants them, or nothing. Raises SourceFailed."""
    path = Path(os.environ.get("NETRC") or Path(os.environ.get("HOME") or "~").expanduser() / ".netrc")
    try:
        found = netrc.netrc(str(path)).authenticators(urlsplit(url).hostname or "")
    except FileNotFoundError:
        return ""
    except (OSError, netrc.NetrcParseError) as error:
        raise SourceFailed(f"{path} cannot be read ({getattr(error, 'msg', None) or getattr(error, 'strerror', '')}); correct it") from None
    return b64encode(f"{found[0] or ''}:{found[2] or ''}".encode()).decode() if found else ""
