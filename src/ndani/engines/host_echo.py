"""An engine without weights: it speaks the runner protocol in the same jail, and answers with your own words.

For tests, for trying the server without a model, and as the file to copy for a new engine. It says the words of the
last user message (or of the prompt), one token each, over and over until `n_predict`; without a limit, once. Words
that begin with @ are not said but obeyed: `@delay=0.05` (seconds per token), `@prefill=0.05` (seconds per batch of
prompt), `@hang` (says nothing, keeps its slot), `@crash` or `@crash=3` (kills its process, after so many tokens).

Field names and errors are llama.cpp's, as its server answers them. Token ids are stable: a piece of text of up to six
bytes is its id, a longer one is numbered by its checksum and known where it was seen.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import threading
import time
import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ndani.engines import Launch

_PIECE = re.compile(r"\s*\S+|\s+\Z")
_LONG = 1 << 52  # ids of pieces above six bytes: still exact in a JavaScript number
_USER, _END, _ASSISTANT = "<|user|>", "<|end|>", "<|assistant|>"
_STATUS = {200: "OK", 400: "Bad Request", 404: "Not Found"}


class Words:
    """Text to token ids and back: a piece is a word with the space before it, so that pieces join to the text."""

    def __init__(self) -> None:
        self._long: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text; `decode` gives the text back."""
        return [self._id(piece.encode()) for piece in _PIECE.findall(text)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; a long word never seen by this process is a question mark."""
        return b"".join(self._piece(token) for token in ids).decode(errors="replace")

    def _id(self, piece: bytes) -> int:
        if len(piece) <= 6:
            return int.from_bytes(b"\x01" + piece, "big")
        token = _LONG + zlib.crc32(piece)
        self._long[token] = piece
        return token

    def _piece(self, token: int) -> bytes:
        if token >= _LONG:
            return self._long.get(token, b" ?")
        return token.to_bytes(7, "big").lstrip(b"\0")[1:] if 0 < token < 1 << 49 else b""


@dataclass(slots=True)
class Slot:
    """One of the answers given at once; `seen` is what its prefix cache would hold."""

    id: int
    busy: bool = False
    seen: list[int] = field(default_factory=list)


@dataclass(slots=True)
class EchoPiece:
    """A step of an answer: words and their id, progress in the prompt, or (with `ended`) the reason it is over."""

    text: str = ""
    token: int | None = None
    progress: dict[str, int] | None = None
    ended: str = ""
    stopping_word: str = ""
    timings: dict[str, float] = field(default_factory=dict)


class Refusal(Exception):
    """An error body as llama.cpp writes it."""

    def __init__(self, status: int, kind: str, message: str, **more: int) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": status, "message": message, "type": kind, **more}}


class EchoModel:
    """Slots, and the answers that come out of them."""

    def __init__(self, launch: Launch) -> None:
        self.launch, self.words = launch, Words()
        self.slots = [Slot(number) for number in range(launch.slots)]
        self._free = asyncio.Semaphore(launch.slots)

    async def say(self, prompt: list[int], text: str, limit: int, stops: list[str]) -> AsyncGenerator[EchoPiece, None]:
        """Say the words of `text` in a slot, up to `limit` tokens (below zero: once). Waits while every slot is busy.

        Raises Refusal when the prompt has more tokens than a slot has context.
        """
        if len(prompt) >= self.launch.num_ctx:
            message = f"request ({len(prompt)} tokens) exceeds the available context size ({self.launch.num_ctx} tokens)"
            raise Refusal(400, "exceed_context_size_error", message, n_prompt_tokens=len(prompt), n_ctx=self.launch.num_ctx)
        async with self._free:
            slot = max((one for one in self.slots if not one.busy), key=lambda one: _common(one.seen, prompt))
            slot.busy = True
            try:
                async with aclosing(self._speak(slot, prompt, text, limit, stops)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                slot.busy = False

    async def _speak(self, slot: Slot, prompt: list[int], text: str, limit: int, stops: list[str]) -> AsyncGenerator[EchoPiece, None]:
        orders = dict(word[1:].partition("=")[::2] for word in text.split() if word.startswith("@"))
        words = [word for word in _PIECE.findall(text) if word.strip() and not word.strip().startswith("@")]
        began = time.monotonic()
        cached = min(_common(slot.seen, prompt), max(len(prompt) - 1, 0))
        slot.seen = list(prompt)
        for done in range(cached, len(prompt) + self.launch.num_batch, self.launch.num_batch):
            read = min(done, len(prompt))
            progress = {"total": len(prompt), "cache": cached, "processed": read, "time_ms": int((time.monotonic() - began) * 1000)}
            yield EchoPiece(progress=progress)
            await asyncio.sleep(float(orders.get("prefill") or 0) if read < len(prompt) else 0)
        if "hang" in orders:
            await asyncio.Event().wait()
        spoke, ended, stopping, out = time.monotonic(), "eos", "", ""
        wanted = len(words) if limit < 0 else max(limit, 1) if words else 0  # n_predict 0 gives one token, as in llama.cpp
        count = 0
        for count in range(1, wanted + 1):  # past the context's end too, as an engine that shifts it does
            if "crash" in orders and count > int(orders["crash"] or 0):
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(float(orders.get("delay") or 0))
            word = words[(count - 1) % len(words)]
            word = word.lstrip() if count == 1 else " " + word.strip()
            (token,) = self.words.encode(word)
            slot.seen.append(token)
            stopping = next((stop for stop in stops if stop in out + word), "")
            if stopping:
                ended = "word"
                yield EchoPiece(text=(out + word).partition(stopping)[0][len(out) :], token=token)
                break
            out += word
            yield EchoPiece(text=word, token=token)
        if not stopping and words and limit >= 0:
            ended = "limit"
        if "crash" in orders:
            os.kill(os.getpid(), signal.SIGKILL)
        now = time.monotonic()
        counts = {"cache_n": cached, "prompt_n": len(prompt) - cached, "predicted_n": count}
        spent = {"prompt_ms": (spoke - began) * 1000, "predicted_ms": (now - spoke) * 1000}
        yield EchoPiece(ended=ended, stopping_word=stopping, timings=counts | spent)


def _common(one: list[int], other: list[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


class Speech:
    """The routes: a request's body in, JSON or server-sent events out."""

    def __init__(self, mouth: EchoModel) -> None:
        self._mouth = mouth
        self._routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/health": lambda _: {"status": "ok"},
            "/slots": self._slots,
            "/tokenize": lambda body: {"tokens": mouth.words.encode(_text(body.get("content")))},
            "/detokenize": lambda body: {"content": mouth.words.decode(body.get("tokens") or [])},
            "/apply-template": lambda body: {"prompt": _render(body.get("messages") or [])},
            "/completion": self._completion,
            "/v1/chat/completions": self._chat,
        }

    def reply(self, path: str, raw: bytes) -> Any:
        """What a request gets: a JSON value, or an async generator of events. Raises Refusal."""
        route = self._routes.get(path.partition("?")[0])
        if route is None:
            raise Refusal(404, "not_found_error", "File Not Found")
        try:
            body = msgspec.json.decode(raw or b"{}")
        except msgspec.DecodeError:
            raise Refusal(400, "invalid_request_error", "parse error") from None
        if not isinstance(body, dict):
            raise Refusal(400, "invalid_request_error", "the body must be an object")
        return route(body)

    def _slots(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        n_ctx = self._mouth.launch.num_ctx
        return [{"id": one.id, "n_ctx": n_ctx, "speculative": False, "is_processing": one.busy} for one in self._mouth.slots]

    async def _completion(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any] | str, None]:
        if "prompt" not in body:
            raise Refusal(400, "invalid_request_error", "key 'prompt' not found")
        words, given = self._mouth.words, body["prompt"]
        prompt = words.encode(given) if isinstance(given, str) else list(given)
        limit = int(body.get("n_predict", -1))
        turn = _last_turn(given if isinstance(given, str) else words.decode(prompt))
        last = {"index": 0, "content": "", "tokens": [], "id_slot": 0, "stop": True, "tokens_evaluated": len(prompt)}
        count = 0
        async with aclosing(self._mouth.say(prompt, turn, limit, list(body.get("stop") or []))) as pieces:
            async for piece in pieces:
                count += piece.token is not None
                head = {"index": 0, "content": piece.text, "tokens": [0] if piece.token is None else [piece.token], "stop": False}
                counts = {"id_slot": -1, "tokens_predicted": count, "tokens_evaluated": len(prompt)}
                if piece.ended:
                    stop = {"stop_type": piece.ended, "stopping_word": piece.stopping_word, "truncated": False}
                    cached = {"tokens_predicted": count, "tokens_cached": len(prompt) + count - 1}
                    yield last | stop | cached | {"timings": piece.timings}
                elif piece.progress is None:
                    yield head | counts
                elif body.get("return_progress"):
                    yield head | counts | {"prompt_progress": piece.progress}

    async def _chat(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any] | str, None]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refusal(400, "invalid_request_error", "key 'messages' not found")
        template = _render(messages)
        prompt = self._mouth.words.encode(template)
        limit = int(body.get("max_tokens", body.get("n_predict", -1)))
        identity = f"chatcmpl-{os.urandom(12).hex()}"
        shell = {"created": int(time.time()), "id": identity, "model": "echo", "object": "chat.completion.chunk"}

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return {"choices": [{"finish_reason": reason, "index": 0, "delta": delta}], **shell}

        opening: dict[str, Any] | None = {"role": "assistant", "content": None}
        count = 0
        async with aclosing(self._mouth.say(prompt, _last_turn(template), limit, list(body.get("stop") or []))) as pieces:
            async for piece in pieces:
                count += piece.token is not None
                if piece.progress is not None:
                    if body.get("return_progress"):
                        yield chunk({"role": "assistant", "content": None}) | {"prompt_progress": piece.progress}
                    continue
                if opening is not None:
                    yield chunk(opening)
                    opening = None
                if not piece.ended:
                    yield chunk({"content": piece.text})
                    continue
                end = chunk({}, "length" if piece.ended == "limit" else "stop")
                if (body.get("stream_options") or {}).get("include_usage"):
                    yield end
                    usage: dict[str, Any] = {"completion_tokens": count, "prompt_tokens": len(prompt)}
                    usage["total_tokens"] = len(prompt) + count
                    usage["prompt_tokens_details"] = {"cached_tokens": piece.timings["cache_n"]}
                    yield {"choices": [], **shell, "usage": usage, "timings": piece.timings}
                else:
                    yield end | {"timings": piece.timings}
        yield "[DONE]"


