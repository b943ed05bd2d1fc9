"""How we authenticate to a registry: anonymously, then with a login of `.netrc`, a bearer token, and last the user's own key.

Each stage is used only when the registry demands it. Credentials go to the registry alone: `headers_for` returns nothing
for any other origin. The login for a registry is sent to it and to the token server that it names, because the registry
could ask for that login itself. A login for the token server's own host, or a signature, is not sent to a token server
elsewhere: the token would then be shown to the registry that sent us there. The exchange is the distribution protocol's;
the signed form is Ollama's.
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

#: In a `WWW-Authenticate` header: a field of a challenge, quoted or bare, or the scheme at the start of a challenge.
_CHALLENGE_PART = re.compile(r'([A-Za-z][\w-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^,\s]*))|([A-Za-z][\w-]*)')
_TOKEN = re.compile(r"[!-~]+")

#: Registries whose token server is another host of the same owner. `.netrc` may have the login under that host's name.
_TOKEN_HOSTS = {
    "https://index.docker.io:443": "https://auth.docker.io:443",
    "https://registry-1.docker.io:443": "https://auth.docker.io:443",
    "https://registry.gitlab.com:443": "https://gitlab.com:443",
}

#: The stages of authentication by token: an anonymous request or one with a login, then a signed one.
_STAGE_LOGIN, _STAGE_SIGNATURE = 1, 2

#: Sends a GET request for a URL with these headers; returns status and body.
Fetch = Callable[[str, dict[str, str]], Awaitable[tuple[int, bytes]]]


class _Grant(msgspec.Struct):
    """A token server's response. Both fields mean the same."""

    token: str = ""
    access_token: str = ""


