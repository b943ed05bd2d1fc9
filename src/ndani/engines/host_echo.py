"""An engine without weights: it serves the runner protocol in the same jail, and answers with the words of the request.

It is for tests, for trying the server without a model, and as the file to copy for a new engine. It generates the words of the
last user message (or of the prompt), one token each, again and again until `n_predict`; without a limit, once. Words that begin
with @ are directives: `@delay=0.05` (seconds per token), `@prefill=0.05` (seconds per batch of the prompt), `@hang` (generates
nothing, keeps its slot), `@crash` or `@crash=3` (kills its process, after this number of tokens).

Field names and errors are those of llama.cpp's server. Token ids are stable: a token of up to six bytes is encoded in its id. A
longer one has an id made of its checksum, and can only be decoded by the process that encoded it.
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

from ndani.engines import Launch, LaunchOptions

_TOKEN = re.compile(r"\s*\S+|\s+\Z")
_FIRST_LONG_ID = 1 << 52  # ids of tokens above six bytes; still exact as a JavaScript number
_USER, _END, _ASSISTANT = "<|user|>", "<|end|>", "<|assistant|>"
_STATUS = {200: "OK", 400: "Bad Request", 404: "Not Found"}


class EchoTokenizer:
    """Text to token ids and back. A token is a word with the space before it, so that the tokens concatenate to the text."""

    def __init__(self) -> None:
        self._long: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text; `decode` gives the text back."""
        return [self._id(token.encode()) for token in _TOKEN.findall(text)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; a long token that this process has not encoded becomes a question mark."""
        return b"".join(self._token_bytes(token) for token in ids).decode(errors="replace")

    def _id(self, token_bytes: bytes) -> int:
        if len(token_bytes) <= 6:
            return int.from_bytes(b"\x01" + token_bytes, "big")
        token = _FIRST_LONG_ID + zlib.crc32(token_bytes)
        self._long[token] = token_bytes
        return token

    def _token_bytes(self, token: int) -> bytes:
        if token >= _FIRST_LONG_ID:
            return self._long.get(token, b" ?")
        return token.to_bytes(7, "big").lstrip(b"\0")[1:] if 0 < token < 1 << 49 else b""


@dataclass(slots=True)
class Slot:
    """One of the concurrent slots; `cached_tokens` is what its prefix cache would contain."""

    id: int
    busy: bool = False
    cached_tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class EchoStep:
    """A step of an answer: a token with its text, prompt progress, or the end (with `stop_type`)."""

    text: str = ""
    token: int | None = None
    progress: dict[str, int] | None = None
    stop_type: str = ""
    stopping_word: str = ""
    timings: dict[str, float] = field(default_factory=dict)


class Refusal(Exception):
    """An error body as llama.cpp writes it."""

    def __init__(self, status: int, kind: str, message: str, **fields: int) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"code": status, "message": message, "type": kind, **fields}}


class EchoModel:
    """The slots, and the generation of answers in them."""

    def __init__(self, options: LaunchOptions) -> None:
        self.options, self.tokenizer = options, EchoTokenizer()
        self.slots = [Slot(number) for number in range(options.slots)]
        self._free = asyncio.Semaphore(options.slots)

    async def generate(self, prompt: list[int], text: str, limit: int, stops: list[str]) -> AsyncGenerator[EchoStep, None]:
        """Generate the words of `text` in a slot, up to `limit` tokens (negative: once). Waits while all slots are busy.

        Raises Refusal when the prompt has more tokens than a slot has context.
        """
        if len(prompt) >= self.options.num_ctx:
            message = f"request ({len(prompt)} tokens) exceeds the available context size ({self.options.num_ctx} tokens)"
            raise Refusal(400, "exceed_context_size_error", message, n_prompt_tokens=len(prompt), n_ctx=self.options.num_ctx)
        async with self._free:
            slot = max((slot for slot in self.slots if not slot.busy), key=lambda slot: _common_prefix(slot.cached_tokens, prompt))
            slot.busy = True
            try:
                async with aclosing(self._generate(slot, prompt, text, limit, stops)) as steps:
                    async for step in steps:
                        yield step
            finally:
                slot.busy = False

    async def _generate(self, slot: Slot, prompt: list[int], text: str, limit: int, stops: list[str]) -> AsyncGenerator[EchoStep, None]:
        directives = dict(word[1:].partition("=")[::2] for word in text.split() if word.startswith("@"))
        words = [word for word in _TOKEN.findall(text) if word.strip() and not word.strip().startswith("@")]
        started = time.monotonic()
        cached = min(_common_prefix(slot.cached_tokens, prompt), max(len(prompt) - 1, 0))
        slot.cached_tokens = list(prompt)
        for done in range(cached, len(prompt) + self.options.num_batch, self.options.num_batch):
            read = min(done, len(prompt))
            progress = {"total": len(prompt), "cache": cached, "processed": read, "time_ms": int((time.monotonic() - started) * 1000)}
            yield EchoStep(progress=progress)
            await asyncio.sleep(float(directives.get("prefill") or 0) if read < len(prompt) else 0)
        if "hang" in directives:
            await asyncio.Event().wait()
        generation_started, stop_type, stopping, text_so_far = time.monotonic(), "eos", "", ""
        token_limit = len(words) if limit < 0 else max(limit, 1) if words else 0  # n_predict 0 gives one token, as in llama.cpp
        count = 0
        for count in range(1, token_limit + 1):  # beyond the end of the context too, like an engine that shifts it
            if "crash" in directives and count > int(directives["crash"] or 0):
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(float(directives.get("delay") or 0))
            word = words[(count - 1) % len(words)]
            word = word.lstrip() if count == 1 else " " + word.strip()
            (token,) = self.tokenizer.encode(word)
            slot.cached_tokens.append(token)
            stopping = next((stop for stop in stops if stop in text_so_far + word), "")
            if stopping:
                stop_type = "word"
                yield EchoStep(text=(text_so_far + word).partition(stopping)[0][len(text_so_far) :], token=token)
                break
            text_so_far += word
            yield EchoStep(text=word, token=token)
        if not stopping and words and limit >= 0:
            stop_type = "limit"
        if "crash" in directives:
            os.kill(os.getpid(), signal.SIGKILL)
        now = time.monotonic()
        counters = {"cache_n": cached, "prompt_n": len(prompt) - cached, "predicted_n": count}
        spent = {"prompt_ms": (generation_started - started) * 1000, "predicted_ms": (now - generation_started) * 1000}
        yield EchoStep(stop_type=stop_type, stopping_word=stopping, timings=counters | spent)


def _common_prefix(left: list[int], right: list[int]) -> int:
    return next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


class EchoRoutes:
    """The HTTP routes: the body of a request in, JSON or server-sent events out."""

    def __init__(self, model: EchoModel) -> None:
        self._model = model
        self._routes: dict[str, Callable[[dict[str, Any]], Any]] = {
            "/health": lambda _: {"status": "ok"},
            "/slots": self._slots,
            "/tokenize": lambda body: {"tokens": model.tokenizer.encode(_text(body.get("content")))},
            "/detokenize": lambda body: {"content": model.tokenizer.decode(body.get("tokens") or [])},
            "/apply-template": lambda body: {"prompt": _render(body.get("messages") or [])},
            "/completion": self._completion,
            "/v1/chat/completions": self._chat,
        }

    def reply(self, path: str, raw: bytes) -> Any:
        """The response to a request: a JSON value, or an async generator of events. Raises Refusal."""
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
        n_ctx = self._model.options.num_ctx
        return [{"id": slot.id, "n_ctx": n_ctx, "speculative": False, "is_processing": slot.busy} for slot in self._model.slots]

    async def _completion(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any] | str, None]:
        if "prompt" not in body:
            raise Refusal(400, "invalid_request_error", "key 'prompt' not found")
        tokenizer, raw_prompt = self._model.tokenizer, body["prompt"]
        prompt = tokenizer.encode(raw_prompt) if isinstance(raw_prompt, str) else list(raw_prompt)
        limit = int(body.get("n_predict", -1))
        turn = _last_turn(raw_prompt if isinstance(raw_prompt, str) else tokenizer.decode(prompt))
        last_event = {"index": 0, "content": "", "tokens": [], "id_slot": 0, "stop": True, "tokens_evaluated": len(prompt)}
        count = 0
        async with aclosing(self._model.generate(prompt, turn, limit, list(body.get("stop") or []))) as steps:
            async for step in steps:
                count += step.token is not None
                event = {"index": 0, "content": step.text, "tokens": [0] if step.token is None else [step.token], "stop": False}
                counters = {"id_slot": -1, "tokens_predicted": count, "tokens_evaluated": len(prompt)}
                if step.stop_type:
                    stop = {"stop_type": step.stop_type, "stopping_word": step.stopping_word, "truncated": False}
                    cached = {"tokens_predicted": count, "tokens_cached": len(prompt) + count - 1}
                    yield last_event | stop | cached | {"timings": step.timings}
                elif step.progress is None:
                    yield event | counters
                elif body.get("return_progress"):
                    yield event | counters | {"prompt_progress": step.progress}

    async def _chat(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any] | str, None]:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise Refusal(400, "invalid_request_error", "key 'messages' not found")
        template = _render(messages)
        prompt = self._model.tokenizer.encode(template)
        limit = int(body.get("max_tokens", body.get("n_predict", -1)))
        identity = f"chatcmpl-{os.urandom(12).hex()}"
        envelope = {"created": int(time.time()), "id": identity, "model": "echo", "object": "chat.completion.chunk"}

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            return {"choices": [{"finish_reason": reason, "index": 0, "delta": delta}], **envelope}

        opening: dict[str, Any] | None = {"role": "assistant", "content": None}
        count = 0
        async with aclosing(self._model.generate(prompt, _last_turn(template), limit, list(body.get("stop") or []))) as steps:
            async for step in steps:
                count += step.token is not None
                if step.progress is not None:
                    if body.get("return_progress"):
                        yield chunk({"role": "assistant", "content": None}) | {"prompt_progress": step.progress}
                    continue
                if opening is not None:
                    yield chunk(opening)
                    opening = None
                if not step.stop_type:
                    yield chunk({"content": step.text})
                    continue
                end = chunk({}, "length" if step.stop_type == "limit" else "stop")
                if (body.get("stream_options") or {}).get("include_usage"):
                    yield end
                    usage: dict[str, Any] = {"completion_tokens": count, "prompt_tokens": len(prompt)}
                    usage["total_tokens"] = len(prompt) + count
                    usage["prompt_tokens_details"] = {"cached_tokens": step.timings["cache_n"]}
                    yield {"choices": [], **envelope, "usage": usage, "timings": step.timings}
                else:
                    yield end | {"timings": step.timings}
        yield "[DONE]"


def _text(content: object) -> str:
    """The text of a message's content: a string, or a list of parts, of which only text parts count."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _render(messages: list[dict[str, Any]]) -> str:
    turns = [f"<|{turn.get('role', 'user')}|>\n{_text(turn.get('content'))}\n{_END}\n" for turn in messages]
    return "".join(turns) + _ASSISTANT


def _last_turn(prompt: str) -> str:
    """The last user message of a rendered conversation, or a whole raw prompt."""
    return prompt.rpartition(_USER)[2].partition(_END)[0]


class EchoProtocol(asyncio.Protocol):
    """One connection. It is an asyncio protocol because that notices at once when the client disconnects."""

    def __init__(self, routes: EchoRoutes) -> None:
        self._routes = routes
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._start_next_request()

    def eof_received(self) -> None:
        if self._task is not None:
            self._task.cancel()  # the client has disconnected: stop computing

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self.eof_received()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _start_next_request(self) -> None:
        """Handle the next complete request in the buffer, unless one is in progress."""
        head, separator, payload = self._buffer.partition(b"\r\n\r\n")
        if not separator or self._task is not None:
            return
        request, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length") or 0)
        if len(payload) < length:
            return
        body, self._buffer = payload[:length], payload[length:]
        self._task = asyncio.create_task(self._handle(request.split(" ")[1], body))
        self._task.add_done_callback(self._request_done)

    def _request_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or task.exception() is not None:
            self._transport.abort()
        else:
            self._start_next_request()

    async def _handle(self, path: str, body: bytes) -> None:
        try:
            reply = self._routes.reply(path, body)
            if not hasattr(reply, "__aiter__"):
                self._send_json(200, reply)
                return
            stream = b'"stream":true' in body.replace(b" ", b"")
            async with aclosing(reply) as events:
                await (self._send_events(events) if stream else self._send_joined(events))
        except Refusal as refusal:
            self._send_json(refusal.status, refusal.body)

    async def _send_events(self, events: AsyncGenerator[Any, None]) -> None:
        """Server-sent events in chunked encoding. The status line waits for the first event, so that an error can have its own status."""
        headers_sent = False
        async for event in events:
            line = b"data: " + (event.encode() if isinstance(event, str) else msgspec.json.encode(event)) + b"\n\n"
            if not headers_sent:
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
                headers_sent = True
            self._transport.write(b"%x\r\n%s\r\n" % (len(line), line))
            await self._writable.wait()
        self._transport.write(b"0\r\n\r\n")

    async def _send_joined(self, events: AsyncGenerator[Any, None]) -> None:
        """A stream as one object: the texts joined, the other fields from the last event."""
        last_event: dict[str, Any] = {}
        texts: list[str] = []
        async for event in events:
            if isinstance(event, dict):
                delta = event["choices"][0]["delta"] if event.get("choices") else {}
                texts.append(event.get("content") or delta.get("content") or "")
                last_event |= event if event.get("choices") != [] else {k: event[k] for k in ("usage", "timings")}
        if choices := last_event.get("choices"):
            message = {"role": "assistant", "content": "".join(texts)}
            last_event["choices"] = [{"finish_reason": choices[0]["finish_reason"], "index": 0, "message": message}]
            last_event["object"] = "chat.completion"
        else:
            last_event["content"] = "".join(texts)
        self._send_json(200, last_event)

    def _send_json(self, status: int, value: Any) -> None:
        body = msgspec.json.encode(value)
        head = f"HTTP/1.1 {status} {_STATUS[status]}\r\nServer: echo\r\nContent-Type: application/json; charset=utf-8\r\n"
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class EchoHost:
    """The echo engine as a runner's host."""

    gpu = without_template = False

    def prepare(self, launch: Launch) -> None:
        """Nothing to do: this file has imported all it needs, so the jail can be closed."""

    def open(self, launch: Launch) -> None:
        """Listen, and serve in a separate thread; returns once connections are accepted."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(launch.socket)
        listener.listen(1024)
        listening = threading.Event()

        async def serve() -> None:
            routes = EchoRoutes(EchoModel(launch.options))
            server = await asyncio.get_running_loop().create_unix_server(lambda: EchoProtocol(routes), sock=listener)
            listening.set()
            await server.serve_forever()

        threading.Thread(target=asyncio.run, args=(serve(),), name="echo", daemon=True).start()
        listening.wait()
