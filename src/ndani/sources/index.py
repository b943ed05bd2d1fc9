"""The user's own package index: which one it is, and where it has a file.

pip is asked for its configuration, so that files, environment, proxies, certificates and find-links all count as they
do for `pip install`. Its own download is of no use here: where an index has no separate metadata, even `--dry-run`
fetches the whole wheel. So the index's page is read here (PEP 691 and 503), through `http`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ensurepip
import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

import msgspec

from ndani.errors import Misconfigured, NotFound, SourceFailed
from ndani.sources import File
from ndani.sources.http import Access, HttpClient
from ndani.sources.urls import without_credentials
from ndani.untrusted_json import InvalidJson, decode

_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_LINE = re.compile(r"^(?P<section>[^.\s]+)\.(?P<key>[a-z-]+)=(?P<value>.*)$", re.MULTILINE)
_DEFAULT = re.compile(r"--index-url\s+<url>.*?\(default\s+(\S+?)\)", re.DOTALL)
#: The later overrules the earlier, as in pip.
_SECTIONS = ("global", "download", "install", ":env:")


@dataclass(frozen=True, slots=True)
class Index:
    """Where the user's packages come from: folders and pages of links first, then indexes, in pip's order."""

    folders: tuple[Path, ...]
    pages: tuple[str, ...]
    indexes: tuple[str, ...]
    access: Access

    async def locate(self, file: File, client: HttpClient) -> str | Path:
        """The URL, or the path on this machine, of exactly this file. Raises NotFound, SourceFailed, Offline, Interrupted."""
        for folder in self.folders:
            path = folder / file.name
            if path.is_file() and path.stat().st_size == file.size:
                return path
        missing = ""
        for page in (*self.pages, *(f"{index.rstrip('/')}/{file.project}/" for index in self.indexes)):
            try:
                links = _links(*await client.get_text(page, _ACCEPT))
            except NotFound as error:
                missing = str(error)
                continue
            url, sha256 = links.get(file.name, ("", None))
            if url and sha256 not in (None, file.sha256):
                raise SourceFailed(
                    f"{without_credentials(page)} has another file named {file.name} than the catalogue knows; use another index"
                )
            if url:
                return url
        raise NotFound(missing or f"no index has {file.name}; look at `pip config list`, or put the file into a find-links folder")


async def ask_pip() -> Index:
    """The index as pip is configured for this user. Raises Misconfigured when there is no pip to ask."""
    written, usage = await asyncio.gather(_pip("config", "list"), _pip("help", "install"))
    return read_configuration(written, usage)


def read_configuration(written: str, usage: str) -> Index:
    """The index that pip's own words name: what `pip config list` and `pip help install` printed. Raises Misconfigured."""
    found: dict[str, str] = {}
    for section in _SECTIONS:
        for line in _LINE.finditer(written):
            if line["section"] == section and (value := _value(line["value"])):
                found[line["key"]] = value
    default = _DEFAULT.search(usage)
    main = found.get("index-url") or (default[1] if default else "")
    indexes = [] if _true(found.get("no-index", "")) else [main, *found.get("extra-index-url", "").split()]
    links = found.get("find-links", "").split()
    pages = [place for place in links if place.startswith(("http://", "https://"))]
    places = [*pages, *filter(None, indexes)]
    if not places and not links:
        raise Misconfigured("pip has no index to pull from (no-index is set); set index-url or find-links in its configuration")
    access = Access(
        proxy=found.get("proxy", ""),
        certificates=found.get("cert", ""),
        client_certificate=found.get("client-cert", ""),
        trusted_hosts=tuple(found.get("trusted-host", "").split()),
        logins={where: login for place in places for where, login in _login(place)},
    )
    folders = tuple(_folder(place) for place in links if place not in pages)
    return Index(folders, tuple(pages), tuple(filter(None, indexes)), access)


def _folder(place: str) -> Path:
    return Path(url2pathname(urlsplit(place).path) if place.startswith("file:") else place).expanduser()


async def _pip(*words: str) -> str:
    # -P: a file called pip.py in the folder we happen to be in is not pip.
    env = {**os.environ, "COLUMNS": "1000", "PIP_NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}
    child = await asyncio.create_subprocess_exec(sys.executable, "-P", *_where_pip_is(), *words, stdin=-3, stdout=-1, stderr=-3, env=env)
    said, _ = await child.communicate()
    if child.returncode:
        raise Misconfigured("pip cannot be asked for its configuration; see what `python -m pip config list` says")
    return said.decode("utf-8", "replace")


def _where_pip_is() -> list[str]:
    """pip of this Python; where an installer left it out, the one that Python carries for making environments."""
    if importlib.util.find_spec("pip"):
        return ["-m", "pip"]
    wheels = sorted((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    if not wheels:
        raise Misconfigured("pip is needed to find the package index, and this Python has none; install pip beside ndani")
    return [str(wheels[-1] / "pip")]


def _value(text: str) -> str:
    try:
        return str(ast.literal_eval(text)).strip()
    except (ValueError, SyntaxError):
        return text.strip()


def _true(text: str) -> bool:
    return text.lower() in {"1", "true", "yes", "on", "y", "t"}


def _login(url: str) -> list[tuple[str, tuple[str, str]]]:
    parts = urlsplit(url)
    if not parts.username:
        return []
    return [(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", (unquote(parts.username), unquote(parts.password or "")))]


class _Hashes(msgspec.Struct, frozen=True):
    sha256: str | None = None


class _Listed(msgspec.Struct):
    """A file as a PEP 691 page has it."""

    filename: str
    url: str
    hashes: _Hashes = _Hashes()


class _Listing(msgspec.Struct):
    files: tuple[_Listed, ...]


class _Anchors(HTMLParser):
    """The links of a PEP 503 page."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.base, self.found = url, dict[str, tuple[str, str | None]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href")
        if not link:
            return
        with contextlib.suppress(ValueError):  # half a bracket: no address, and so no link
            self._take(tag, link)

    def _take(self, tag: str, link: str) -> None:
        if tag == "base":
            self.base = urljoin(self.base, link)
        elif tag == "a":
            url, _, fragment = urljoin(self.base, link).partition("#")
            sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
            self.found[unquote(urlsplit(url).path.rpartition("/")[2])] = (url, sha256)


def _links(text: str, media_type: str, url: str) -> dict[str, tuple[str, str | None]]:
    """By file name: its URL, and the sha256 that the page announces for it (or None)."""
    if media_type.endswith("json"):
        try:
            files = decode(text.encode("utf-8", "replace"), _Listing).files
            return {file.filename: (urljoin(url, file.url), file.hashes.sha256) for file in files}
        except (InvalidJson, ValueError):  # half a bracket in an address
            raise SourceFailed(
                f"{without_credentials(url)} answered with a page that is no package index; check `pip config list`"
            ) from None
    page = _Anchors(url)
    try:
        page.feed(text)
    except AssertionError:  # Python's reader of HTML takes some of what is none for a fault of its own
        raise SourceFailed(f"{without_credentials(url)} answered with a page that is no package index; check `pip config list`") from None
    return page.found
