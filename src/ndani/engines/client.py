"""The front's side of an engine: the runner protocol, spoken to one runner's socket.

Requests and answers of the protocol are decoded here and nowhere else. The engine's own error words are never
passed on: they quote prompts (DESIGN, traps, 8).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from ndani.engines import is_bare
from ndani.engines.stream import Coalescer, exchange
from ndani.errors import BadRequest, EngineFailed
from ndani.types import Message

_UNREADABLE = "the chat template cannot be read that this model's file carries; create the model again with a TEMPLATE of its own"
_NONE = "the engine gave an answer that is none; ask again"
_NONSENSE = (msgspec.DecodeError, ValueError, RecursionError)

_T = TypeVar("_T")


class TooLong(Exception):
    """The prompt has more tokens than a slot has context. Not a user's error yet: `question.ask` cuts and asks again."""

    def __init__(self, tokens: int) -> None:
        super().__init__(tokens)
        self.tokens = tokens


#: Numbers as an engine can say them: they are added up and written down, and who has been made to lie must not spoil that.
_Token = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**53)]
_Count = Annotated[int, msgspec.Meta(ge=-1, le=2**31)]
_Milliseconds = Annotated[float, msgspec.Meta(ge=-1.0, le=1e12)]


class Timings(msgspec.Struct):
    """What the engine measured: tokens and milliseconds, of the prompt (without cached ones) and of the answer."""

    cache_n: _Count = 0
    prompt_ms: _Milliseconds = 0.0
    predicted_n: _Count = 0
    predicted_ms: _Milliseconds = 0.0


class _Error(msgspec.Struct):
    type: str = ""
    n_prompt_tokens: _Count = 0