def _text(content: object) -> str:
    """A message's content: a string, or parts of which the text ones count."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _render(messages: list[dict[str, Any]]) -> str:
    turns = [f"<|{turn.get('role', 'user')}|>\n{_text(turn.get('content'))}\n{_END}\n" for turn in messages]
    return "".join(turns) + _ASSISTANT


def _last_turn(prompt: str) -> str:
    """The last user message of a rendered conversation, or the whole of a raw prompt."""
    return prompt.rpartition(_USER)[2].partition(_END)[0]


class EchoProtocol(asyncio.Protocol):
    """One connection. Written on the bare protocol because that says at once when the client hangs up."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._held = b""
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._held += data
        self._next()

    def eof_received(self) -> None:
        if self._task is not None:
            self._task.cancel()  # the client left: stop computing

    def connection_lost(self, exc: Exception | None) -> None:
        self._may_write.set()
        self.eof_received()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def _next(self) -> None:
        """Take the next whole request from what arrived, if nothing is being answered."""
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found or self._task is not None:
            return
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length") or 0)
        if len(rest) < length:
            return
        body, self._held = rest[:length], rest[length:]
        self._task = asyncio.create_task(self._handle(request.split(" ")[1], body))
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or task.exception() is not None:
            self._transport.abort()
        else:
            self._next()

    async def _handle(self, path: str, body: bytes) -> None:
        try:
            reply = self._speech.reply(path, body)
            if not hasattr(reply, "__aiter__"):
                self._whole(200, reply)
                return
            stream = b'"stream":true' in body.replace(b" ", b"")
            async with aclosing(reply) as events:
                await (self._events(events) if stream else self._folded(events))
        except Refusal as refusal:
            self._whole(refusal.status, refusal.body)

    async def _events(self, events: AsyncGenerator[Any, None]) -> None:
        """Server-sent events in chunked encoding; the status line waits for the first one, so that a refusal has its own."""
        begun = False
        async for event in events:
            line = b"data: " + (event.encode() if isinstance(event, str) else msgspec.json.encode(event)) + b"\n\n"
            if not begun:
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                begun = True
            self._transport.write(b"%x\r\n%s\r\n" % (len(line), line))
            await self._may_write.wait()
        self._transport.write(b"0\r\n\r\n")

    async def _folded(self, events: AsyncGenerator[Any, None]) -> None:
        """A stream as one object: pieces joined, the rest from the last event."""
        last: dict[str, Any] = {}
        texts: list[str] = []
        async for event in events:
            if isinstance(event, dict):
                delta = event["choices"][0]["delta"] if event.get("choices") else {}
                texts.append(event.get("content") or delta.get("content") or "")
                last |= event if event.get("choices") != [] else {k: event[k] for k in ("usage", "timings")}
        if choices := last.get("choices"):
            message = {"role": "assistant", "content": "".join(texts)}
            last["choices"] = [{"finish_reason": choices[0]["finish_reason"], "index": 0, "message": message}]
            last["object"] = "chat.completion"
        else:
            last["content"] = "".join(texts)
        self._whole(200, last)

    def _whole(self, status: int, value: Any) -> None:
        body = msgspec.json.encode(value)
        head = f"HTTP/1.1 {status} {_STATUS[status]}\r\nServer: echo\r\nContent-Type: application/json; charset=utf-8\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class EchoHost:
    """The echo engine as a runner's host."""

    gpu = bare = False

    def prepare(self, launch: Launch) -> None:
        """Nothing to import: this file has imported all it needs, and the jail may shut."""

    def open(self, launch: Launch) -> None:
        """Listen, and serve from a thread of its own; returns once a connection would be answered."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(launch.socket)
        listener.listen(1024)
        up = threading.Event()

        async def serve() -> None:
            speech = Speech(EchoModel(launch))
            server = await asyncio.get_running_loop().create_unix_server(lambda: EchoProtocol(speech), sock=listener)
            up.set()
            await server.serve_forever()

        threading.Thread(target=asyncio.run, args=(serve(),), name="echo", daemon=True).start()
        up.wait()
