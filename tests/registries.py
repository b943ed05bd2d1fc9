"""Registries on loopback for the tests of pull and push: Debian's docker-registry, and a stand-in that fails on request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from aiohttp import web

from ndani.names import Name, parse
from ndani.store import Store, layout
from ranged import begin
from server import slowness, until

STEP = 1 << 16
#: bcrypt of "open sesame", for the user "aladdin".
HTPASSWD = "aladdin:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"


def make_model(weights: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A manifest, indented unlike any that ndani writes, and its blobs by digest."""
    blobs = {layout.digest_of(content): content for content in (b'{"model_format":"gguf"}', weights, b"be nice")}
    config, model, licence = ({"digest": digest, "size": len(content)} for digest, content in blobs.items())
    manifest = {
        "schemaVersion": 2,
        "mediaType": layout.MANIFEST,
        "config": {"mediaType": layout.CONFIG, **config},
        "layers": [{"mediaType": layout.MODEL, **model}, {"mediaType": layout.LICENSE, **licence}],
    }
    return json.dumps(manifest, indent=3).encode(), blobs


def put_model(store: Store, name: Name, weights: bytes) -> bytes:
    """Put the model of `make_model` into a store; its manifest."""
    manifest, blobs = make_model(weights)
    for content in blobs.values():
        store.blobs.put(content)
    store.commit(name, manifest)
    return manifest


class Debian:
    """`docker-registry serve` with its data and its log in a folder."""

    def __init__(self, folder: Path, *, tls: bool = False, password: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.tls, self.log_path = folder, tls, folder / "log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.certificate = folder / "cert.pem"
        settings: dict[str, object] = {
            "version": 0.1,
            "log": {"accesslog": {"disabled": False}, "level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": "s"},
        }
        if tls:
            key = folder / "key.pem"
            make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
            make += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(self.certificate)]
            subprocess.run(make, check=True, capture_output=True)
            settings["http"] |= {"tls": {"certificate": str(self.certificate), "key": str(key)}}  # type: ignore[operator]
        if password:
            (folder / "htpasswd").write_text(HTPASSWD)
            settings["auth"] = {"htpasswd": {"realm": "here", "path": str(folder / "htpasswd")}}
        self.settings = folder / "config.yml"
        self.settings.write_text(json.dumps(settings))  # JSON is YAML
        self.start()

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", str(self.settings)], stdout=log, stderr=log)

        def answers() -> bool:
            assert self.process.poll() is None, self.log_path.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 10):
                return True
            return False

        until(answers, "the registry answers")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def put(self, name: Name, weights: bytes) -> bytes:
        """Upload a model by plain requests, so that a test of pull does not depend on push; its manifest."""
        manifest, blobs = make_model(weights)
        with httpx.Client(base_url=f"http://{self.host}/v2/{name.namespace}/{name.model}", trust_env=False) as client:
            for digest, content in blobs.items():
                place = client.post("/blobs/uploads/").headers["Location"]
                assert client.put(place, params={**httpx.URL(place).params, "digest": digest}, content=content).status_code == 201
            assert client.put(f"/manifests/{name.tag}", content=manifest, headers={"Content-Type": layout.MANIFEST}).status_code == 201
        return manifest

    def settle(self, quiet: float = 0.8) -> None:
        """Wait until the log stops growing: a request is logged when it ends, an interrupted one a moment later."""
        size, since, quiet = -1, time.monotonic(), quiet * min(slowness(), 8)
        while time.monotonic() - since < quiet:
            if (now := self.log_path.stat().st_size) != size:
                size, since = now, time.monotonic()
            time.sleep(0.05)

    def requests(self, method: str, path: str = "") -> list[tuple[int, int]]:
        """Status and size of the responses to such requests, in the order of the access log."""
        line = re.compile(rf'"{method} /v2/\S*{re.escape(path)}\S* HTTP/1.1" (\d+) (\d+)')
        return [(int(status), int(count)) for status, count in line.findall(self.log_path.read_text(errors="replace"))]


def no_debian() -> str:
    """Why docker-registry cannot run here; empty if it can."""
    return "" if shutil.which("docker-registry") else "needs Debian's docker-registry: apt-get install docker-registry"


