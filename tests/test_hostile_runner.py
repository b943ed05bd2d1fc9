"""A runner that its weights have taken over: it speaks the protocol over a real socket, and says what it likes.

What it can do to the front is bounded: bytes, pauses, numbers. And what is our own fault is not the runner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ndani.engines.client import Chunk, RunnerClient
from ndani.engines.question import Question, ask
from ndani.engines.sampling import DEFAULTS, merge
from ndani.engines.stream import HIGH_WATER_BYTES, MAX_EVENT_BYTES, Coalescer, exchange
from ndani.errors import EngineFailed
from ndani.types import Message, Sampling, Text
from server import slowness
from test_residence import ONE, pool

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
EVENT = b'data: {"content":" a","tokens":[7],"stop":false}\n\n'
LAST = b'data: {"content":"","tokens":[],"stop":true,"stop_type":"eos","tokens_evaluated":1}\n\n'

Act = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def runner(folder: Path, act: Act) -> AsyncIterator[str]:
    """A socket where every request gets what `act` writes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0]))
            await act(writer)
        writer.close()

    path = str(folder / "r.sock")
    async with asyncio.timeout(60 * slowness()), await asyncio.start_unix_server(serve, path):
        yield path


def says(*pieces: bytes) -> Act:
    async def act(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return act


def says_for_ever(first: bytes, piece: bytes, written: list[int]) -> Act:
    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(piece)
            await writer.drain()
            written[0] += len(piece)

    return act


@pytest.mark.parametrize("event", [EVENT, b"x\n\n", b"data: {}\n\n" + b"\n" * 200, b'data: {"content":"' + b"a" * 900_000 + b'"}\n\n'])
@pytest.mark.slow
async def test_events_that_nobody_takes_hold_no_more_than_a_budget(tmp_path: Path, event: bytes) -> None:
    written = [0]
    piece = event * max(1, 65536 // len(event))
    async with (
        runner(tmp_path, says_for_ever(OK, piece, written)) as path,
        exchange(path, "/completion", b"{}", Coalescer()) as call,
    ):
        await call.status_code()
        call.start_stream()
        before = -1
        while before != written[0]:  # until it is made to wait
            before = written[0]
            await asyncio.sleep(0.3)
        batch = await call.events()
        held = batch + call._events
        assert sum(map(len, held)) < HIGH_WATER_BYTES + 2 * MAX_EVENT_BYTES, "a budget, and one read of the socket"
        assert len(held) < 100_000
        assert len(batch) <= 256
        while written[0] == before:  # who takes them lets it go on
            await call.events()


async def test_an_event_without_end_is_hung_up_on(tmp_path: Path) -> None:
    written = [0]
    async with runner(tmp_path, says_for_ever(OK, b"data: {" + b"a" * 65536, written)) as path:
        with pytest.raises(EngineFailed):
            async with aclosing(RunnerClient(path, Coalescer()).complete("a", {})) as chunks:
                assert [chunk async for chunk in chunks] == []
    assert written[0] < 4 * MAX_EVENT_BYTES


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x="])
async def test_heads_and_what_stands_between_chunks_without_end_are_hung_up_on(tmp_path: Path, start: bytes) -> None:
    written = [0]
    async with runner(tmp_path, says_for_ever(start, b"a" * 65536, written)) as path:
        with pytest.raises(EngineFailed):
            await RunnerClient(path, Coalescer()).tokenize("a")
    assert written[0] < 4 * MAX_EVENT_BYTES


async def test_a_runner_that_asks_for_another_protocol_is_hung_up_on(tmp_path: Path) -> None:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    async with runner(tmp_path, says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx")) as path:
        with pytest.raises(EngineFailed):
            await RunnerClient(path, Coalescer()).tokenize("a")
    assert faults == [], "its fault, not ours"


@pytest.mark.parametrize("status", [b"200 OK", b"500 Internal Server Error"])
async def test_an_answer_that_is_no_stream_is_not_taken_apart_and_ends(tmp_path: Path, status: bytes) -> None:
    body = msgspec.json.encode({"tokens": [1], "more": "\n\n"}) + b"\n\n" * 2000
    head = b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with (
        runner(tmp_path, says(head, *(body[at : at + 700] for at in range(0, len(body), 700)))) as path,
        exchange(path, "/tokenize", b"{}", Coalescer()) as call,
    ):
        await call.status_code()
        assert await call.body() == body
    written = [0]
    async with runner(tmp_path, says_for_ever(b"HTTP/1.1 " + status + b"\r\n\r\n", b"\n\n" * 30_000, written)) as path:
        with pytest.raises(EngineFailed):
            async with exchange(path, "/tokenize", b"{}", Coalescer()) as call:
                await call.body()
    assert written[0] < 4 << 20


ODD: list[tuple[str, str, object]] = [
    ("tokenize", "a", {"tokens": [2**70]}),
    ("tokenize", "a", {"tokens": "abc"}),
    ("tokenize", "a", {"tokens": [1.5]}),
    ("detokenize", [1], {"content": 7}),
    ("detokenize", [1], [[]] * 1000),
    ("render", (Message("user", "a"),), {"prompt": None}),
    ("embed", ["a"], {"data": []}),
    ("embed", ["a"], {"data": [{"index": 0, "embedding": "AAA="}]}),
    ("embed", ["a"], {"data": [{"index": 0, "embedding": ""}]}),
    ("embed", ["a", "b"], {"data": [{"index": 0, "embedding": "AAAAAA=="}, {"index": 1, "embedding": "AAAAAAAAAAA="}]}),
]


@pytest.mark.parametrize(("verb", "given", "said"), ODD, ids=[f"{verb}-{at}" for at, (verb, _, _) in enumerate(ODD)])
async def test_what_no_engine_answers_is_the_engines_fault(tmp_path: Path, verb: str, given: Any, said: object) -> None:
    body = msgspec.json.encode(said)
    async with runner(tmp_path, says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)) as path:
        with pytest.raises(EngineFailed):
            await getattr(RunnerClient(path, Coalescer()), verb)(given)


@pytest.mark.parametrize(("verb", "given"), [("tokenize", "a"), ("detokenize", [1]), ("render", (Message("user", "a"),))])
async def test_a_context_that_is_said_to_be_full_by_a_question_that_fills_none_is_the_engines_fault(
    tmp_path: Path, verb: str, given: Any
) -> None:
    body = msgspec.json.encode({"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 9}})
    async with runner(tmp_path, says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % len(body), body)) as path:
        with pytest.raises(EngineFailed):
            await getattr(RunnerClient(path, Coalescer()), verb)(given)


@pytest.mark.parametrize(
    ("text", "tokens", "good"), [("a", 3, True), ("a" * 1000, 1000, True), ("a", 1000, False), ("a" * 1000, 9000, False)]
)
async def test_a_text_has_no_more_tokens_than_bytes_could_make(tmp_path: Path, text: str, tokens: int, good: bool) -> None:
    body = msgspec.json.encode({"tokens": [1] * tokens})
    async with runner(tmp_path, says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)) as path:
        with contextlib.nullcontext() if good else pytest.raises(EngineFailed):
            assert len(await RunnerClient(path, Coalescer()).tokenize(text)) == tokens


async def test_a_number_of_tokens_below_none_is_none(tmp_path: Path) -> None:
    body = msgspec.json.encode({"data": [{"index": 0, "embedding": "AACAPw=="}], "usage": {"prompt_tokens": -1}})
    async with runner(tmp_path, says(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)) as path:
        assert (await RunnerClient(path, Coalescer()).embed(["a"]))[1] == 0


def question(keep: bool = False, most: int = 5) -> Question:
    return Question((Message("user", "a"),), merge(Sampling(num_predict=most), DEFAULTS), 4096, 4096, render="plain", wants_context=keep)


@pytest.mark.parametrize("tokens", [b"2305843009213693952000", b"1," * 2000 + b"1", b"-99999999999999"])
async def test_token_ids_that_are_none_are_the_engines_fault(tmp_path: Path, tokens: bytes) -> None:
    async with runner(tmp_path, says(OK, EVENT.replace(b"[7]", b"[" + tokens + b"]"), LAST)) as path:
        with pytest.raises(EngineFailed):
            async with aclosing(ask(RunnerClient(path, Coalescer()), question(keep=True))) as events:
                assert [event async for event in events] == []


async def test_an_answer_has_no_more_letters_than_its_tokens_could(tmp_path: Path) -> None:
    written = [0]
    pieces = b"".join(b'data: {"content":"%d' % n + b"a" * 500_000 + b'"}\n\n' for n in range(4))
    async with (
        runner(tmp_path, says_for_ever(OK, pieces, written)) as path,
        aclosing(ask(RunnerClient(path, Coalescer()), question(most=3000))) as events,
    ):
        texts = [event async for event in events]
    assert sum(len(getattr(event, "text", "")) for event in texts) < 5_000_000


class Ours(Exception):
    pass


@pytest.mark.slow
async def test_a_fault_of_ours_is_not_the_runners(tmp_path: Path) -> None:
    """A reader that raises: the error is his, the chunk is counted once, and the runner that is well is kept."""
    taken: list[str] = []

    class Failing:
        def measure(self, prompt_tokens: int, cached_tokens: int) -> None:
            pass

        def ready(self) -> bool:
            return True

        def put(self, text: Text) -> None:
            taken.append(text.text)
            if len(taken) == 3:
                raise Ours

    asked = Question(
        (Message("user", "@delay=0.01 a b c d e f g h"),), merge(Sampling(num_predict=8), DEFAULTS), 1024, 1024, render="plain"
    )
    async with pool(tmp_path) as (owned, launched):
        for error in (Ours, None):
            with pytest.raises(Ours) if error else contextlib.nullcontext():
                async with (
                    owned.lease(ONE, 60.0) as lease,
                    aclosing(ask(lease.engine, asked, Failing())) as events,
                ):
                    async for _ in events:
                        pass
            await asyncio.sleep(0.01)
        assert len(launched) == 1
        assert len(taken) == len(set(taken[:3])) + len(taken[3:])


async def test_a_chunk_whose_taking_raises_is_not_offered_again(tmp_path: Path) -> None:
    offered: list[str] = []

    def tap(chunk: Chunk) -> bool:
        offered.append(chunk.content)
        raise ValueError

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await asyncio.sleep(0.1)  # somebody waits by then
        writer.write(EVENT)

    async with runner(tmp_path, act) as path:
        with pytest.raises(ValueError, match=r"^$"):
            async with aclosing(RunnerClient(path, Coalescer()).complete("a", {}, tap)) as chunks:
                offered += [chunk.content async for chunk in chunks]
    assert offered == [" a"]


async def test_many_small_events_let_others_have_their_turn(tmp_path: Path) -> None:
    piece = b'data: {"prompt_progress":{}}\n\n' * 2000
    longest, running = 0.0, True

    async def look() -> None:
        nonlocal longest
        while running:
            began = time.monotonic()
            await asyncio.sleep(0)
            longest = max(longest, time.monotonic() - began)

    async with runner(tmp_path, says(OK, *[piece] * 40, LAST)) as path:
        watch = asyncio.create_task(look())
        async with aclosing(ask(RunnerClient(path, Coalescer()), question())) as events:
            assert len([event async for event in events]) == 1
        running = False
        await watch
    assert longest < 0.25 * slowness()
