"""Parses bodies of OpenAI's routes into requests to the service. Pure functions; the service refuses what a model cannot do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ndani.api.edge.body_type import convert
from ndani.api.edge.content import unenforced_strict
from ndani.api.openai import request_fields
from ndani.api.openai.bodies import MAX_CHOICES, AnswerBody, ChatBody, CompletionBody, EmbeddingsBody
from ndani.api.openai.messages import parse_messages
from ndani.errors import BadRequest
from ndani.types import AnswerRequest, ChatRequest, EmbedRequest, GenerateRequest

_Request = TypeVar("_Request", bound=AnswerRequest)


def parse_chat(fields: dict[str, Any]) -> tuple[ChatRequest, ChatBody, list[str]]:
    """Parse a body of /v1/chat/completions; also returns it typed, and the names of ignored fields. Raises BadRequest."""
    request_fields.refuse_unsupported(fields)
    body = convert(fields, ChatBody)
    name = request_fields.model_name(body)
    if not name:
        raise BadRequest("model is required")
    if not body.messages:
        raise BadRequest("messages must hold at least one message")
    _check_stream_options(body)
    tools, choice = request_fields.tools_and_choice(body)
    request = ChatRequest(
        model=name,
        messages=parse_messages(body.messages),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        think=request_fields.thinking(body),
        constraint=request_fields.constraint(body.response_format, body),
        logprobs=request_fields.alternatives(body),
        **_shared(body, fields, request_fields.max_tokens(body.max_tokens, body.max_completion_tokens)),
    )
    ignored = request_fields.ignored_fields(fields, ChatBody)
    ignored += unenforced_strict((tool.definition["function"].get("strict") is True for tool in tools), choice)
    return request, body, ignored + request_fields.ignored_in_messages(body.messages)


def parse_completion(fields: dict[str, Any]) -> tuple[list[GenerateRequest], CompletionBody, list[str]]:
    """Parse a body of /v1/completions: one request for each prompt, the body typed, and the names of ignored fields.

    A completion has no place for thoughts, so a model that can think is asked not to. Raises BadRequest.
    """
    request_fields.refuse_unsupported(fields)
    body = convert(fields, CompletionBody)
    name = request_fields.model_name(body)
    if not name:
        raise BadRequest("model is required")
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt or []
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise BadRequest("prompt must be text; token ids are not accepted here, /api/detokenize makes text of them")
    if not prompts or not all(prompts):
        raise BadRequest("prompt must be a text that is not empty, or an array of them")
    _check_stream_options(body)
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise BadRequest("best_of must be left out or be n; every answer that is made is returned")
    if len(prompts) * (body.n or 1) > MAX_CHOICES:
        raise BadRequest(f"prompts times n must be at most {MAX_CHOICES}")
    if body.echo and body.logprobs is not None:
        raise BadRequest("echo and logprobs exclude each other; there are no log-probabilities of a prompt here")
    if body.echo and body.suffix:
        raise BadRequest("echo and suffix exclude each other; send one of them")
    shared = _shared(body, fields, body.max_tokens)
    constraint = request_fields.constraint(None, body)
    requests = [
        GenerateRequest(
            model=name,
            prompt=prompt,
            suffix=body.suffix or "",
            think=False,
            constraint=constraint,
            logprobs=body.logprobs,
            **shared,
        )
        for prompt in prompts
        if isinstance(prompt, str)
    ]
    return requests, body, request_fields.ignored_fields(fields, CompletionBody)


def parse_embeddings(fields: dict[str, Any]) -> tuple[EmbedRequest, bool, list[str]]:
    """Parse a body of /v1/embeddings; also returns whether vectors are wanted as base64, and the names of ignored fields."""
    body = convert(fields, EmbeddingsBody)
    if body.encoding_format not in (None, "float", "base64"):
        raise BadRequest("encoding_format must be float or base64")
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not texts and request_fields.model_name(body):
        raise BadRequest("input must be a text or an array of texts")
    if not all(isinstance(text, str) for text in texts or ()):
        raise BadRequest("input must be text; token ids are not accepted here, /api/detokenize makes text of them")
    request = EmbedRequest(
        model=request_fields.model_name(body),
        texts=tuple(text for text in texts or () if isinstance(text, str)),
        truncate=body.truncate is not False,
        dimensions=body.dimensions or 0,
        sampling=request_fields.runner_options(body),
        keep_alive=request_fields.keep_alive(body),
    )
    return request, body.encoding_format == "base64", request_fields.ignored_fields(fields, EmbeddingsBody)


def each_choice(request: _Request, n: int) -> list[_Request]:
    """The request of each of its `n` choices: the seed, where there is one, counts up."""
    seed = request.sampling.seed
    if seed is None or seed < 0:
        return [request] * n
    return [replace(request, sampling=replace(request.sampling, seed=(seed + index) & 0x7FFFFFFF)) for index in range(n)]


def _shared(body: AnswerBody, fields: dict[str, Any], max_tokens: int | None) -> dict[str, Any]:
    """The fields of an `AnswerRequest` that both kinds of answers fill in the same way.

    A prompt that does not fit its context is an error in this API, by which clients shorten it, unless `truncate` asks for less.
    """
    return {
        "sampling": request_fields.sampling(body, fields, max_tokens),
        "keep_alive": request_fields.keep_alive(body),
        "truncate": body.truncate is True,
        "logit_bias": request_fields.logit_bias(body.logit_bias),
    }


def _check_stream_options(body: AnswerBody) -> None:
    if body.stream_options and body.stream_options.include_obfuscation:
        raise BadRequest("stream_options.include_obfuscation is not supported; leave it out")


def wants_usage(body: AnswerBody) -> bool:
    """Whether a stream of this request has its tokens at the end; an answer that is not streamed always has them."""
    return bool(body.stream_options and body.stream_options.include_usage)
