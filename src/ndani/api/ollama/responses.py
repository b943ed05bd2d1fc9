"""What a dialect writes, in Ollama's JSON: events, steps of long work, errors, models, models in memory. Pure functions.

`show` has the body of /api/show, `embed` those of vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.responses import PlainTextResponse, Response

from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.api.edge.media_types import NDJSON
from ndani.api.edge.streaming import ResponseFormat
from ndani.api.ollama.response_bodies import ErrorBody
from ndani.api.ollama.timestamps import Timestamps, local_stamp
from ndani.errors import NdaniError
from ndani.types import (
    Answer,
    Called,
    Details,
    Done,
    Event,
    Model,
    Piece,
    Progress,
    Rendered,
    Resident,
    Text,
    Thought,
    TokenLogprob,
)

#: The seconds from now that Ollama prints for a model that never expires: the end of Go's longest duration, about 292 years.
_NEVER_EXPIRES = 292 * 365.25 * 86400


def _error_body(error: NdaniError) -> dict[str, str]:
    return {"error": str(error)}


def _no_route(status: int, headers: Mapping[str, str]) -> Response:
    return PlainTextResponse("405 method not allowed" if status == 405 else "404 page not found", status, headers, "text/plain")


#: An error is an object with one field, also as the last line of a stream; a path that is no route is told in plain text.
ERRORS = ErrorFormat(_error_body, lambda error: encode(_error_body(error)) + b"\n", _no_route, ErrorBody)


def format_step(step: Progress) -> bytes:
    """The JSON of a step of a pull, a push or a create."""
    fields = {"status": step.status, "digest": step.digest, "total": step.total, "completed": step.completed}
    return encode({key: value for key, value in fields.items() if value is not None})


def format_generate(model: str, clock: Timestamps) -> ResponseFormat:
    """How /api/generate writes its lines and its one object; `model` is the name as the client spelt it."""
    head = b'{"model":' + encode(model) + b',"created_at":"'

    def line(event: Event) -> bytes:
        if isinstance(event, Text) and not event.logprobs:
            return b'%b%b","response":%b,"done":false}\n' % (head, clock.stamp(), encode(event.text))
        if isinstance(event, (Done, Rendered)):
            return whole(Answer(), event) + b"\n"
        piece = {"model": model, "created_at": clock.now(), "response": event.text if isinstance(event, Text) else "", "done": False}
        return encode(piece | _extras(_answer_of(event))) + b"\n"

    def whole(answer: Answer, end: Done | Rendered) -> bytes:
        if isinstance(end, Rendered):
            return encode({"model": model, "created_at": clock.now(), "response": "", "done": False} | _debug_info(end))
        last: dict[str, Any] = {"model": model, "created_at": clock.now(), "response": answer.text} | _extras(answer)
        last |= {"done": True, "done_reason": end.reason}
        if end.context is not None:
            last["context"] = end.context
        return encode(last | _usage(end))

    return ResponseFormat(NDJSON, line, whole, _is_single, ERRORS)


def format_chat(model: str, clock: Timestamps) -> ResponseFormat:
    """How /api/chat writes its lines and its one object; `model` as in `format_generate`."""
    head = b'{"model":' + encode(model) + b',"created_at":"'

    def line(event: Event) -> bytes:
        if isinstance(event, Text) and not event.logprobs:
            return b'%b%b","message":{"role":"assistant","content":%b},"done":false}\n' % (head, clock.stamp(), encode(event.text))
        if isinstance(event, Thought) and not event.logprobs:
            return b'%b%b","message":{"role":"assistant","content":"","thinking":%b},"done":false}\n' % (
                head,
                clock.stamp(),
                encode(event.text),
            )
        if isinstance(event, (Done, Rendered)):
            return whole(Answer(), event) + b"\n"
        answer = _answer_of(event)
        piece = {"model": model, "created_at": clock.now(), "message": _message(answer), "done": False}
        return encode(piece | _logprobs(answer.logprobs)) + b"\n"

    def whole(answer: Answer, end: Done | Rendered) -> bytes:
        if isinstance(end, Rendered):
            blank = {"role": "", "content": ""}
            return encode({"model": model, "created_at": clock.now(), "message": blank, "done": False} | _debug_info(end))
        last: dict[str, Any] = {"model": model, "created_at": clock.now(), "message": _message(answer)}
        last |= {"done": True, "done_reason": end.reason}
        return encode(last | _usage(end) | _logprobs(answer.logprobs))

    return ResponseFormat(NDJSON, line, whole, _is_single, ERRORS)


def _answer_of(piece: Piece) -> Answer:
    """An answer of one piece."""
    if isinstance(piece, Called):
        return Answer(tool_calls=(piece.call,))
    if isinstance(piece, Thought):
        return Answer(thinking=piece.text, logprobs=piece.logprobs)
    return Answer(text=piece.text, logprobs=piece.logprobs)


def _message(answer: Answer) -> dict[str, Any]:
    return {"role": "assistant", "content": answer.text} | _extras(answer, logprobs=False)


def _extras(answer: Answer, *, logprobs: bool = True) -> dict[str, Any]:
    """What an answer has beside its text: thinking, tool calls, log-probabilities."""
    extras: dict[str, Any] = {"thinking": answer.thinking} if answer.thinking else {}
    if answer.tool_calls:
        extras["tool_calls"] = [
            {"id": call.id, "function": {"index": call.index, "name": call.name, "arguments": call.arguments}} for call in answer.tool_calls
        ]
    return extras | (_logprobs(answer.logprobs) if logprobs else {})


def _logprobs(logprobs: tuple[TokenLogprob, ...]) -> dict[str, Any]:
    if not logprobs:
        return {}
    return {"logprobs": [_logprob(item) | ({"top_logprobs": list(map(_logprob, item.top))} if item.top else {}) for item in logprobs]}


def _logprob(item: TokenLogprob) -> dict[str, Any]:
    return {"token": item.token, "logprob": item.logprob, "bytes": list(item.data)}


def _is_single(first: Event) -> bool:
    """Loads, unloads and rendered prompts are one JSON object even when streaming, as in Ollama."""
    return isinstance(first, Rendered) or (isinstance(first, Done) and first.reason in ("load", "unload"))


def _debug_info(event: Rendered) -> dict[str, Any]:
    return {"_debug_info": {"rendered_template": event.prompt} | ({"image_count": event.images} if event.images else {})}


def _usage(done: Done) -> dict[str, int]:
    if done.reason in ("load", "unload"):
        return {}
    usage = done.usage
    counts = {
        "total_duration": usage.total_ns,
        "load_duration": usage.load_ns,
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_cached_count": usage.cached_tokens,
        "prompt_eval_duration": usage.prompt_ns,
        "eval_count": usage.output_tokens,
        "eval_duration": usage.output_ns,
        "truncated": done.truncated,
    }
    return {key: value for key, value in counts.items() if value}


def format_details(details: Details, *, listed: bool) -> dict[str, Any]:
    """A model's details; in listings with its context length and embedding length."""
    fields: dict[str, Any] = {
        "parent_model": details.parent,
        "format": details.format,
        "family": details.family,
        "families": list(details.families) or None,
        "parameter_size": details.parameter_size,
        "quantization_level": details.quantization_level,
    }
    if listed and details.context_length:
        fields["context_length"] = details.context_length
    if listed and details.embedding_length:
        fields["embedding_length"] = details.embedding_length
    return fields


