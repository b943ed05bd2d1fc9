"""Answers that have several choices: each is an answer of the service, all run at the same time, and their events are merged.

One choice, the usual case, goes the way of every other dialect, by `edge.streaming`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from starlette.responses import Response

from ndani.api.edge import streaming
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.api.edge.json_response import JSON
from ndani.api.edge.media_types import EVENTS
from ndani.types import Answer, Done, Event, Rendered, Sink

#: The last event of every stream that has not failed.
STREAM_END = b"data: [DONE]\n\n"

#: Events of all choices together that wait for a slow client before the engine has to.
_MAX_WAITING = 256

#: Begins one answer: its events, and the names of fields of the model's config that are ignored.
Ask = Callable[[Sink | None], Awaitable[tuple[AsyncGenerator[Event], tuple[str, ...]]]]


@dataclass(frozen=True, slots=True)
class ChoicesFormat:
    """How an answer with several choices is written: `chunks` has a function for the events of each, `whole` writes all of them.

    The choice whose end comes last also writes what ends the stream.
    """

    chunks: Sequence[Callable[[Event], bytes]]
    whole: Callable[[Sequence[tuple[Answer, Done]]], bytes]
    errors: ErrorFormat


async def respond(asks: Sequence[Ask], stream: bool, choices_format: ChoicesFormat, ignored: Sequence[str]) -> Response:
    """The response with a choice for each of `asks`; `ignored` are the names of fields that have no effect."""
    if len(asks) == 1:
        single = _single(choices_format)
        sink = streaming.open_sink(stream, single)
        events, ignored_config = await asks[0](sink)
        return await streaming.respond(events, sink, single, ignored_headers([*ignored, *ignored_config]))
    sinks = [None if stream else streaming.CollectedSink() for _ in asks]
    answers: list[AsyncGenerator[Event]] = []
    ignored_config = ()
    for ask, sink_of_choice in zip(asks, sinks, strict=True):
        events, ignored_config = await ask(sink_of_choice)
        answers.append(events)
    headers = ignored_headers([*ignored, *ignored_config])
    if stream:
        return await _streamed(answers, choices_format, headers)
    whole = await _collected([(events, sink) for events, sink in zip(answers, sinks, strict=True) if sink])
    return Response(choices_format.whole(whole), 200, headers, JSON)


def _single(choices_format: ChoicesFormat) -> streaming.ResponseFormat:
    def whole(answer: Answer, end: Done | Rendered) -> bytes:
        assert isinstance(end, Done)  # no request of this API asks for the prompt
        return choices_format.whole([(answer, end)])

    return streaming.ResponseFormat(EVENTS, choices_format.chunks[0], whole, lambda _: False, choices_format.errors)


async def _collected(answers: Sequence[tuple[AsyncGenerator[Event], streaming.CollectedSink]]) -> list[tuple[Answer, Done]]:
    """All answers and their ends. The first error, or a client that leaves, cancels all of them."""

    async def collect(events: AsyncGenerator[Event], sink: streaming.CollectedSink) -> tuple[Answer, Done]:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Done):
                    return sink.collected(), event
                assert not isinstance(event, Rendered)
                sink.put(event)
        raise AssertionError("an answer without an end")

    tasks = [asyncio.create_task(collect(*answer)) for answer in answers]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _streamed(answers: Sequence[AsyncGenerator[Event]], choices_format: ChoicesFormat, headers: dict[str, str]) -> Response:
    parts = _merged(answers)

    def to_bytes(part: tuple[int, Event]) -> bytes:
        return choices_format.chunks[part[0]](part[1])

    try:
        first = await anext(parts)
    except BaseException:
        await parts.aclose()
        raise
    return streaming.StreamedResponse(first, parts, to_bytes, EVENTS, choices_format.errors, headers)


async def _merged(answers: Sequence[AsyncGenerator[Event]]) -> AsyncGenerator[tuple[int, Event]]:
    """The events of all answers as they come, each with its answer's index. The first error, or leaving early, cancels all of them."""
    arrived: asyncio.Queue[tuple[int, Event | Exception]] = asyncio.Queue(_MAX_WAITING)

    async def forward(index: int, events: AsyncGenerator[Event]) -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    await arrived.put((index, event))
        except Exception as error:  # raised again by the reader
            await arrived.put((index, error))

    tasks = [asyncio.create_task(forward(index, events)) for index, events in enumerate(answers)]
    running = len(tasks)
    try:
        while running:
            index, event = await arrived.get()
            if isinstance(event, Exception):
                raise event
            running -= isinstance(event, Done)
            yield index, event
    finally:
        await _cancel(tasks)


async def _cancel(tasks: Sequence[asyncio.Task[None]] | Sequence[asyncio.Task[tuple[Answer, Done]]]) -> None:
    """Cancel what still runs, and wait until it has cleaned up; errors beside the first one are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
