"""The routes of responses: create, read, delete, list the input. Those of conversations are in `conversations`."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response, streaming
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.api.edge.request_body import decode_exact
from ndani.api.responses.answer import AnswerSink, ResponseAnswer
from ndani.api.responses.forms import form_of
from ndani.api.responses.input_items import parse_items, to_messages
from ndani.api.responses.items import Item, new_id
from ndani.api.responses.objects import ConversationReference, DeletedObject, InputTokens, ResponseObject
from ndani.api.responses.paging import page_of
from ndani.api.responses.requests import ResponseRequest, parse_response
from ndani.api.responses.state import KeptResponse, State
from ndani.errors import BadRequest, NotFound
from ndani.service import Service
from ndani.types import ChatRequest, Message


class ResponseRoutes:
    """The routes of responses, over one service and what is kept."""

    def __init__(self, service: Service, state: State) -> None:
        self._service = service
        self._state = state

    async def create(self, request: Request) -> Response:
        """POST /v1/responses."""
        parsed = parse_response(await decode_exact(request))
        given = parsed.given
        items, chat = self._conversation(parsed)
        keeps = self._keeps(parsed, items)
        opening = _opening(parsed, keeps)

        def keep(response: ResponseObject) -> None:
            if parsed.conversation:
                self._state.extend(parsed.conversation, [*items, *response.output])
            if keeps:
                self._state.keep(KeptResponse(response, items))

        answer = ResponseAnswer(opening, form_of(given.model), keep, shows_encrypted=parsed.shows_encrypted)
        response_format = answer.response_format()
        sink = streaming.StreamSink(answer.event) if given.stream else AnswerSink(answer)
        events, ignored = await self._service.answers.chat(chat, sink)
        return await streaming.respond(events, sink, response_format, ignored_headers([*parsed.ignored, *ignored]))

    async def input_tokens(self, request: Request) -> Response:
        """POST /v1/responses/input_tokens: exact, since the model's own tokenizer counts the prompt that would be sent."""
        parsed = parse_response(await decode_exact(request))
        _, chat = self._conversation(parsed)
        return json_response.respond(InputTokens(input_tokens=await self._service.answers.count_tokens(chat)))

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/responses/{id}."""
        if request.query_params.get("stream", "false") not in ("false", "0"):
            raise BadRequest("a kept response is not streamed again; leave out stream")
        return await json_response.respond_large(msgspec.to_builtins(self._state.response(request.path_params["id"]).response))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}."""
        response_id = request.path_params["id"]
        self._state.delete_response(response_id)
        return json_response.respond(DeletedObject(id=response_id, object="response.deleted"))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/responses/{id}/cancel: every response that has an id here is finished."""
        self._state.response(request.path_params["id"])
        raise BadRequest("only a response in the background can be cancelled, and this one is finished; to stop one, close its connection")

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items."""
        kept = self._state.response(request.path_params["id"])
        return await json_response.respond_large(msgspec.to_builtins(page_of(kept.input, request.query_params)))

    def _conversation(self, parsed: ResponseRequest) -> tuple[tuple[Item, ...], ChatRequest]:
        """The items of the request, and the request to the service with all that came before them. Raises BadRequest, NotFound."""
        given = parsed.given.input
        items = parse_items(given if given is not None else [], "input", self._state.items_by_id)
        history = self._history(parsed)
        if not items and not history:
            raise BadRequest("input is required: a text, or an array of items")
        return items, _chat(parsed, to_messages((*history, *items)))

    def _history(self, parsed: ResponseRequest) -> tuple[Item, ...]:
        """The items before those of the request. Raises NotFound for a response, BadRequest for a conversation that is not here."""
        if parsed.given.previous_response_id:
            return self._state.history(parsed.given.previous_response_id)
        if not parsed.conversation:
            return ()
        try:
            return tuple(self._state.conversation(parsed.conversation).items)
        except NotFound as error:
            raise BadRequest(str(error)) from None

    def _keeps(self, parsed: ResponseRequest, items: tuple[Item, ...]) -> bool:
        """Whether the response is to be kept: unless the request says no. Raises BadRequest if it says yes and it cannot be."""
        keeps = self._state.would_keep(items)
        if parsed.given.store and not keeps:
            why = "NDANI_RESPONSES_TTL is 0" if self._state.ttl <= 0 else "its input is too large"
            raise BadRequest(f"this response cannot be kept: {why}; leave out store, or set it to false")
        return keeps and parsed.given.store is not False


def _opening(parsed: ResponseRequest, keeps: bool) -> ResponseObject:
    """The response before its answer: what it repeats of the request."""
    given = parsed.given
    reasoning = given.reasoning
    return ResponseObject(
        id=new_id("resp"),
        created_at=int(time.time()),
        model=given.model,
        instructions=given.instructions,
        previous_response_id=given.previous_response_id,
        conversation=ConversationReference(parsed.conversation) if parsed.conversation else None,
        tools=parsed.declared,
        tool_choice=given.tool_choice if given.tool_choice is not None else "auto",
        parallel_tool_calls=given.parallel_tool_calls is not False,
        text={"format": parsed.text},
        reasoning={"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary} if reasoning else None,
        temperature=_number(given.temperature, 1),
        top_p=_number(given.top_p, 1),
        presence_penalty=_number(given.presence_penalty, 0),
        frequency_penalty=_number(given.frequency_penalty, 0),
        top_logprobs=given.top_logprobs or 0,
        max_output_tokens=given.max_output_tokens,
        max_tool_calls=given.max_tool_calls,
        truncation=given.truncation or "disabled",
        store=keeps,
        metadata=given.metadata or {},
        user=given.user,
        safety_identifier=given.safety_identifier,
        prompt_cache_key=given.prompt_cache_key,
    )


def _number(value: float | None, default: int) -> int | float:
    """A number as it is usually written: without a fraction where it has none."""
    if value is None:
        return default
    return int(value) if value == int(value) else value


def _chat(parsed: ResponseRequest, messages: tuple[Message, ...]) -> ChatRequest:
    """The request to the service. Instructions are of this request alone: those of an earlier one are not carried over."""
    given = parsed.given
    if given.instructions:
        messages = (Message("system", given.instructions), *messages)
    may_drop_turns = given.truncation == "auto"
    return ChatRequest(
        model=given.model.strip(),
        messages=messages,
        sampling=parsed.sampling,
        keep_alive=parsed.keep_alive,
        truncate=may_drop_turns,
        shift=may_drop_turns,
        think=parsed.think,
        constraint=parsed.constraint,
        logprobs=parsed.logprobs,
        tools=parsed.tools,
        tool_choice=parsed.tool_choice,
        parallel_tool_calls=given.parallel_tool_calls is not False,
    )