class _Refusal(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


class Reading(msgspec.Struct):
    """How much of a prompt has been read, in tokens."""

    total: _Count = 0
    processed: _Count = 0


class Chunk(msgspec.Struct):
    """One event of `/completion`. `prompt_progress` is there while the prompt is read, `stop` in the last one only."""

    content: str = ""
    tokens: Annotated[list[_Token], msgspec.Meta(max_length=1024)] = []
    stop: bool = False
    stop_type: str = ""
    tokens_evaluated: _Count = 0
    timings: Timings | None = None
    prompt_progress: Reading | None = None
    error: _Error | None = None


class _Vector(msgspec.Struct):
    """One vector, in base64 of little-endian 32-bit floats: a quarter of the bytes of its decimals."""

    index: _Count
    embedding: bytes


class _Used(msgspec.Struct):
    prompt_tokens: _Count = 0


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Used = msgspec.field(default_factory=_Used)


class _Prompt(msgspec.Struct):
    prompt: str


class _Content(msgspec.Struct):
    content: str


class _Tokens(msgspec.Struct):
    tokens: list[_Token]


class _Raw(msgspec.Struct):
    tokens: msgspec.Raw


#: Bytes of a token id in a list of them, at most, and tokens that stand around any text.
_WIDEST, _FRAME = 12, 64
#: Bytes of the longest vector that any model gives, as it is sent: 24,000 numbers.
_WIDEST_VECTOR = 1 << 17
_vectors = msgspec.json.Decoder(_Vectors)
_chunk = msgspec.json.Decoder(Chunk)
_refusal = msgspec.json.Decoder(_Refusal)

#: The last event would repeat the prompt and every setting; these are the fields that are read.
_LAST_FIELDS = ["content", "tokens", "stop", "stop_type", "tokens_evaluated", "timings"]


@dataclass(frozen=True, slots=True)
class _Route:
    """A route of the runner protocol, and what is said when an engine refuses what was asked there.

    `any_status`: whatever the status, it is the request's fault. llama.cpp answers 500 where a template raises or a token id
    is none.
    """

    path: str
    refused: str = "the engine refuses this request"
    any_status: bool = False

    def refusal(self, status: int, error: _Error) -> Exception:
        """The error for an engine's refusal: its type is read, its words are not."""
        if error.type == "exceed_context_size_error":
            return TooLong(error.n_prompt_tokens)
        if self.any_status or 400 <= status < 500:
            return BadRequest(self.refused)
        return EngineFailed("the engine could not answer; ask again")


_APPLY_TEMPLATE = _Route("/apply-template", "this model's chat template refuses these messages; check their roles and order", True)
_TOKENIZE = _Route("/tokenize")
_DETOKENIZE = _Route("/detokenize", "context holds token ids that this model does not have", True)
_COMPLETION = _Route("/completion", "the engine refuses these options; check their values")
_EMBEDDINGS = _Route("/v1/embeddings", "there is a text without a single token, and this model has no vector for that")


class Engine:
    """One runner, as the front sees it. Every method raises EngineFailed when the runner goes away."""

    def __init__(self, socket: str, coalescer: Coalescer) -> None:
        self._socket = socket
        self._coalescer = coalescer
        self._bare = is_bare(socket)

    async def render(self, messages: tuple[Message, ...], think: bool | None = None) -> str:
        """The prompt that the model's own chat template makes of a conversation; `think` is its `enable_thinking`, where said.

        Raises BadRequest when the template refuses it (a role it does not know, turns in an order it forbids), or is none
        that the engine can read.
        """
        if self._bare:
            raise BadRequest(_UNREADABLE)
        body: dict[str, Any] = {"messages": [_turn(message) for message in messages]}
        if think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": think}
        return (await self._ask(_APPLY_TEMPLATE, body, _Prompt)).prompt

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a prompt; `special`: with what the model puts in front of every prompt."""
        whole = await self._fetch(_TOKENIZE, {"content": text, "add_special": special, "parse_special": True})
        with _sense():
            # A token has at least one byte, and few stand around a text: a list of more would be memory without end.
            if whole.count(b",") > _FRAME + 4 * len(text.encode()):
                raise ValueError("more tokens than there is text")
            return msgspec.json.decode(whole, type=_Tokens).tokens

    async def measure(self, text: str, first: int, last: int) -> tuple[list[int], list[int], int]:
        """How many tokens a prompt has, the ids of the first ones and of the last ones. The rest is counted and not made into numbers.

        So a text of many megabytes does not keep the others waiting while it is.
        """
        whole = await self._fetch(_TOKENIZE, {"content": text, "add_special": True, "parse_special": True})
        with _sense():
            ids = bytes(msgspec.json.decode(whole, type=_Raw).tokens)[1:-1]
            if not ids:
                return [], [], 0
            # Only the pieces that hold them are cut out: an id and what stands around it is no longer than _WIDEST.
            front = ids[: _WIDEST * first].split(b",", first)[:first]
            back = ids[-_WIDEST * last :].rsplit(b",", last)[-last:] if last else []
            return [int(one) for one in front], [int(one) for one in back], ids.count(b",") + 1

    async def detokenize(self, tokens: tuple[int, ...] | list[int]) -> str:
        """The text of token ids. Raises BadRequest for ids that this model does not have."""
        return (await self._ask(_DETOKENIZE, {"tokens": list(tokens)}, _Content)).content

    async def embed(self, inputs: list[str | list[int]]) -> tuple[list[bytes], int]:
        """A vector for each input (a text, or token ids that count as they are), in order, and how many tokens were read.

        Vectors have length 1, as little-endian 32-bit floats. What is under way goes on when the client leaves: ask for
        little at once. Raises BadRequest for an input without tokens.
        """
        body = {"input": inputs, "encoding_format": "base64", "embd_normalize": 2}
        whole = await self._fetch(_EMBEDDINGS, body, more=_WIDEST_VECTOR * len(inputs))
        with _sense():
            found = _vectors.decode(whole)
        vectors = [one.embedding for one in sorted(found.data, key=lambda one: one.index)]
        if len(vectors) != len(inputs) or {len(one) for one in vectors} - {4 * (len(vectors[0]) // 4)} or not vectors[0]:
            raise EngineFailed(_NONE)
        return vectors, max(found.usage.prompt_tokens, 0)

    async def complete(
        self, prompt: str | list[int], options: dict[str, Any], tap: Callable[[Chunk], bool] | None = None
    ) -> AsyncGenerator[Chunk]:
        """Continue a prompt, piece by piece; the last chunk has `stop` set.

        Always streamed and with progress, so that the engine notices between two batches when nobody listens any
        more (trap 1). Closing this generator stops the computation. While the next chunk is waited for, `tap` is
        offered each that comes; one that it takes is not yielded. Raises TooLong, BadRequest.
        """
        body = {
            **options,
            "prompt": prompt,
            "stream": True,
            "return_progress": True,
            "return_tokens": True,
            "response_fields": _LAST_FIELDS,
        }
        async with exchange(self._socket, _COMPLETION.path, msgspec.json.encode(body), self._coalescer) as call:
            if await call.headers() != 200:
                raise _COMPLETION.refusal(call.status, _error_of(await call.end()))
            call.stream(_offering(tap) if tap else None)
            while batch := await call.events():
                for event in batch:
                    if event.startswith(b"data: {"):
                        with _sense():
                            chunk = _chunk.decode(memoryview(event)[6:])
                        if chunk.error is not None:
                            raise _COMPLETION.refusal(500, chunk.error)
                        yield chunk
                        if chunk.stop:
                            return
                    elif event.startswith(b"error: "):
                        raise EngineFailed("the engine could not go on with this answer; ask again")
        raise EngineFailed("the engine ended an answer too early; ask again")

    async def _ask(self, route: _Route, body: dict[str, Any], kind: type[_T]) -> _T:
        whole = await self._fetch(route, body)
        with _sense():
            return msgspec.json.decode(whole, type=kind)

    async def _fetch(self, route: _Route, body: dict[str, Any], *, more: int = 0) -> bytes:
        async with exchange(self._socket, route.path, msgspec.json.encode(body), self._coalescer, more=more) as call:
            status = await call.headers()
            whole = await call.end()
        if status != 200:
            error = route.refusal(status, _error_of(whole))
            raise EngineFailed(_NONE) if isinstance(error, TooLong) else error  # no context is filled by these questions
        return whole


def _turn(message: Message) -> dict[str, str]:
    """A message in the engine's words, without what it does not have."""
    more = {"reasoning_content": message.thinking, "name": message.tool_name, "tool_call_id": message.tool_call_id}
    return {"role": message.role, "content": message.content} | {key: text for key, text in more.items() if text}


def _offering(tap: Callable[[Chunk], bool]) -> Callable[[bytes], bool]:
    """A tap of chunks as a tap of events; what is no piece of an answer passes by."""
    decode = _chunk.decode

    def offer(event: bytes) -> bool:
        if not event.startswith(b"data: {"):
            return False
        try:
            chunk = decode(memoryview(event)[6:])
        except _NONSENSE:  # said where it is read in the ordinary way
            return False
        return tap(chunk)

    return offer


def _error_of(body: bytes) -> _Error:
    try:
        return _refusal.decode(body).error
    except _NONSENSE:
        return _Error()


@contextmanager
def _sense() -> Iterator[None]:
    """An answer that no engine gives is the engine's fault, whatever is wrong with it: its runner is not asked again."""
    try:
        yield
    except _NONSENSE:
        raise EngineFailed(_NONE) from None
