"""The operations that generate answers: generate and chat. Each finds the model, leases a runner, runs the engine, and counts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import fields, replace
from typing import Literal

from ndani import names
from ndani.engines.image_files import check_images
from ndani.engines.question import Question, ask, count_tokens
from ndani.engines.sampling import merge
from ndani.errors import BadRequest, StoreFailed, Unsupported
from ndani.ledger.counts import Counts
from ndani.prompts import ChatTemplate, read_template
from ndani.prompts.image_tags import image_tags
from ndani.prompts.template import Template
from ndani.runtime.pool import Pool
from ndani.runtime.residence import Lease
from ndani.runtime.spec import MIN_CTX, MIN_IMAGE_CTX
from ndani.service.lending import lend
from ndani.service.reading import Reading, decide_reading
from ndani.service.resolver import ModelResolver, ResolvedModel, runner_key
from ndani.types import AnswerRequest, ChatRequest, Done, Event, GenerateRequest, Message, Sampling, Sink

#: Features that a request may need beyond text, with the error where the model's engine does not support it in this version.
UNSUPPORTED_FEATURES = {
    "thinking": "thinking is not in this version; leave out think, or set it to false",
    "tools": "tools are not in this version; leave them out",
    "tool_calls": "tool_calls are not in this version; leave them out",
    "format": "format is not in this version; ask for free text",
    "logprobs": "logprobs are not in this version; leave out logprobs and top_logprobs",
}


#: The events of an answer in progress, and the names of what has no effect on it: fields of the model's config, and of the request.
AnswerStream = tuple[AsyncGenerator[Event], tuple[str, ...]]


class Answers:
    """Generates answers with a model's runner."""

    def __init__(self, resolver: ModelResolver, pool: Pool, counts: Counts) -> None:
        self._resolver = resolver
        self._pool = pool
        self._counts = counts

    async def generate(self, request: GenerateRequest, sink: Sink | None = None) -> AnswerStream:
        """Continue a prompt. An empty prompt loads the model; with keep_alive 0 it unloads it.

        Texts that are put into `sink` are not among the events.
        """
        if not request.prompt and not request.images and request.keep_alive == 0:
            return self._unload(request.model), ()
        entry = self._resolver.find(request.model, missing=f"model '{request.model}' not found")
        if request.raw and (request.template or request.system or request.context):
            raise BadRequest("raw mode does not support template, system, or context")
        model = await self._resolver.resolve(entry)
        template = await asyncio.to_thread(read_template, request.template) if request.template else model.template
        _check_model(model, request, "generate")
        if request.suffix and not template.mentions("suffix"):
            raise Unsupported(f"{entry.name.full} does not support insert")
        _reject_unsupported(model, request)
        if not request.prompt and not request.images:
            return self._load(model, request.sampling, request.keep_alive), ()
        messages: tuple[Message, ...] = (Message("user", request.prompt, images=request.images),)
        system = request.system or entry.system
        if not request.raw:
            turns = entry.messages if request.context is None else ()
            messages = (*([Message("system", system)] if system else []), *turns, *messages)
        if not (request.raw or request.template or request.suffix):  # with those, Ollama uses no renderer either
            _require_served(model)
        render = "plain" if request.raw else _rendering(model, template)
        as_it_is = Reading(think=request.think, constraint=request.constraint)
        reading = as_it_is if request.raw or request.suffix else decide_reading(model, request, render)
        question = Question(
            messages,
            merge(request.sampling, model.options),
            render=render,
            suffix=request.suffix,
            logprobs=request.logprobs,
            logit_bias=request.logit_bias,
            **{field.name: getattr(reading, field.name) for field in fields(reading)},
            render_only=request.render_only,
            context=request.context or (),
            truncate=request.truncate,
            shift=request.shift,
            wants_context=not request.raw,
            tags=image_tags(messages, typed=request.raw),
        )
        own_template = bool(request.template or request.suffix) and not request.raw
        ignored = model.ignored_config if own_template else ()
        if request.think and request.raw:  # no template is there to ask the model for it
            ignored = (*ignored, "think")
        return self._run(model, question, request.keep_alive, sink), ignored

    async def chat(self, request: ChatRequest, sink: Sink | None = None) -> AnswerStream:
        """Continue a conversation. No messages load the model; with keep_alive 0 they unload it. `sink`: as in `generate`."""
        if not request.messages and request.keep_alive == 0:
            return self._unload(request.model), ()
        entry = self._resolver.find(request.model, missing=f"model '{request.model}' not found")
        model = await self._resolver.resolve(entry)
        _check_model(model, request, "chat")
        _reject_unsupported(model, request)
        if not request.messages:
            return self._load(model, request.sampling, request.keep_alive), ()
        question = self._conversation(model, request)
        return self._run(model, question, request.keep_alive, sink), ()

    async def count_tokens(self, request: ChatRequest) -> int:
        """How many tokens the prompt of a conversation has, as `chat` would send it; also of one that is too long."""
        entry = self._resolver.find(request.model, missing=f"model '{request.model}' not found")
        model = await self._resolver.resolve(entry)
        _check_model(model, request, "chat")
        _reject_unsupported(model, request)
        question = self._conversation(model, request)
        spec = self._resolver.spec(model, question.sampling)
        async with lend(self._pool, spec, self._resolver.keep_alive(request.keep_alive)) as lease:
            return await count_tokens(lease.engine, _in_slot(question, model, lease))

    def _conversation(self, model: ResolvedModel, request: ChatRequest) -> Question:
        """The question of a chat request."""
        entry = model.entry
        messages = entry.messages + request.messages
        if entry.system and request.messages[0].role != "system":
            messages = (Message("system", entry.system), *messages)
        render = _rendering(model, model.template)
        _require_served(model)
        reading = decide_reading(model, request, render)
        return Question(
            messages,
            merge(request.sampling, model.options),
            render=render,
            render_only=request.render_only,
            truncate=request.truncate,
            shift=request.shift,
            think_budget=request.think_budget,
            logprobs=request.logprobs,
            logit_bias=request.logit_bias,
            tags=image_tags(messages),
            **{field.name: getattr(reading, field.name) for field in fields(reading)},
        )

    def _unload(self, name: str) -> AsyncGenerator[Event]:
        """Unload a model. If its manifest was damaged after the load, it is found in memory by its name."""
        try:
            self._pool.unload(runner_key(self._resolver.find(name, missing=f"model '{name}' not found")))
        except StoreFailed:
            self._pool.unload_by_name(str(names.parse(name)))
        return _unloaded()

    async def _load(self, model: ResolvedModel, sampling: Sampling, keep_alive: float | None) -> AsyncGenerator[Event]:
        async with self._pool.lease(self._resolver.spec(model, merge(sampling, model.options)), self._resolver.keep_alive(keep_alive)):
            pass
        yield Done("load")

    async def _run(self, model: ResolvedModel, question: Question, keep_alive: float | None, sink: Sink | None) -> AsyncGenerator[Event]:
        """Lease a runner, run the engine, count the usage. Every answer takes this path."""
        started = time.monotonic_ns()
        spec = self._resolver.spec(model, question.sampling)
        async with (
            lend(self._pool, spec, self._resolver.keep_alive(keep_alive)) as lease,
            aclosing(ask(lease.engine, _in_slot(question, model, lease), sink)) as events,
        ):
            async for event in events:
                if isinstance(event, Done):
                    usage = replace(event.usage, load_ns=max(lease.waited_ns, 1), total_ns=time.monotonic_ns() - started)
                    event = replace(event, usage=usage)
                    self._counts.count_answer(event)
                yield event


