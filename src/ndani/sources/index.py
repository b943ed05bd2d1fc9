"""The user's own package index: which one it is, and the URL of a file there.

pip reports its configuration, so that files, environment, proxies, certificates and find-links all apply as they do for
`pip install`. pip's own download does not help here: where an index has no separate metadata, even `--dry-run` fetches the
whole wheel. So this module reads the index's pages (PEP 691 and 503) itself, through `http`.
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
from asyncio.subprocess import DEVNULL, PIPE
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
_CONFIG_LINE = re.compile(r"^(?P<section>[^.\s]+)\.(?P<key>[a-z-]+)=(?P<value>.*)$", re.MULTILINE)
_DEFAULT_INDEX = re.compile(r"--index-url\s+<url>.*?\(default\s+(\S+?)\)", re.DOTALL)
#: A later section overrides an earlier one, as in pip.
_SECTIONS = ("global", "download", "install", ":env:")


@dataclass(frozen=True, slots=True)
class Index:
    """The sources of the user's packages, in pip's order: folders and pages of links, then indexes."""

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
        reason = ""
        for page in (*self.pages, *(f"{index.rstrip('/')}/{file.project}/" for index in self.indexes)):
            try:
                links = _links(*await client.get_text(page, _ACCEPT))
            except NotFound as error:
                reason = str(error)
                continue
            url, sha256 = links.get(file.name, ("", None))
            if url and sha256 not in (None, file.sha256):
                raise SourceFailed(
                    f"{without_credentials(page)} has another file named {file.name} than the catalogue knows; use another index"
                )
            if url:
                return url
        raise NotFound(reason or f"no index has {file.name}; look at `pip config list`, or put the file into a find-links folder")


async def ask_pip() -> Index:
    """The index that pip is configured to use. Raises Misconfigured when pip cannot be run."""
    config_list, install_help = await asyncio.gather(_pip("config", "list"), _pip("help", "install"))
    return read_configuration(config_list, install_help)


def read_configuration(config_list: str, install_help: str) -> Index:
    """The index from the output of `pip config list` and `pip help install`. Raises Misconfigured."""
    options: dict[str, str] = {}
    for section in _SECTIONS:
        for line in _CONFIG_LINE.finditer(config_list):
            if line["section"] == section and (value := _value(line["value"])):
                options[line["key"]] = value
    default = _DEFAULT_INDEX.search(install_help)
    index_url = options.get("index-url") or (default[1] if default else "")
    indexes = [] if _is_true(options.get("no-index", "")) else [index_url, *options.get("extra-index-url", "").split()]
    links = options.get("find-links", "").split()
    pages = [link for link in links if link.startswith(("http://", "https://"))]
    urls = [*pages, *filter(None, indexes)]
    if not urls and not links:
        raise Misconfigured("pip has no index to pull from (no-index is set); set index-url or find-links in its configuration")
    access = Access(
        proxy=options.get("proxy", ""),
        certificates=options.get("cert", ""),
        client_certificate=options.get("client-cert", ""),
        trusted_hosts=tuple(options.get("trusted-host", "").split()),
        logins={server: login for link in urls for server, login in _login(link)},
    )
    folders = tuple(_folder(link) for link in links if link not in pages)
    return Index(folders, tuple(pages), tuple(filter(None, indexes)), access)


def _folder(link: str) -> Path:
    return Path(url2pathname(urlsplit(link).path) if link.startswith("file:") else link).expanduser()


async def _pip(*arguments: str) -> str:
    # -P: a file pip.py in the current folder is not pip.
    env = {**os.environ, "COLUMNS": "1000", "PIP_NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONIOENCODING": "utf-8"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", *_pip_command(), *arguments, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, env=env
    )
    output, _ = await child.communicate()
    if child.returncode:
        raise Misconfigured("pip cannot be asked for its configuration; see what `python -m pip config list` says")
    return output.decode("utf-8", "replace")


def _pip_command() -> list[str]:
    """The arguments that run this Python's pip, or, where it is not installed, the one in the `ensurepip` package."""
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


def _is_true(text: str) -> bool:
    return text.lower() in {"1", "true", "yes", "on", "y", "t"}


def _login(url: str) -> list[tuple[str, tuple[str, str]]]:
    parts = urlsplit(url)
    if not parts.username:
        return []
    return [(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", (unquote(parts.username), unquote(parts.password or "")))]


class _Hashes(msgspec.Struct, frozen=True):
    sha256: str | None = None


class _FileEntry(msgspec.Struct):
    """A file on a PEP 691 page."""

    filename: str
    url: str
    hashes: _Hashes = _Hashes()


class _ProjectPage(msgspec.Struct):
    files: tuple[_FileEntry, ...]


class _LinkParser(HTMLParser):
    """The links of a PEP 503 page."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.base, self.links = url, dict[str, tuple[str, str | None]]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        link = dict(attrs).get("href")
        if not link:
            return
        with contextlib.suppress(ValueError):  # an invalid URL, such as one with half a bracket
            self._add_link(tag, link)

    def _add_link(self, tag: str, link: str) -> None:
        if tag == "base":
            self.base = urljoin(self.base, link)
        elif tag == "a":
            url, _, fragment = urljoin(self.base, link).partition("#")
            sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
            self.links[unquote(urlsplit(url).path.rpartition("/")[2])] = (url, sha256)


def _links(text: str, media_type: str, url: str) -> dict[str, tuple[str, str | None]]:
    """By file name: the URL, and the sha256 that the page gives for it (or None)."""
    if media_type.endswith("json"):
        try:
            files = decode(text.encode("utf-8", "replace"), _ProjectPage).files
            return {file.filename: (urljoin(url, file.url), file.hashes.sha256) for file in files}
        except (InvalidJson, ValueError):  # an invalid URL, such as one with half a bracket
            raise SourceFailed(
                f"{without_credentials(url)} answered with a page that is no package index; check `pip config list`"
            ) from None
    page = _LinkParser(url)
    try:
        page.feed(text)
    except AssertionError:  # html.parser asserts on some malformed pages
        raise SourceFailed(f"{without_credentials(url)} answered with a page that is no package index; check `pip config list`") from None
    return page.links
