"""How /v1/completions writes answers: pieces of a stream, or one object. Pure but for the time and a random id.

A completion has no place for thoughts: a model that thinks although it was asked not to gives pieces without text meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ndani.api.edge.json_response import encode
from ndani.api.openai.choices import ChoicesFormat
from ndani.api.openai.errors import ERRORS
from ndani.api.openai.frames import Frames
from ndani.api.openai.objects import TextChoice, TextCompletion, TextLogprobs, fingerprint, new_id, usage_object
from ndani.types import Answer, Done, Event, Text, TokenLogprob


def format_completion(model: str, echoed: Sequence[str], choices_per_prompt: int, include_usage: bool) -> ChoicesFormat:
    """How the answer is written; `model` is the name as the client spelt it, `echoed` the text before each choice's own, mostly empty."""
    identity, created, system_fingerprint = new_id("cmpl"), int(time.time()), fingerprint(model)

    def chunk(parts: list[TextChoice]) -> TextCompletion:
        return TextCompletion(identity, "text_completion", created, model, system_fingerprint, parts)

    def whole(answers: Sequence[tuple[Answer, Done]]) -> bytes:
        written = [
            TextChoice(before + answer.text, index, text_logprobs(answer.logprobs, 0), done.reason)
            for index, (before, (answer, done)) in enumerate(zip(echoed, answers, strict=True))
        ]
        usage = usage_object(dict(enumerate(done for _, done in answers)), choices_per_prompt)
        return encode(TextCompletion(identity, "text_completion", created, model, system_fingerprint, written, usage))

    frames = Frames(chunk, len(echoed), choices_per_prompt, include_usage=include_usage)
    return ChoicesFormat([_choice(index, before, frames) for index, before in enumerate(echoed)], whole, ERRORS)


def _choice(index: int, before: str, frames: Frames[TextChoice]) -> Callable[[Event], bytes]:
    """The events of one choice as pieces; the echoed prompt is a piece of its own, before the first."""
    head, tail = frames.around_text(lambda text: TextChoice(text, index))
    opening, offset = head + encode(before) + tail if before else b"", 0

    def piece(event: Event) -> bytes:
        nonlocal opening, offset
        written, opening = opening, b""
        if isinstance(event, Text):
            if not event.logprobs:
                return written + head + encode(event.text) + tail
            logprobs = text_logprobs(event.logprobs, offset)
            offset += sum(len(item.token) for item in event.logprobs)
            return written + frames.frame(TextChoice(event.text, index, logprobs))
        if isinstance(event, Done):
            return written + frames.frame(TextChoice("", index, None, event.reason)) + frames.end(index, event)
        return written + head + b'""' + tail

    return piece


def text_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> TextLogprobs | None:
    """Log-probabilities in the form of a completion; None for none. The first token begins at `offset`."""
    if not logprobs:
        return None
    offsets = []
    for item in logprobs:
        offsets.append(offset)
        offset += len(item.token)
    tops = [{top.token: top.logprob for top in item.top} for item in logprobs]
    return TextLogprobs([i.token for i in logprobs], [i.logprob for i in logprobs], tops if any(tops) else None, offsets)