class Credentials:
    """The credentials for one registry."""

    def __init__(self, key: Path, token: str = "", server_origin: str = "") -> None:
        """`token` is the user's token for `server_origin` (see `urls.origin`) and for no other server. Raises Misconfigured."""
        if token and not _TOKEN.fullmatch(token):
            raise Misconfigured("HF_TOKEN has characters that no token has; set it to the token alone, in one line")
        self._key = key
        self._user_token_header = f"Bearer {token}" if token else ""
        self._authorization = ""
        self._origin = server_origin
        #: 0, `_STAGE_LOGIN` or `_STAGE_SIGNATURE`; beyond that, nothing is left to try.
        self._stage = 0
        self._push_scope = ""
        #: Whether the last authentication failed because the server may not have, or did not accept, the user's token.
        self.user_token_refused = False
        self._lock = asyncio.Lock()
        self._key_hint = ""

    @property
    def has_user_token(self) -> bool:
        """Whether the user has set a token for this server."""
        return bool(self._user_token_header)

    def request_push_access(self, repository: str) -> None:
        """Request tokens that permit a push to this `repository:…`."""
        self._push_scope = repository

    def headers_for(self, url: str) -> dict[str, str]:
        """The headers that authenticate a request for this URL."""
        if origin(url) != self._origin:
            return {}
        # A hub's own pages accept the user's token. The token that its registry API issued is valid only for that API.
        is_registry_api = not self._user_token_header or urlsplit(url).path.startswith("/v2/")
        authorization = (self._authorization if is_registry_api else "") or self._user_token_header
        return {"Authorization": authorization} if authorization else {}

    async def authenticate(self, url: str, challenge: str, sent: str | None, just_obtained: bool, fetch: Fetch) -> None:
        """Handle a 401 of the registry at `url`: `challenge` is its `WWW-Authenticate`, `sent` the Authorization that was sent.

        Several such headers are joined by commas. `just_obtained` says that the credentials were obtained for this very
        request: then they are not enough, and the next stage follows. Raises SourceFailed when nothing is left to try.
        """
        async with self._lock:
            if sent == self.headers_for(url).get("Authorization"):  # else another request has renewed it in the meantime
                await self._obtain(url, challenge, just_obtained, fetch)

    async def _obtain(self, url: str, header: str, just_obtained: bool, fetch: Fetch) -> None:
        host = urlsplit(url).netloc
        challenges = _challenges(header)
        self.user_token_refused = False
        if self._user_token_header and self._origin.startswith("https:") and not url.startswith("https:"):
            self.user_token_refused = True
            advice = "leave `--insecure` out, or name the hub in HF_ENDPOINT as http://…"
            raise SourceFailed(f"{host} does not speak TLS, so the token of HF_TOKEN is not shown there; {advice}")
        self._origin = origin(url)
        # The realm of a hub's own pages is not a URL: no token server can issue another token for them.
        if "bearer" in challenges and (is_fetchable(challenges["bearer"].get("realm", "")) or not self._user_token_header):
            await self._obtain_token(challenges["bearer"], url, just_obtained, fetch)
            return
        if self._user_token_header:
            self.user_token_refused = True
            raise SourceFailed(f"{host} refused the token of HF_TOKEN for this model; check the token, and what it may read there")
        if "basic" not in challenges:
            named = ", ".join(challenges) or "none"
            raise SourceFailed(f"{host} refused access and named no way to get it that is known here ({named}); check the name")
        login = _login(url)
        if not login:
            raise SourceFailed(f"{host} asks for a user and a password; put them into ~/.netrc and try again")
        if just_obtained:
            raise SourceFailed(f"{host} refused the user and password of ~/.netrc; correct them and try again")
        self._authorization = f"Basic {login}"

    async def _obtain_token(self, challenge: dict[str, str], url: str, just_obtained: bool, fetch: Fetch) -> None:
        if just_obtained or not self._stage:
            self._stage += 1
        token = ""
        while not token:
            if self._stage > _STAGE_SIGNATURE:
                host = urlsplit(url).netloc
                login = "" if self._user_token_header or _login(url) else ": a user and a password for it belong into ~/.netrc"
                raise SourceFailed(f"{host} refused access to this model{self._key_hint}; check its name, or your account there{login}")
            token = await self._request_token(challenge, url, fetch)
            if not token:
                self._stage += 1
        self._authorization = f"Bearer {token}"

    async def _request_token(self, challenge: dict[str, str], url: str, fetch: Fetch) -> str:
        realm = is_fetchable(challenge.get("realm", ""))
        if not realm or (realm.startswith("http://") and url.startswith("https://")):
            named = without_credentials(challenge.get("realm", "")) or "nothing"
            raise SourceFailed(f"{urlsplit(url).netloc} names {named} for its tokens, which cannot be trusted; check the name")
        query = [(name, challenge[name]) for name in ("service",) if challenge.get(name)]
        query += [("scope", scope) for scope in _push_scopes(challenge.get("scope", "").split(), self._push_scope)]
        same_origin, signing = origin(realm) == origin(url), self._stage == _STAGE_SIGNATURE
        if signing and not same_origin:
            # A registry could name another host here, and use our signature for that host in our name.
            return ""
        if signing:
            query += [("ts", str(int(time.time()))), ("nonce", secrets.token_urlsafe(16))]
        target = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(query)}"
        headers = {}
        if signing:
            headers["Authorization"] = self._signature_header(target)
        elif same_origin and self._user_token_header:
            headers["Authorization"] = self._user_token_header
        elif login := _login(url) or (_login(realm) if _TOKEN_HOSTS.get(origin(url)) == origin(realm) else ""):
            headers["Authorization"] = f"Basic {login}"
        status, body = await fetch(target, headers)
        if status in (400, 401, 403):
            return ""
        if status != 200:
            raise SourceFailed(f"{without_credentials(realm)} gave no token ({status}); try again later")
        malformed = SourceFailed(f"{without_credentials(realm)} answered with something that is no token; check the name of the registry")
        try:
            grant = decode(body, _Grant)
        except InvalidJson:
            raise malformed from None
        token = grant.token or grant.access_token
        if token and not _TOKEN.fullmatch(token):
            raise malformed
        return token

    def _signature_header(self, target: str) -> str:
        identity = open_identity(self._key)
        self._key_hint = f", to the key ssh-ed25519 {identity.public_text} as well"
        empty_body_hash = b64encode(sha256(b"").hexdigest().encode()).decode()
        signature = identity.sign(f"GET,{target},{empty_body_hash}".encode())
        return f"{identity.public_text}:{b64encode(signature).decode()}"


def _push_scopes(scopes: list[str], push_scope: str) -> list[str]:
    """The scopes that a registry named; for a push, each repository's scope permits both pull and push."""
    if not push_scope:
        return scopes
    if not any(scope.startswith("repository:") for scope in scopes):
        scopes = [*scopes, f"{push_scope}:"]
    return [f"{scope.rpartition(':')[0]}:pull,push" if scope.startswith("repository:") else scope for scope in scopes]


def _challenges(text: str) -> dict[str, dict[str, str]]:
    """The fields of each challenge in a `WWW-Authenticate`, by scheme. All names are in lower case."""
    challenges: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for name, quoted, bare, scheme in _CHALLENGE_PART.findall(text):
        if scheme:
            fields = challenges.setdefault(scheme.lower(), {})
        else:
            fields[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or bare
    return challenges


def _login(url: str) -> str:
    """User and password of `.netrc` for the host of a URL, encoded for Basic authentication, or "". Raises SourceFailed."""
    path = Path(os.environ.get("NETRC") or Path(os.environ.get("HOME") or "~").expanduser() / ".netrc")
    try:
        entry = netrc.netrc(str(path)).authenticators(urlsplit(url).hostname or "")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise SourceFailed(f"{path} cannot be read (it is no UTF-8 text); correct it") from None
    except (OSError, netrc.NetrcParseError) as error:
        raise SourceFailed(f"{path} cannot be read ({getattr(error, 'msg', None) or getattr(error, 'strerror', '')}); correct it") from None
    return b64encode(f"{entry[0] or ''}:{entry[2] or ''}".encode()).decode() if entry else ""
