"""How /v1/chat/completions writes answers: chunks of a stream, or one object. Pure but for the time and a random id."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msgspec import UNSET

from ndani.api.edge.json_response import encode
from ndani.api.openai.choices import ChoicesFormat
from ndani.api.openai.errors import ERRORS
from ndani.api.openai.frames import Frames
from ndani.api.openai.objects import (
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    assistant_message,
    fingerprint,
    finish_reason,
    logprobs_object,
    new_id,
    tool_call_object,
    usage_object,
)
from ndani.types import Answer, Called, Done, Event, Rendered, Text, Thought


def format_chat(model: str, choices: int, include_usage: bool) -> ChoicesFormat:
    """How the answer with so many choices is written; `model` is the name as the client spelt it."""
    identity, created, system_fingerprint = new_id("chatcmpl"), int(time.time()), fingerprint(model)

    def chunk(parts: list[ChunkChoice]) -> ChatChunk:
        return ChatChunk(identity, "chat.completion.chunk", created, model, system_fingerprint, parts)

    def whole(answers: Sequence[tuple[Answer, Done]]) -> bytes:
        written = [
            Choice(index, assistant_message(answer), logprobs_object(answer.logprobs), finish_reason(done, bool(answer.tool_calls)))
            for index, (answer, done) in enumerate(answers)
        ]
        usage = usage_object(dict(enumerate(done for _, done in answers)), choices)
        return encode(ChatCompletion(identity, "chat.completion", created, model, system_fingerprint, written, usage))

    frames = Frames(chunk, choices, choices, include_usage=include_usage)
    return ChoicesFormat([_choice(index, frames) for index in range(choices)], whole, ERRORS)


def _choice(index: int, frames: Frames[ChunkChoice]) -> Callable[[Event], bytes]:
    """The events of one choice as chunks. The role is only in the first of them."""
    head, tail = frames.around_text(lambda text: ChunkChoice(index, Delta(content=text)))
    frame = frames.frame
    began = called = False

    def chunk(event: Event) -> bytes:
        nonlocal began, called
        if began and isinstance(event, Text) and not event.logprobs:
            return head + encode(event.text) + tail
        assert not isinstance(event, Rendered)  # no request of this API asks for the prompt
        delta, logprobs = Delta(role=UNSET if began else "assistant"), None
        if isinstance(event, Called):
            delta.content = UNSET if began else None
            delta.tool_calls, called = [tool_call_object(event.call)], True
        elif isinstance(event, Done):
            opening = b"" if began else frame(ChunkChoice(index, Delta(role="assistant", content="")))
            return opening + frame(ChunkChoice(index, Delta(), None, finish_reason(event, called))) + frames.end(index, event)
        else:
            if isinstance(event, Text):
                delta.content = event.text
            else:
                assert isinstance(event, Thought)
                delta.reasoning, delta.content = event.text, UNSET if began else ""
            logprobs = logprobs_object(event.logprobs)
        began = True
        return frame(ChunkChoice(index, delta, logprobs))

    return chunk
