"""A minimal client for both endpoints: it counts tokens in the received bytes and parses nothing.

It runs on the same processor cores as the engine, so its own cost must be low, and equal for both endpoints.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

from ndani.engines.client import _LAST_FIELDS
from ndani.engines.sampling import DEFAULTS, merge, translate
from ndani.types import Sampling


@dataclass(frozen=True)
class Endpoint:
    """Where requests go: a Unix socket (straight to the runner) or a TCP port (through the front)."""

    socket_path: str = ""
    port: int = 0

    def request(self, prompt: str, tokens: int, chat: bool = False) -> bytes:
        """The same prompt as a request for this endpoint."""
        sampling = Sampling(temperature=0.0, seed=1, num_predict=tokens)
        if self.socket_path:
            body = translate(merge(sampling, DEFAULTS), 4096) | {"stream": True, "return_progress": True}
            if chat:
                body |= {"messages": [{"role": "user", "content": prompt}]}
                return _post("/v1/chat/completions", body)
            return _post("/completion", body | {"prompt": prompt, "return_tokens": True, "response_fields": _LAST_FIELDS})
        options = {"temperature": 0, "seed": 1, "num_predict": tokens}
        if chat:
            return _post("/api/chat", {"model": "smollm2:135m", "messages": [{"role": "user", "content": prompt}], "options": options})
        return _post("/api/generate", {"model": "smollm2:135m", "prompt": prompt, "raw": True, "options": options})

    async def complete(self, request: bytes) -> tuple[int, float]:
        """Send a request and read the response to its end. Returns the number of tokens, and the seconds to the first one."""
        connecting = asyncio.open_unix_connection(self.socket_path) if self.socket_path else asyncio.open_connection("127.0.0.1", self.port)
        started = time.perf_counter()
        reader, writer = await connecting
        writer.write(request)
        tokens, first = 0, 0.0
        while data := await reader.read(65536):
            # The engine's progress events and the last event have such a field, but no token.
            count = data.count(b'"response":"') + data.count(b'"content":"') - data.count(b'"prompt_progress"') - data.count(b'"stop":true')
            count -= data.count(b'"done":true')
            if count > 0 and not tokens:
                first = time.perf_counter() - started
            tokens += max(count, 0)
        writer.close()
        return tokens, first


def _post(route: str, body: dict[str, object]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def burst(endpoint: Endpoint, streams: int, tokens: int) -> float:
    """Tokens per second of this many concurrent answers."""
    requests = [endpoint.request(f"{TOPICS[n % len(TOPICS)]} number {n}, told at length:", tokens) for n in range(streams)]
    started = time.perf_counter()
    outcomes = await asyncio.gather(*(endpoint.complete(request) for request in requests))
    return sum(count for count, _ in outcomes) / (time.perf_counter() - started)


TOPICS = ("The history of bridges", "A day in the life of a river", "How bread is made", "Why ships float")