def format_models(models: list[Model]) -> dict[str, Any]:
    """The body of /api/tags."""
    return {
        "models": [
            {
                "name": m.name,
                "model": m.name,
                "modified_at": local_stamp(m.modified),
                "size": m.size,
                "digest": m.digest,
                "details": format_details(m.details, listed=True),
                "capabilities": list(m.capabilities),
            }
            for m in models
        ]
    }


def format_residents(residents: list[Resident], now: float) -> dict[str, Any]:
    """The body of /api/ps; `slots`, `pid` and `confinement` are additions of ours."""
    return {
        "models": [
            {
                "name": r.name,
                "model": r.name,
                "size": r.size,
                "digest": r.digest,
                "details": format_details(r.details, listed=False) | {"parent_model": ""},  # empty for a running model, as in Ollama
                "expires_at": _expiry(r, now),
                "size_vram": r.size_vram,
                "context_length": r.context_length,
                "slots": r.slots,
                "pid": r.pid,
                "confinement": r.confined,
            }
            for r in residents
        ]
    }


def _expiry(resident: Resident, now: float) -> str:
    if resident.stopping:
        return local_stamp(now)
    if resident.expires is None:
        return datetime.fromtimestamp(now + _NEVER_EXPIRES, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    return local_stamp(resident.expires)
