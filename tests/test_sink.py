"""The short way of a text from the engine to its reader: nothing is lost, doubled or out of order, whoever keeps up or not."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from ndani.engines import LaunchOptions
from ndani.engines.client import RunnerClient
from ndani.engines.question import Question, ask
from ndani.engines.sampling import DEFAULTS, merge
from ndani.engines.stream import Coalescer
from ndani.errors import EngineFailed
from ndani.outputs import MAX_REPEATS
from ndani.runtime.folder import runtime_folder
from ndani.runtime.runner import Runner
from ndani.types import Done, Event, Message, Sampling, Sink, Text
from server import HOST, Server

pytestmark = pytest.mark.slow

WORDS = " ".join(f"w{number}" for number in range(400))


@pytest.fixture
def folder() -> Iterator[Path]:
    with runtime_folder() as path:
        yield path


def question(words: str, keep: bool = False) -> Question:
    said = merge(Sampling(num_predict=400, temperature=0.0), DEFAULTS)
    return Question((Message("user", words),), said, 4096, 4096, render="plain", wants_context=keep)


class Reader:
    """A sink that keeps what it was given, in `order` too; ready each `every`th time that it is asked."""

    def __init__(self, every: int = 1, order: list[str] | None = None) -> None:
        self.taken: list[Text] = []
        self._every, self._order, self._looks = every, order, 0

    def measure(self, prompt_tokens: int, cached_tokens: int) -> None:
        pass

    def ready(self) -> bool:
        self._looks += 1
        return self._looks % self._every == 0

    def put(self, text: Text) -> None:
        self.taken.append(text)
        if self._order is not None:
            self._order.append(text.text)


async def events_of(folder: Path, asked: Question, sink: Sink | None) -> list[Event]:
    """The events of one answer of a real echo runner, without the texts that the sink took."""
    runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
    try:
        await asyncio.wait_for(runner.ready(), 60)
        async with aclosing(ask(RunnerClient(runner.socket, Coalescer()), asked, sink)) as events:
            return [event async for event in events]
    finally:
        await runner.stop()


async def test_whoever_keeps_up_is_given_the_texts_at_once(folder: Path) -> None:
    asked = question("@delay=0.001 " + WORDS, keep=True)
    bare = await events_of(folder, asked, None)
    reader = Reader()
    events, taken = await events_of(folder, asked, reader), reader.taken
    whole = [event for event in bare if isinstance(event, Text)]
    by_event = [event for event in events if isinstance(event, Text)]
    assert len(taken) > 20, "the short way was taken"
    assert sorted([*by_event, *taken], key=lambda text: whole.index(text)) == whole
    (first, last) = bare[-1], events[-1]
    assert isinstance(first, Done)
    assert isinstance(last, Done)
    assert last.context == first.context
    assert last.usage.output_tokens == first.usage.output_tokens == len(whole)


async def test_nothing_is_lost_or_doubled_by_a_reader_who_keeps_up_now_and_then(folder: Path) -> None:
    order: list[str] = []
    reader = Reader(3, order)
    runner = await Runner.spawn(LaunchOptions("echo"), -1, folder)
    try:
        await asyncio.wait_for(runner.ready(), 60)
        async with aclosing(ask(RunnerClient(runner.socket, Coalescer()), question("@delay=0.001 " + WORDS), reader)) as events:
            async for event in events:
                if isinstance(event, Text):
                    order.append(event.text)
    finally:
        await runner.stop()
    assert "".join(order).split() == WORDS.split()
    assert 0 < len(reader.taken) < len(order)


async def test_a_model_that_repeats_itself_is_stopped_on_the_short_way_too(folder: Path) -> None:
    reader = Reader()
    events = await events_of(folder, question("@delay=0.001 " + "same " * 200), reader)
    said = len(reader.taken) + sum(isinstance(event, Text) for event in events)
    last = events[-1]
    assert isinstance(last, Done)
    assert last.reason == "length"
    assert MAX_REPEATS < said <= MAX_REPEATS + 3


async def test_an_engine_that_dies_is_an_error_not_a_wait(folder: Path) -> None:
    with pytest.raises(EngineFailed):
        await events_of(folder, question("@crash=20 @delay=0.001 " + WORDS), Reader())


def test_a_client_that_reads_slowly_gets_every_word_in_order(echo: Server) -> None:
    words = [f"word{number}" for number in range(6000)]
    body = json.dumps(
        {"model": "echo", "prompt": " ".join(words), "raw": True, "options": {"num_ctx": 16384, "num_predict": len(words)}}
    ).encode()
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(120)
        line.connect((HOST, echo.port))
        line.sendall(
            b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        reader = line.makefile("rb")
        while reader.readline().strip():
            pass
        got = []
        while size := int(reader.readline(), 16):
            got += [json.loads(part) for part in reader.read(size).splitlines()]
            reader.readline()
    assert "".join(part["response"] for part in got).split() == words
    assert got[-1]["done"]
    assert got[-1]["eval_count"] == len(words)
