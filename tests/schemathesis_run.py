"""Schemathesis over the description of all routes, against a server with the echo engine: `python tests/schemathesis_run.py 600`.

It needs the package schemathesis, in this environment or in the one whose `st` is on the path or named by SCHEMATHESIS. The values
that it may choose are narrowed a little, or every request would be for a model that is not there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from server import Server, serving
from stores import put_echo

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,"
    "unsupported_method,items_of_streams"
)


def _maybe(**schema: Any) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_NOTHING: dict[str, Any] = {"enum": [None]}
_FEW = _maybe(type="integer", minimum=1, maximum=30)
_TURNS = {
    "type": "array",
    "maxItems": 4,
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": "string"}},
        "required": ["role", "content"],
        "additionalProperties": False,
    },
}

#: What a field of this name may hold. Whatever the echo engine refuses is left out: else every request would have something of it.
#: (What is of a wrong type or out of its range is tried all the same.)
NARROWED: dict[str, dict[str, Any]] = {
    "model": {"enum": ["echo", "other", "echo:latest"]},
    "source": {"enum": ["echo", "none"]},
    "destination": {"enum": ["copied", "copied/too:1", ""]},
    "from": {"enum": ["echo", "none", ""]},
    "keep_alive": {"enum": ["5m", 60, -1, None]},
    "ttl": {"enum": [60, None]},
    "num_predict": {"type": "number", "minimum": -1, "maximum": 30},
    "num_ctx": _maybe(type="integer", minimum=512, maximum=4096),
    "num_batch": {"enum": [64, None]},
    "num_thread": {"enum": [1, None]},
    "num_gpu": {"enum": [0, None]},
    "main_gpu": {"enum": [0, None]},
    "max_tokens": _FEW,
    "max_completion_tokens": _FEW,
    "max_output_tokens": _FEW,
    "n": _maybe(type="integer", minimum=1, maximum=4),
    "temperature": _maybe(type="number", minimum=0, maximum=1),
    "top_p": _maybe(type="number", minimum=0.1, maximum=1),
    "frequency_penalty": _maybe(type="number", minimum=-2, maximum=2),
    "presence_penalty": _maybe(type="number", minimum=-2, maximum=2),
    "min_p": _maybe(type="number", minimum=0, maximum=1),
    "top_k": _maybe(type="integer", minimum=1, maximum=100),
    "seed": _maybe(type="integer", minimum=0, maximum=2**31),
    "repeat_penalty": _maybe(type="number", minimum=1, maximum=2),
    "template": {"enum": ["{{ .Prompt }}", "", None]},
    "tool_choice": {"enum": ["auto", None]},
    "thinking": {"enum": [{"type": "disabled"}, None]},
    "response_format": {"enum": [{"type": "text"}, None]},
    "encoding_format": {"enum": ["float", "base64", None]},
    "digests": {"enum": [[], ["sha256:" + "0" * 64], None]},
    "place": {"enum": ["", "nowhere", None]},
    "metadata": {"enum": [{"a": "b"}, {}, None]},
    "tools": {"enum": [[], None]},
    "stop_sequences": {"enum": [["a"], None]},
    "stop": {"enum": [["a"], None]},
    **dict.fromkeys(
        (
            "name", "best_of", "random_seed", "images", "suffix", "think", "format", "grammar", "regex", "logprobs", "top_logprobs",
            "logit_bias", "reasoning", "reasoning_effort", "output_config", "output_format", "container", "mcp_servers", "speed",
            "context_management", "inference_geo", "diagnostics", "previous_response_id", "conversation", "prompt_cache_retention",
            "service_tier", "background", "include", "max_tool_calls", "stream_options", "user", "safety_identifier", "files", "adapters",
            "quantize", "quantization", "draft_files", "draft_quantize", "remote_host", "remote_model", "info", "renderer", "parser",
            "requires", "cache_control", "items",
        ),
        _NOTHING,
    ),
}  # fmt: skip

#: The same for fields of one body, and the fields that it must have.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "ollama.ChatBody": {"messages": _TURNS},
    "openai.ChatBody": {"messages": _TURNS},
    "openai.CompletionBody": {"prompt": {"type": "string", "minLength": 1}},
    "anthropic.MessagesBody": {"messages": _TURNS, "max_tokens": {"type": "integer", "minimum": 1, "maximum": 30}},
    "anthropic.CountTokensBody": {"messages": _TURNS},
    "responses.CreateResponse": {"input": {"type": "string", "minLength": 1}, "prompt": _NOTHING, "text": _NOTHING},
    "foundry.ChatBody": {"messages": _TURNS},
    "ollama.CreateBody": {"parameters": {"enum": [{"seed": 1}, None]}, "messages": {"enum": [[], None]}},
    "ours.RerankBody": {"documents": {"enum": [["a", {"text": "b"}]]}},
}

#: Parameters of paths.
PLACES = {
    "model": {"enum": ["echo", "none"]},
    "name": {"enum": ["echo", "none", "other"]},
    "digest": {"enum": ["sha256:" + "0" * 64, "sha256-" + "1" * 64, "sha256:x"]},
}

#: Models of these bodies may be changed or removed: not the ones that all other requests need.
EXPENDABLE = {"ollama.DeleteBody", "ollama.CreateBody", "ollama.PullBody"}

#: It takes a second, whatever it is sent.
LEFT_OUT = ("/api/doctor",)


def narrowed(description: dict[str, Any]) -> dict[str, Any]:
    """The description with fewer values."""
    schemas = description["components"]["schemas"]
    operations = [one for path in description["paths"].values() for one in path.values()]
    for name in named([one["requestBody"] for one in operations if "requestBody" in one], schemas, set()):
        schema = schemas[name]
        for field in list(schema.get("properties", {})):
            if field in NARROWED:
                schema["properties"][field] = NARROWED[field]
        schema.get("properties", {}).update(OWN.get(name, {}))
        if name in OWN and "model" in schema["properties"]:
            schema["required"] = sorted({*schema.get("required", []), "model", *OWN[name]})
        if name in EXPENDABLE:
            schema["properties"]["model"] = schema["properties"]["name"] = {"enum": ["copied", "made", "copied/too:1", "", "a b"]}
    for path in LEFT_OUT:
        del description["paths"][path]
    for operation in operations:
        for parameter in operation["parameters"]:
            if parameter["in"] == "path" and parameter["name"] in PLACES:
                parameter["schema"] = PLACES[parameter["name"]]
    return description


def named(part: Any, schemas: dict[str, Any], found: set[str]) -> set[str]:
    """The names of the schemas that a part of the description refers to, and of all that these refer to."""
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(part)):
        if name not in found:
            found.add(name)
            named(schemas[name], schemas, found)
    return found


def program() -> str | None:
    """Where the program is, if it is anywhere."""
    return os.environ.get("SCHEMATHESIS") or shutil.which("st", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def run(server: Server, folder: Path, seconds: int, *more: str) -> subprocess.CompletedProcess[str]:
    """Run it for so long against a server."""
    command = program()
    assert command, "schemathesis is not installed: pip install schemathesis"
    description = folder / "narrowed.json"
    description.write_text(json.dumps(narrowed(httpx.get(f"{server.url}/openapi.json", trust_env=False).json())))
    arguments = [command, "run", str(description), "--url", server.url, "--max-time", str(seconds), "--checks", CHECKS]
    arguments += ["--phases", "coverage,fuzzing", "--request-timeout", "60", "--continue-on-failure", "--no-color"]
    arguments += ["--suppress-health-check", "all", "--warnings", "off", *more]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_checks", "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(arguments, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds + 600, check=False)


def main(seconds: int, *more: str) -> int:
    """Start a server, run it, show what it says."""
    folder = Path(tempfile.mkdtemp(prefix="nd-st-"))
    for name in ("echo", "other"):
        put_echo(folder / "models", name)
    with serving(folder, folder / "models", NDANI_OFFLINE="1", NDANI_MAX_QUEUE="64") as server:
        done = run(server, folder, seconds, *more)
        print(done.stdout, done.stderr)
        faults = [line for line in server.log.splitlines() if "fault of its own" in line or " warn " in line]
        print("\n".join(faults[:40]))
        for (route, status), count in sorted(Counter(re.findall(r" route=(\S+) status=(\d+) ", server.log)).items()):
            print(f"{count:6} {status} {route}")
        counts = server.health()["counts"]
        print(counts)
    shutil.rmtree(folder, ignore_errors=True)
    return done.returncode or bool(counts["failures"])


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1] if len(sys.argv) > 1 else "60"), *sys.argv[2:]))
