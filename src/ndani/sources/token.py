"""Who we are to a registry: nobody first, then a login of `.netrc`, a bearer token, and in the end this user's own key.

Each step is taken only when the registry asks for it. What is won is shown to the registry alone: `header` gives
nothing for any other place. The login for a registry goes to it, and to whom it names for its tokens: it could ask for it
itself. A login for that other host, or a signature, does not go there: what is won in our name would be shown to whoever
sent us. The exchange is that of the distribution protocol; the signed form is Ollama's.
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

from ndani.errors import Misconfigured, SourceFailed
from ndani.sources.identity import open_identity
from ndani.sources.urls import is_fetchable, origin, without_credentials
from ndani.untrusted_json import InvalidJson, decode

#: In a `WWW-Authenticate`: a field of a challenge, quoted or bare, or else the scheme that a challenge begins with.
_PIECE = re.compile(r'([A-Za-z][\w-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^,\s]*))|([A-Za-z][\w-]*)')
_TOKEN = re.compile(r"[!-~]+")

#: Registries whose tokens come from a host of the same owner, for which the login may be written down as well.
_DESKS = {
    "https://index.docker.io:443": "https://auth.docker.io:443",
    "https://registry-1.docker.io:443": "https://auth.docker.io:443",
    "https://registry.gitlab.com:443": "https://gitlab.com:443",
}

#: Asks a URL with these headers: status and body.
Ask = Callable[[str, dict[str, str]], Awaitable[tuple[int, bytes]]]


class _Grant(msgspec.Struct):
    """What a token server answers; the two names mean the same."""

    token: str = ""
    access_token: str = ""


class Credentials:
    """The credentials of one conversation with one registry."""

    def __init__(self, key: Path, token: str = "", place: str = "") -> None:
        """`token` is one that the user has given us for `place`, an `origin`, and for nobody else. Raises Misconfigured."""
        if token and not _TOKEN.fullmatch(token):
            raise Misconfigured("HF_TOKEN has characters that no token has; set it to the token alone, in one line")
        self._key = key
        self._given = f"Bearer {token}" if token else ""
        self._won = ""
        self._origin = place
        #: How far we have gone: nothing, a token as anybody or with the login, a token for our signature.
        self._step = 0
        self._pushes = ""
        self._asking = asyncio.Lock()
        self._hint = ""

    @property
    def given(self) -> bool:
        """Whether the user has given us a token for this place."""
        return bool(self._given)

    def pushes(self, repository: str) -> None:
        """Ask for tokens that are good for a push to this `repository:…`."""
        self._pushes = repository

    def header(self, url: str) -> dict[str, str]:
        """What to send along to this URL."""
        if origin(url) != self._origin:
            return {}
        # A hub's own pages know the user's token; what its door for registries gave for it is good behind that door only.
        inside = not self._given or urlsplit(url).path.startswith("/v2/")
        shows = (self._won if inside else "") or self._given
        return {"Authorization": shows} if shows else {}

    async def answer(self, url: str, challenge: str, sent: str | None, fresh: bool, ask: Ask) -> None:
        """The registry at `url` said 401 with this `WWW-Authenticate`, after `sent`. Raises SourceFailed when nothing is left to try.

        Several such headers are joined by commas. `fresh` says that what was sent had been won for this very request: then
        it is not enough, and the next step is due.
        """
        async with self._asking:
            if sent == self.header(url).get("Authorization"):  # else another request has renewed it meanwhile
                await self._win(url, challenge, fresh, ask)

    async def _win(self, url: str, challenge: str, fresh: bool, ask: Ask) -> None:
        place = urlsplit(url).netloc
        known = _challenges(challenge)
        if self._given and self._origin.startswith("https:") and not url.startswith("https:"):
            advice = "leave `--insecure` out, or name the hub in HF_ENDPOINT as http://…"
            raise SourceFailed(f"{place} does not speak TLS, so the token of HF_TOKEN is not shown there; {advice}")
        self._origin = origin(url)
        # A hub's pages name a realm that is no address: there is no other token to be had for them.
        if "bearer" in known and (is_fetchable(known["bearer"].get("realm", "")) or not self._given):
            await self._win_token(known["bearer"], url, fresh, ask)
            return
        if self._given:
            raise SourceFailed(f"{place} refused the token of HF_TOKEN for this model; check the token, and what it may read there")
        if "basic" not in known:
            named = ", ".join(known) or "none"
            raise SourceFailed(f"{place} refused access and named no way to get it that is known here ({named}); check the name")
        login = _login(url)
        if not login:
            raise SourceFailed(f"{place} asks for a user and a password; put them into ~/.netrc and try again")
        if fresh:
            raise SourceFailed(f"{place} refused the user and password of ~/.netrc; correct them and try again")
        self._won = f"Basic {login}"

    async def _win_token(self, said: dict[str, str], url: str, fresh: bool, ask: Ask) -> None:
        if fresh or not self._step:
            self._step += 1
        token = ""
        while not token:
            if self._step > 2:
                place = urlsplit(url).netloc
                login = "" if self._given or _login(url) else ": a user and a password for it belong into ~/.netrc"
                raise SourceFailed(f"{place} refused access to this model{self._hint}; check its name, or your account there{login}")
            token = await self._token(said, url, ask)
            if not token:
                self._step += 1
        self._won = f"Bearer {token}"

    async def _token(self, said: dict[str, str], url: str, ask: Ask) -> str:
        realm = is_fetchable(said.get("realm", ""))
        if not realm or (realm.startswith("http://") and url.startswith("https://")):
            named = without_credentials(said.get("realm", "")) or "nothing"
            raise SourceFailed(f"{urlsplit(url).netloc} names {named} for its tokens, which cannot be trusted; check the name")
        query = [(name, said[name]) for name in ("service",) if said.get(name)]
        query += [("scope", scope) for scope in _widened(said.get("scope", "").split(), self._pushes)]
        ours = origin(realm) == origin(url)
        if self._step == 2 and not ours:
            # A signature for another host's eyes could be used there in our name.
            return ""
        if self._step == 2:
            query += [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        target = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        headers = {}
        if self._step == 2:
            headers["Authorization"] = self._signed(target)
        elif ours and self._given:
            headers["Authorization"] = self._given
        elif login := _login(url) or (_login(realm) if _DESKS.get(origin(url)) == origin(realm) else ""):
            headers["Authorization"] = f"Basic {login}"
        status, body = await ask(target, headers)
        if status in (400, 401, 403):
            return ""
        if status != 200:
            raise SourceFailed(f"{without_credentials(realm)} gave no token ({status}); try again later")
        odd = SourceFailed(f"{without_credentials(realm)} answered with something that is no token; check the name of the registry")
        try:
            grant = decode(body, _Grant)
        except InvalidJson:
            raise odd from None
        token = grant.token or grant.access_token
        if token and not _TOKEN.fullmatch(token):
            raise odd
        return token

    def _signed(self, target: str) -> str:
        identity = open_identity(self._key)
        self._hint = f", to the key ssh-ed25519 {identity.shown} as well"
        nothing = b64encode(sha256(b"").hexdigest().encode()).decode()
        return f"{identity.shown}:{b64encode(identity.sign(f'GET,{target},{nothing}'.encode())).decode()}"


def _widened(scopes: list[str], pushes: str) -> list[str]:
    """The scopes that a registry has named; for a push those of repositories with all that it takes."""
    if not pushes:
        return scopes
    if not any(scope.startswith("repository:") for scope in scopes):
        scopes = [*scopes, f"{pushes}:"]
    return [f"{scope.rpartition(':')[0]}:pull,push" if scope.startswith("repository:") else scope for scope in scopes]


def _challenges(text: str) -> dict[str, dict[str, str]]:
    """What each scheme of a `WWW-Authenticate` asks for, by its name; all names in small letters."""
    found: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for name, quoted, bare, scheme in _PIECE.findall(text):
        if scheme:
            fields = found.setdefault(scheme.lower(), {})
        else:
            fields[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or bare
    return found


def _login(url: str) -> str:
    """User and password of `.netrc` for the host of a URL, as Basic wants them, or nothing. Raises SourceFailed."""
    path = Path(os.environ.get("NETRC") or Path(os.environ.get("HOME") or "~").expanduser() / ".netrc")
    try:
        found = netrc.netrc(str(path)).authenticators(urlsplit(url).hostname or "")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise SourceFailed(f"{path} cannot be read (it is no UTF-8 text); correct it") from None
    except (OSError, netrc.NetrcParseError) as error:
        raise SourceFailed(f"{path} cannot be read ({getattr(error, 'msg', None) or getattr(error, 'strerror', '')}); correct it") from None
    return b64encode(f"{found[0] or ''}:{found[2] or ''}".encode()).decode() if found else ""
