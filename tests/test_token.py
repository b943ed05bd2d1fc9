"""Who is shown a login, a token or a signature, and who is not; how a registry may ask; what it may not say."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from aiohttp import web

from ndani.errors import BadName, Misconfigured, SourceFailed
from ndani.names import parse
from ndani.sources import open_registry
from ndani.sources.registry import Registry, error_clause
from ndani.sources.retry import RetryPolicy
from ndani.sources.token import Credentials
from ndani.sources.urls import is_fetchable, origin
from registries import make_model

pytestmark = pytest.mark.usefixtures("home")

MANIFEST, _ = make_model(b"GGUF")
LOGIN = "Basic " + b64encode(b"me:secret").decode()


class Desk:
    """A registry that asks who we are with these headers, and takes anything for an answer; it gives out tokens too."""

    def __init__(self, *challenges: str) -> None:
        self.challenges, self.token = challenges, "won"
        self.grant: object = None  # what is given instead of a token
        self.mute = False  # how to ask for a token is said at the front door only
        self.elsewhere = ""  # where tokens are given out by now
        self.location = self.retry_after = ""
        self.seen: list[tuple[str, str]] = []  # path and query, Authorization
        self.host = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v2/{rest:.*}", self.manifest)
        app.router.add_get("/token", self.give)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def manifest(self, request: web.Request) -> web.Response:
        shown = request.headers.get("Authorization", "")
        self.seen.append((request.path_qs, shown))
        if self.location:
            return web.Response(status=307, headers={"Location": self.location})
        if self.retry_after:
            return web.Response(status=429, headers={"Retry-After": self.retry_after})
        if shown or not self.challenges:
            return web.Response(body=MANIFEST)
        refusal = web.Response(status=401)
        if self.mute and request.path != "/v2/":
            return refusal
        for challenge in self.challenges:
            refusal.headers.add("WWW-Authenticate", challenge.format(host=self.host))
        return refusal

    async def give(self, request: web.Request) -> web.Response:
        self.seen.append((request.path_qs, request.headers.get("Authorization", "")))
        if self.elsewhere:
            return web.Response(status=301, headers={"Location": f"{self.elsewhere}?{request.query_string}"})
        return web.json_response({"token": self.token} if self.grant is None else self.grant)


@pytest.fixture
async def desks() -> AsyncIterator[tuple[Desk, Desk]]:
    async with AsyncExitStack() as stack:
        both = Desk(), Desk()
        for desk in both:
            stack.push_async_callback((await desk.start()).cleanup)
        yield both


async def manifest(desk: Desk) -> bytes:
    registry = Registry(
        parse(f"{desk.host}/ns/tiny:1"), insecure=True, offline=False, key=Path("key"), retries=RetryPolicy(tries=2, first_delay=0.01)
    )
    try:
        return await registry.manifest()
    finally:
        await registry.close()


def log_in(home: Path, host: str) -> None:
    (home / ".netrc").write_text(f"machine {host} login me password secret\n")


async def test_a_login_of_another_place_is_never_used_there_because_a_registry_names_it_for_its_tokens(
    desks: tuple[Desk, Desk], home: Path
) -> None:
    evil, victim = desks
    realm = f"http://localhost:{victim.host.rpartition(':')[2]}/token"
    evil.challenges = (f'Bearer realm="{realm}",service="victim",scope="repository:private:pull,push"',)
    log_in(home, "localhost")
    assert await manifest(evil) == MANIFEST, "a token for anybody may come from another place"
    assert [shown for _, shown in victim.seen] == [""]
    assert evil.seen[-1][1] == "Bearer won"


async def test_the_login_for_a_registry_goes_to_whom_it_names_for_its_tokens(desks: tuple[Desk, Desk], home: Path) -> None:
    """As with a GitLab of one's own: the registry could ask for that login itself."""
    registry, desk = desks
    registry.challenges = (f'Bearer realm="http://localhost:{desk.host.rpartition(":")[2]}/token",service="s"',)
    log_in(home, "127.0.0.1")
    assert await manifest(registry) == MANIFEST
    assert [shown for _, shown in desk.seen] == [LOGIN]


async def test_a_login_is_used_where_the_registry_gives_out_its_own_tokens(desks: tuple[Desk, Desk], home: Path) -> None:
    desks[0].challenges = ('Bearer realm="http://{host}/token"',)
    log_in(home, "127.0.0.1")
    assert await manifest(desks[0]) == MANIFEST
    assert [shown for _, shown in desks[0].seen if shown] == [LOGIN, "Bearer won"]


