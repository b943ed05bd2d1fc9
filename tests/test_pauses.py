"""No request holds up the others: the longest pause of the real server's event loop under each that is large or odd."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import pauses
from ndani import names
from ndani.store import Store
from server import SECONDS_OF_WORK, Server
from stores import EMBEDDER, REAL, link, put_echo

pytestmark = [pytest.mark.slow, pytest.mark.weights]

#: Seconds of a desk: for reading what somebody sends, which is read at once, and for writing an answer.
LONGEST, LONGEST_WRITTEN = 0.045, 0.025
ONE = {"raw": True, "stream": False, "options": {"num_predict": 1}}


class Watched(Server):
    """A server with a ticker on its loop."""

    program = (pauses.__file__,)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path, minilm: Path) -> Iterator[tuple[Server, pauses.Pauses]]:
    folder = tmp_path_factory.mktemp("pauses")
    store = link(minilm, link(models, folder / "models"))
    put_echo(store, "echo")
    manifest = Store(store).layout.manifest(names.parse("echo"))
    for number in range(1500):
        shutil.copy(manifest, manifest.with_name(f"t{number}"))
    with pauses.watched(folder) as (found, environment):
        started = Watched(folder, store, environment)
        try:
            started.ask("/api/embed", {"model": EMBEDDER, "input": "x"})
            started.ask("/api/generate", {"model": "echo", "prompt": "x", **ONE})
            started.http.get("/api/tags")
            yield started, found
        finally:
            started.close()


def of_processor(seconds: float) -> float:
    """Seconds of this machine's processors for so many of a desk's; who else wants them does not matter: only our own time counts."""
    began = time.thread_time()
    sum(number for number in range(1_000_000))
    return seconds * max(1.0, (time.thread_time() - began) / SECONDS_OF_WORK)


def listed(part: bytes, count: int) -> bytes:
    return b'{"model":"echo","prompt":"x","a":[' + part * count + b"1]}"


def talk(turns: int) -> bytes:
    return json.dumps({"model": "echo", "messages": [{"role": "user", "content": "hello"}] * turns, **ONE}).encode()


WORDS = "a lot of words, with [brackets] and {more} "
#: What is sent where, and the status of its answer.
SENT: dict[str, tuple[str, Callable[[], bytes], int]] = {
    "two million empty lists": ("/api/generate", lambda: listed(b"[],", 2_000_000), 400),
    "objects in objects": ("/api/generate", lambda: listed(b'{"a":[]},', 600_000), 400),
    "strings": ("/api/generate", lambda: listed(b'"",', 2_000_000), 400),
    "depth": ("/api/chat", lambda: b"[" * 3_000_000, 400),
    "as many lists as may be": ("/api/show", lambda: listed(b"[],", 29_000), 200),
    "as many values as may be": ("/api/embed", lambda: listed(b'"x",', 490_000).replace(b'"a"', b'"input"'), 400),
    "brackets in a text": ("/api/generate", lambda: json.dumps({"model": "echo", "prompt": WORDS * 50_000, **ONE}).encode(), 200),
    "a long context": ("/api/generate", lambda: json.dumps({"model": "echo", "prompt": "x", "context": [7] * 250_000, "stream": False,
                                                             "options": {"num_predict": 1}}).encode(), 200),
    "many turns": ("/api/chat", lambda: talk(3000), 200),
    "too many turns": ("/api/chat", lambda: talk(100_000), 400),
    "a large image": ("/api/generate", lambda: b'{"model":"echo","prompt":"x","images":["' + b"A" * 16_000_000 + b'"]}', 400),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "status"), SENT.values(), ids=list(SENT))
def test_a_body_holds_nobody_up(server: tuple[Server, pauses.Pauses], path: str, body: Callable[[], bytes], status: int) -> None:
    running, pauses_ = server
    content, answers = body(), list[httpx.Response]()
    longest = pauses_.of(lambda: answers.append(running.http.post(path, content=content)))
    assert {answer.status_code for answer in answers} == {status}, answers[0].text[:200]
    assert longest < of_processor(LONGEST)


#: What has a large answer, and how large it is at least.
TOLD: dict[str, tuple[str, str, Any, int]] = {
    "400 vectors": ("POST", "/api/embed", {"model": EMBEDDER, "input": ["cat"] * 400}, 1_500_000),
    "a vocabulary": ("POST", "/api/show", {"model": REAL, "verbose": True}, 1_000_000),
    "1500 models": ("GET", "/api/tags", None, 500_000),
}


@pytest.mark.parametrize(("method", "path", "body", "least"), TOLD.values(), ids=list(TOLD))
def test_an_answer_holds_nobody_up(server: tuple[Server, pauses.Pauses], method: str, path: str, body: Any, least: int) -> None:
    running, pauses_ = server
    answers: list[httpx.Response] = []
    longest = pauses_.of(lambda: answers.append(running.http.request(method, path, json=body)), tries=2)
    assert all(answer.status_code == 200 and len(answer.content) >= least and answer.json() for answer in answers)
    assert longest < of_processor(LONGEST_WRITTEN)