async def _unloaded() -> AsyncGenerator[Event]:
    yield Done("unload")


def _check_model(model: ResolvedModel, request: GenerateRequest | ChatRequest, verb: str) -> None:
    """Refuse what the model cannot do, in Ollama's order: thinking, the verb, tools, images. `_reject_unsupported` comes after this."""
    if request.think and not request.think_if_possible and "thinking" not in model.capabilities:
        raise Unsupported(f'"{request.model}" does not support thinking')
    if "completion" not in model.capabilities:
        raise Unsupported(f'"{request.model}" does not support {verb}')
    if isinstance(request, ChatRequest) and request.tools and "tools" not in model.capabilities:
        raise Unsupported(f"{model.entry.name.full} does not support tools")
    if images := _images(request):
        if model.spec.projector is None:
            raise Unsupported(f'"{request.model}" does not support images; leave them out, or use a model with a projector')
        check_images(images)


def _reject_unsupported(model: ResolvedModel, request: GenerateRequest | ChatRequest) -> None:
    """Refuse what the model could do but this version cannot do with its engine, then invalid options."""
    needed = _features(request)
    for feature, refusal in UNSUPPORTED_FEATURES.items():
        if feature in needed and feature not in model.engine.features:
            raise Unsupported(refusal)
    if request.options_error:
        raise BadRequest(request.options_error)


def _features(request: AnswerRequest) -> set[str]:
    """What a request needs beyond text."""
    needed = {"thinking"} if request.think and not request.think_if_possible else set()
    needed |= {"format"} if request.constraint else set()
    needed |= {"logprobs"} if request.logprobs is not None else set()
    if isinstance(request, ChatRequest):
        needed |= {"tools"} if request.tools else set()
        needed |= {"format"} if request.tools and request.tool_choice.mode == "required" else set()
        needed |= {"tool_calls"} if any(message.tool_calls for message in request.messages) else set()
    return needed


def _require_served(model: ResolvedModel) -> None:
    """Refuse a model whose prompts or answers need what is only in Ollama. Raises Unsupported."""
    if model.unserved:
        raise Unsupported(f"{model.entry.name.full} cannot be asked here: {model.unserved}; use weights with a chat template")


def _images(request: GenerateRequest | ChatRequest) -> tuple[bytes, ...]:
    if isinstance(request, GenerateRequest):
        return request.images
    return tuple(image for message in request.messages for image in message.images)


def _rendering(model: ResolvedModel, template: ChatTemplate) -> Template | Literal["engine", "plain"]:
    """How the messages of a request become a prompt. Raises BadRequest for an invalid template."""
    return template.required() or ("engine" if model.has_chat_template else "plain")


def _in_slot(question: Question, model: ResolvedModel, lease: Lease) -> Question:
    """The question with the context of the slot that it was given."""
    least = MIN_IMAGE_CTX if model.spec.projector else MIN_CTX
    return replace(question, num_ctx=_context_length(question.sampling.num_ctx, lease, least), slot_ctx=lease.num_ctx)


def _context_length(num_ctx: int | None, lease: Lease, least: int) -> int:
    """The context length of one request: what it asks for but no less than `least`, at most what its slot has."""
    return min(max(num_ctx, least), lease.num_ctx) if num_ctx else lease.num_ctx