@pytest.mark.parametrize(
    "challenges",
    [
        ('Basic realm="here"', 'Bearer realm="http://{host}/token",service="s"'),
        ('Negotiate, Basic realm="a, b", Bearer realm="http://{host}/token",service="s"',),
        ("bearer Realm=http://{host}/token, Service=s",),
        ('Basic realm="the \\"inner\\" one", Bearer realm="http://{host}/token",service="s"',),
    ],
)
async def test_however_a_registry_words_its_question(desks: tuple[Desk, Desk], challenges: tuple[str, ...]) -> None:
    desks[0].challenges = challenges
    assert await manifest(desks[0]) == MANIFEST
    assert desks[0].seen[-2:] == [("/token?service=s", ""), ("/v2/ns/tiny/manifests/1", "Bearer won")]


@pytest.mark.parametrize(
    "grant",
    [
        {"token": None, "access_token": "won"},
        {"token": "won", "access_token": None, "expires_in": None},
        {"token": "", "access_token": "won", "refresh_token": None},
    ],
)
async def test_null_in_an_answer_is_nothing(desks: tuple[Desk, Desk], grant: object) -> None:
    desks[0].challenges, desks[0].grant = ('Bearer realm="http://{host}/token"',), grant
    assert await manifest(desks[0]) == MANIFEST
    assert desks[0].seen[-1][1] == "Bearer won"


@pytest.mark.parametrize("grant", [{"token": 5}, {"token": ["won"]}, {"token": {}, "access_token": "won"}, ["won"], "won", 5])
async def test_a_token_of_another_type_is_one_sentence(desks: tuple[Desk, Desk], grant: object) -> None:
    desks[0].challenges, desks[0].grant = ('Bearer realm="http://{host}/token"',), grant
    with pytest.raises(SourceFailed, match="answered with something that is no token"):
        await manifest(desks[0])


async def test_who_says_only_at_the_front_door_how_to_ask_is_asked_there(desks: tuple[Desk, Desk]) -> None:
    """With the scope of this model: what is named there is none, or that of an example (GHCR)."""
    desks[0].challenges, desks[0].mute = ('Bearer realm="http://{host}/token",service="s",scope="repository:user/image:pull"',), True
    assert await manifest(desks[0]) == MANIFEST
    assert desks[0].seen[-2][0] == "/token?service=s&scope=repository%3Ans%2Ftiny%3Apull"


async def test_a_place_for_tokens_may_have_moved(desks: tuple[Desk, Desk], home: Path) -> None:
    registry, other = desks
    registry.challenges, registry.elsewhere = ('Bearer realm="http://{host}/token"',), f"http://{other.host}/token"
    log_in(home, "127.0.0.1")
    assert await manifest(registry) == MANIFEST
    assert registry.seen[1][1] == LOGIN
    assert [shown for _, shown in other.seen] == [""], "what was shown there is for nobody else"


