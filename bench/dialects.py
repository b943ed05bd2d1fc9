"""What a dialect costs the front: processor time per token of the same answers, asked for in each dialect in turn.

The models are the real one, and the same weights with a template that thinks: thinking and tool calls are read from the text, and
that has its own row. Eight streams at once, as many tokens in each; the clock of a process ticks only every 10 ms, so the time is
summed over all rounds.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol

from bench.load import TOPICS

MODEL, THINKING_MODEL = "smollm2:135m", "bench-thinking"

#: The same prompts as the model's own, with a place for thoughts and calls.
TEMPLATE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}
{{- if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{{ . }}{{ end }}{{ end }}<|im_end|>
{{ end }}<|im_start|>assistant
{{ if and .IsThinkSet .Think }}<think>
{{ end }}{{ if .Tools }}{{ end }}"""

_TOOL = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


class FrontServer(Protocol):
    """A running server."""

    port: int

    def processor_seconds(self) -> float:
        """Processor time that the front itself has used."""
        ...


@dataclass(frozen=True)
class Case:
    """A dialect: its route, its body beside the question, and the bytes that each token of a stream has once."""

    name: str
    route: str
    body: dict[str, Any]
    mark: bytes
    baseline: str = "ollama"

    def request(self, question: str, tokens: int) -> bytes:
        """The bytes of a request."""
        body = json.loads(json.dumps(self.body).replace('"QUESTION"', json.dumps(question)).replace('"TOKENS"', str(tokens)))
        content = json.dumps(body).encode()
        head = f"POST {self.route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


_MESSAGES = [{"role": "user", "content": "QUESTION"}]
_OPTIONS = {"temperature": 0, "seed": 1, "num_predict": "TOKENS"}
CASES = (
    Case("ollama", "/api/chat", {"model": MODEL, "messages": _MESSAGES, "options": _OPTIONS}, b'"done":false'),
    Case(
        "openai",
        "/v1/chat/completions",
        {"model": MODEL, "messages": _MESSAGES, "stream": True, "temperature": 0, "seed": 1, "max_tokens": "TOKENS"},
        b'"delta":{"content"',
    ),
    Case(
        "responses",
        "/v1/responses",
        {"model": MODEL, "input": "QUESTION", "stream": True, "temperature": 0, "max_output_tokens": "TOKENS", "store": False},
        b"event: response.output_text.delta",
    ),
    Case(
        "anthropic",
        "/v1/messages",
        {"model": MODEL, "messages": _MESSAGES, "stream": True, "temperature": 0, "max_tokens": "TOKENS"},
        b"event: content_block_delta",
    ),
    Case(
        "ollama, thinking",
        "/api/chat",
        {"model": THINKING_MODEL, "messages": _MESSAGES, "options": _OPTIONS, "think": True},
        b'"done":false',
    ),
    Case(
        "ollama, tools",
        "/api/chat",
        {
            "model": THINKING_MODEL,
            "messages": _MESSAGES,
            "options": _OPTIONS,
            "think": False,
            "tools": [{"type": "function", "function": _TOOL}],
        },
        b'"done":false',
    ),
)


def create_thinking_model(port: int) -> None:
    """The second model: the weights of the first one, another template."""
    body = {"model": THINKING_MODEL, "from": MODEL, "template": TEMPLATE, "stream": False}
    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/create", json.dumps(body).encode(), timeout=60).read()


async def _answer(port: int, request: bytes, mark: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    received = bytearray()
    while data := await reader.read(1 << 16):
        received += data
    writer.close()
    return received.count(mark)


async def dialect_costs(server: FrontServer, rounds: int, streams: int, tokens: int) -> dict[str, float]:
    """Microseconds of the front's processor time per token, by case."""
    create_thinking_model(server.port)
    used, counted = dict.fromkeys((case.name for case in CASES), 0.0), dict.fromkeys((case.name for case in CASES), 0)
    for number in range(rounds + 1):
        for case in CASES if number % 2 else reversed(CASES):
            requests = [case.request(f"Tell me about {TOPICS[n % len(TOPICS)]}, number {n}.", tokens) for n in range(streams)]
            before = server.processor_seconds()
            found = await asyncio.gather(*(_answer(server.port, request, case.mark) for request in requests))
            if number:  # the first round warms
                used[case.name] += server.processor_seconds() - before
                counted[case.name] += sum(found)
    if not all(counted.values()):
        raise SystemExit(f"a dialect gave no token: {counted}")
    return {name: used[name] / counted[name] * 1e6 for name in used}