@dataclass
class StandIn:
    """A registry that serves one model and accepts no push. Its fields say how it misbehaves."""

    weights: bytes
    ranges: bool = True
    token: str = ""  # the bearer token that requests need; empty: none
    signed: bool = False  # a token is issued only to a signed request
    lives: int = -1  # how many requests a token is valid for; -1: all
    busy: int = 0  # the first requests are answered 429, this many of them
    retry_after: str = "0"
    elsewhere: str = ""  # the address that blobs are redirected to
    flip: bool = False  # one bit of the weights is wrong
    shorten: int = 0  # this many bytes are missing at the end of the weights
    stall: int = 0  # this many responses with weights stall half-way
    ends_at: int = -1  # responses stall at this byte of the weights; -1: none does
    never: bool = False  # every token is refused
    breaks: int = 0  # this many responses with weights break off half-way
    status: int = 0  # the status of every response; 0: as it should be
    cuts_manifest: bool = False  # the connection closes within the manifest
    pause: float = 0.0  # seconds between two pieces of a blob
    host: str = ""
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Authorization
    spans: list[list[int]] = field(default_factory=list)  # first byte and number of bytes of each response with weights
    sent: Counter[str] = field(default_factory=Counter)  # bytes by digest
    tokens: int = 0  # how many were issued
    at_once: int = 0  # blobs that are being sent now
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.manifest, self.blobs = make_model(self.weights)
        self.model = layout.digest_of(self.weights)

    @property
    def name(self) -> Name:
        return parse(f"{self.host}/ns/tiny:1")

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/v2/", self.root)
        app.router.add_get("/token", self.give_token)
        app.router.add_get("/v2/ns/tiny/manifests/1", self.give_manifest)
        app.router.add_get("/v2/ns/tiny/blobs/{digest}", self.give_blob)
        app.router.add_get("/elsewhere/{digest}", self.give_blob)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner

    def note(self, request: web.Request) -> None:
        self.seen.append((request.method, request.path, request.headers.get("Authorization", "")))

    def refusal(self, request: web.Request) -> web.Response | None:
        self.note(request)
        if self.status:
            return web.Response(status=self.status)
        if self.busy:
            self.busy -= 1
            return web.Response(status=429, headers={"Retry-After": self.retry_after})
        if request.path.startswith("/elsewhere") or not self.token:
            return None
        good = request.headers.get("Authorization") == f"Bearer {self.token}{self.tokens}" and self.lives != 0 and not self.never
        self.lives -= 1
        if good:
            return None
        challenge = f'Bearer realm="http://{self.host}/token",service="here",scope="repository:ns/tiny:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def root(self, request: web.Request) -> web.Response:
        self.note(request)
        return web.Response()

    async def give_token(self, request: web.Request) -> web.Response:
        self.note(request)
        if self.signed and not verified(request, self.host):
            return web.Response(status=401)
        self.tokens += 1
        self.lives = 4 if self.lives != -1 else -1
        return web.json_response({"token": f"{self.token}{self.tokens}"})

    async def give_manifest(self, request: web.Request) -> web.StreamResponse:
        if refused := self.refusal(request):
            return refused
        if self.cuts_manifest:
            reply = web.StreamResponse()
            reply.content_length = len(self.manifest)
            await reply.prepare(request)
            await reply.write(self.manifest[:50])
            assert request.transport
            request.transport.close()
            return reply
        return web.Response(body=self.manifest, content_type=layout.MANIFEST)

    async def give_blob(self, request: web.Request) -> web.StreamResponse:
        if refused := self.refusal(request):
            return refused
        digest = request.match_info["digest"]
        if self.elsewhere and not request.path.startswith("/elsewhere"):
            return web.Response(status=307, headers={"Location": f"{self.elsewhere}/elsewhere/{digest}"})
        content = bytearray(self.blobs[digest])
        if digest == self.model:
            content[len(content) // 2] ^= self.flip
            content = content[: len(content) - self.shorten]
        reply, first, wanted = await begin(request, bytes(content), ranges=self.ranges)
        await self.send(request, reply, digest, first, wanted)
        return reply

    async def send(self, request: web.Request, reply: web.StreamResponse, digest: str, first: int, content: bytes) -> None:
        sent = 0
        span = [first, 0]
        if digest == self.model:
            self.spans.append(span)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            while sent < len(content):
                if digest == self.model and sent >= len(content) // 2:
                    if self.stall:
                        self.stall -= 1
                        await asyncio.sleep(30)
                    if self.breaks:
                        self.breaks -= 1
                        assert request.transport
                        request.transport.close()
                        return
                if digest == self.model and 0 <= self.ends_at <= first + sent:
                    await asyncio.sleep(30)
                piece = content[sent : sent + STEP]
                await reply.write(piece)
                sent += len(piece)
                span[1] = sent
                self.sent[digest] += len(piece)
                await asyncio.sleep(self.pause)
        except ConnectionError:  # the client has gone
            return
        finally:
            self.at_once -= 1


def verified(request: web.Request, host: str) -> bool:
    """Whether a token request is signed as Ollama signs it, checked with OpenSSL."""
    key, _, signature = request.headers.get("Authorization", "").partition(":")
    wire = base64.b64decode(key)
    nothing = base64.b64encode(hashlib.sha256(b"").hexdigest().encode()).decode()
    message = f"GET,http://{host}{request.raw_path},{nothing}".encode()
    good = wire.startswith(b"\0\0\0\x0bssh-ed25519\0\0\0 ") and openssl_verifies(wire[19:], message, base64.b64decode(signature))
    return good and {"ts", "nonce"} <= set(request.query)


def openssl_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether OpenSSL accepts an ed25519 signature."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        der = bytes.fromhex("302a300506032b6570032100") + public
        text = base64.b64encode(der).decode()
        (place / "key").write_text(f"-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
        (place / "message").write_bytes(message)
        (place / "signature").write_bytes(signature)
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key", "-rawin", "-in", "message", "-sigfile", "signature"]
        return subprocess.run(command, cwd=place, capture_output=True, check=False).returncode == 0