@pytest.mark.parametrize(
    ("named", "asked"),
    [
        ("repository:ns/tiny:pull", ["repository:ns/tiny:pull,push"]),
        ("repository:team/ns/tiny:pull registry:catalog:*", ["repository:team/ns/tiny:pull,push", "registry:catalog:*"]),
        ("", ["repository:ns/tiny:pull,push"]),
    ],
)
async def test_a_push_asks_for_a_token_that_is_good_for_one(tmp_path: Path, named: str, asked: list[str]) -> None:
    seen = []

    async def ask(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        seen.append(parse_qs(urlsplit(url).query).get("scope"))
        return 200, b'{"token":"won"}'

    credentials = Credentials(tmp_path / "key", "", origin("https://h/v2/"))
    credentials.request_push_access("repository:ns/tiny")
    await credentials.authenticate("https://h/v2/x", f'Bearer realm="https://h/token",scope="{named}"', None, False, ask)
    assert seen == [asked]


@pytest.mark.parametrize("challenge", ['Bearer realm="http://{host}/token"', 'Basic realm="x"'])
async def test_a_token_that_is_for_a_place_with_tls_is_not_shown_without_it(desks: tuple[Desk, Desk], challenge: str) -> None:
    """Whoever is between us and the hub could close its door for TLS, and answer himself."""
    desk, _ = desks
    desk.challenges = (challenge,)
    registry = Registry(parse(f"{desk.host}/ns/tiny:1"), insecure=True, offline=False, key=Path("key"), token="hf_secret")
    try:
        with pytest.raises(SourceFailed, match="does not speak TLS, so the token of HF_TOKEN is not shown there; leave `--insecure` out"):
            await registry.manifest()
    finally:
        await registry.close()
    assert not any(shown for _, shown in desk.seen)


async def test_the_two_names_of_the_hub_are_one_place(tmp_path: Path) -> None:
    asked = []

    async def ask(url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        asked.append((url, headers.get("Authorization")))
        return 200, b'{"token":"won"}'

    credentials = Credentials(tmp_path / "key", "hf_secret", origin("https://hf.co/v2/u/r"))
    door, page = "https://hf.co/v2/u/r/manifests/q", "https://huggingface.co/api/models/u/r"
    challenge = 'Bearer realm="https://huggingface.co/v2/token",service="s",scope="repository:u/r:pull"'
    await credentials.authenticate(door, challenge, "Bearer hf_secret", False, ask)
    assert asked == [("https://huggingface.co/v2/token?service=s&scope=repository%3Au%2Fr%3Apull", "Bearer hf_secret")]
    assert credentials.headers_for(door) == {"Authorization": "Bearer won"}
    assert credentials.headers_for(page) == {"Authorization": "Bearer hf_secret"}, "not lost, also where the hub redirects to itself"
    assert credentials.headers_for("https://cdn.example/x") == credentials.headers_for("http://hf.co/x") == {}
    with pytest.raises(SourceFailed, match="refused the token of HF_TOKEN for this model; check the token"):
        await credentials.authenticate(page, 'Bearer realm="Authentication required", charset="UTF-8"', "Bearer hf_secret", True, ask)


@pytest.mark.parametrize(
    ("switches", "sentence"),
    [
        ({"location": "https://[oops/x"}, "no address that can be asked"),
        ({"location": "http://127.0.0.1:99999/x"}, "no address that can be asked"),
        ({"location": "file:///etc/passwd"}, "no address that can be asked"),
        ({"retry_after": "²"}, "answered 429"),
        ({"retry_after": "9" * 5000}, "answered 429"),
        ({"challenges": ('Bearer realm="https://[x/token"',)}, "names .* for its tokens, which cannot be trusted"),
        ({"challenges": ("Bearer",)}, "names nothing for its tokens"),
        ({"challenges": ("Negotiate",)}, r"no way to get it that is known here \(negotiate\)"),
        ({"challenges": ('Bearer realm="http://{host}/token"',), "token": "a\r\nX: 1"}, "something that is no token"),
        ({"challenges": ('Basic realm="x"',)}, "asks for a user and a password"),
    ],
)
async def test_what_a_registry_may_not_say_is_one_sentence(desks: tuple[Desk, Desk], switches: dict[str, str], sentence: str) -> None:
    for switch, value in switches.items():
        setattr(desks[0], switch, value)
    with pytest.raises(SourceFailed, match=sentence) as caught:
        async with asyncio.timeout(20):
            await manifest(desks[0])
    assert "\n" not in str(caught.value)
    if "location" in switches:
        assert len(desks[0].seen) == 1, "said at once"


async def test_a_netrc_that_cannot_be_read_is_said(desks: tuple[Desk, Desk], home: Path) -> None:
    desks[0].challenges = ('Basic realm="x"',)
    (home / ".netrc").write_bytes("machine 127.0.0.1 login me password Schl\u00fcssel\n".encode("latin-1"))
    with pytest.raises(SourceFailed, match=r"\.netrc cannot be read \(it is no UTF-8 text\); correct it"):
        await manifest(desks[0])


@pytest.mark.parametrize("name", ["127.0.0.1:99999/a/b", "host:abc/a/b", "host:1:2/a/b"])
def test_a_host_without_a_port_that_can_be_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="is no host and port to pull from or push to; write it as"):
        open_registry(parse(name), offline=False)


def test_settings_of_the_hub_that_cannot_be_used_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:99999")
    with pytest.raises(Misconfigured, match=r"HF_ENDPOINT is 'http://127.0.0.1:99999', which is no address"):
        open_registry(parse("hf.co/a/b"), offline=False)
    monkeypatch.delenv("HF_ENDPOINT")
    monkeypatch.setenv("HF_TOKEN", "hf_a\nb")
    with pytest.raises(Misconfigured, match="HF_TOKEN has characters that no token has"):
        open_registry(parse("hf.co/a/b"), offline=False)


def test_addresses() -> None:
    assert is_fetchable("https://h/a b\u00e9?q=%20") == "https://h/a%20b%C3%A9?q=%20", "what is encoded stays as it is"
    for odd in ("ftp://h/", "h/x", "", "http://h:0/", "http://[::1", "http://:80/"):
        assert not is_fetchable(odd), odd
    assert origin("HTTPS://HF.co/x") == origin("https://huggingface.co:443/") != origin("https://huggingface.co:444/")


@pytest.mark.parametrize(
    ("body", "clause"),
    [
        ({"errors": [{"code": "DENIED", "message": "not you"}]}, " (not you)"),
        ({"errors": [{"code": "DENIED", "message": None}]}, " (DENIED)"),
        ({"errors": None, "error": "not you"}, " (not you)"),
        ({"errors": [None], "message": "not you"}, " (not you)"),
        ({"errors": [], "error": {"code": 5}}, ""),
        ({"errors": {"message": 5}}, ""),
        ([], ""),
    ],
)
def test_what_an_error_says(body: object, clause: str) -> None:
    assert error_clause(msgspec.json.encode(body)) == clause
