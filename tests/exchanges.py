"""Golden exchanges of our own: requests and the answers that the echo engine gives to them, kept in `golden/` by surface.

Every file is replayed in order on a fresh server; what differs from run to run (times, ids, what the prefix cache holds) is masked
on both sides. To add one, append its request, without a response, and record: `python tests/exchanges.py` writes every answer anew,
and the diff shows what has changed. A text `$NAME.a.b` in a request is a value out of the answer to the exchange of that name.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ndani import __version__
from server import Server, serving
from stores import put_echo

FOLDER = Path(__file__).parent / "golden" / "exchanges"
SURFACES = ("ollama", "openai", "responses", "anthropic", "foundry")

_TURNS = (
    "{{ range .Messages }}<|{{ .Role }}|>\n{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
    '{{ if .ToolCalls }}{{ range .ToolCalls }}<tool_call>{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}'
    "</tool_call>{{ end }}{{ end }}\n<|end|>\n{{ end }}<|assistant|>\n"
)
#: Models by name, with their TEMPLATE: one as the engine renders it, one that calls tools, one that thinks.
MODELS = {
    "echo": "",
    "caller": "{{ if .Tools }}<|system|>\n{{ .Tools }}\n<|end|>\n{{ end }}"
    + _TURNS.replace("{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}", ""),
    "thinker": "{{ if and .IsThinkSet .Think }}<|system|>\nthink\n<|end|>\n{{ end }}" + _TURNS,
}

#: Members whose values are times, places or sizes of this run.
_MASKED = frozenset(
    {"created", "created_at", "completed_at", "modified_at", "expires_at", "expires", "pid", "size_vram", "obfuscation"}
    | {f"{name}_duration" for name in ("total", "load", "prompt_eval", "eval")}
    | {"cached_tokens", "cache_write_tokens"}
)
_IDS = re.compile(r"\b(chatcmpl|cmpl|resp|msg|call|toolu|fc|rs|conv|item|req|reasoning)([-_])[A-Za-z0-9]{6,}\b")


@contextmanager
def golden_server(folder: Path) -> Iterator[Server]:
    """A fresh server with MODELS."""
    for name, template in MODELS.items():
        put_echo(folder / "models", name, **({"template": template} if template else {}))
    with serving(folder, folder / "models") as server:
        yield server


def load(surface: str) -> list[dict[str, Any]]:
    """The exchanges of a surface, in order."""
    return list(json.loads((FOLDER / f"{surface}.json").read_text(encoding="utf-8")))


class Replay:
    """Sends the requests of one surface to a server, in order, and remembers the answers that later requests name."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._answers: dict[str, Any] = {}

    def send(self, exchange: dict[str, Any]) -> dict[str, Any]:
        """The masked response: status, media type, and what came: a value, lines, events or text."""
        answer = self.ask(exchange["request"])
        found: dict[str, Any] = {"status": answer.status_code, "content_type": answer.headers.get("content-type")}
        read = read_body(answer)
        self._answers[exchange["name"]] = read.get("body")
        return masked(found | read, self._server)

    def ask(self, request: dict[str, Any], **more: Any) -> httpx.Response:
        """Send one request as it is written, with `more` members in its body."""
        path = self._filled(request["path"])
        if "raw" in request:
            content = {"content": request["raw"].encode()}
        else:
            content = {"json": self._filled(request["body"]) | more} if "body" in request else {}
        return self._server.http.request(request["method"], path, headers=request.get("headers"), **content)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(member) for key, member in value.items()}
        if isinstance(value, list):
            return [self._filled(member) for member in value]
        return re.sub(r"\$([a-z0-9-]+)((?:\.\w+)+)", self._named, value) if isinstance(value, str) else value

    def _named(self, match: re.Match[str]) -> str:
        found = self._answers[match[1]]
        for key in match[2][1:].split("."):
            found = found[int(key)] if key.isdigit() else found[key]
        return str(found)


def read_body(answer: httpx.Response) -> dict[str, Any]:
    """A response's body, by its media type."""
    kind = answer.headers.get("content-type", "")
    if kind.startswith("application/json"):
        return {"body": answer.json()}
    if kind.startswith("application/x-ndjson"):
        return {"lines": [json.loads(line) for line in answer.text.splitlines()]}
    if kind.startswith("text/event-stream"):
        return {"events": [_event(frame) for frame in answer.text.split("\n\n") if frame]}
    return {"text": answer.text}


def _event(frame: str) -> dict[str, Any]:
    """One server-sent event: its name, if it has one, and its data."""
    fields = dict(line.split(": ", 1) for line in frame.splitlines())
    data = fields["data"]
    return {**({"event": fields["event"]} if "event" in fields else {}), "data": data if data == "[DONE]" else json.loads(data)}


def masked(value: Any, server: Server) -> Any:
    """A value without what differs from run to run."""
    if isinstance(value, list):
        return [masked(item, server) for item in value]
    if isinstance(value, str):
        for text, name in ((server.url, "URL"), (str(server.models), "MODELS"), (__version__, "VERSION")):
            value = value.replace(text, name)
        return _IDS.sub(r"\1\2*", value)
    if not isinstance(value, dict):
        return value
    if "cache_read_input_tokens" in value:  # the prompt's tokens are counted in two parts
        whole = value["input_tokens"] + (value["cache_read_input_tokens"] or 0) + (value.get("cache_creation_input_tokens") or 0)
        value = value | {"input_tokens": whole, "cache_read_input_tokens": "*", "cache_creation_input_tokens": "*"}
    value = {key: member for key, member in value.items() if key != "prompt_eval_cached_count"}  # it is there only above 0
    return {key: "*" if key in _MASKED and member is not None else masked(member, server) for key, member in value.items()}


def record() -> None:
    """Write every answer anew."""
    for surface in sys.argv[1:] or SURFACES:
        exchanges = load(surface)
        with tempfile.TemporaryDirectory() as folder, golden_server(Path(folder)) as server:
            replay = Replay(server)
            lines = [json.dumps(one | {"response": replay.send(one)}, ensure_ascii=False) for one in exchanges]
        # An exchange a line, so that a diff shows which has changed.
        (FOLDER / f"{surface}.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        print(f"{surface}: {len(exchanges)}", file=sys.stderr)


if __name__ == "__main__":
    record()
