"""`ndani run` with a model of embeddings: the vector of the prompt, as one line of JSON on stdout, for programs to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ndani.cli.client import ServerClient
from ndani.cli.output import emit
from ndani.errors import BadRequest, NotFound

_ON = {"": True, "true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def embeds(client: ServerClient, model: str, insecure: bool) -> bool:
    """Whether this model makes vectors and nothing else; it is pulled first where it is missing."""
    try:
        shown = client.request_json("POST", "/api/show", {"model": model}, required_field="details")
    except NotFound:
        from ndani.cli.models import fetch

        fetch(client, model, insecure=insecure)
        shown = client.request_json("POST", "/api/show", {"model": model}, required_field="details")
    return "embedding" in (shown.get("capabilities") or [])


def flags(dimensions: str, truncate: str) -> dict[str, Any]:
    """What the two flags ask for, by field; empty where they ask for nothing. Raises BadRequest for what is no number, or no yes or no."""
    if not (dimensions or "0").isdecimal():
        raise BadRequest(f'invalid argument "{dimensions}" for "--dimensions" flag: it must be a whole number')
    if truncate.lower() not in _ON:
        raise BadRequest(f'invalid argument "{truncate}" for "--truncate" flag: it must be true or false')
    said = {"dimensions": int(dimensions or 0), "truncate": _ON[truncate.lower()]}
    return {name: value for name, value in said.items() if value != {"dimensions": 0, "truncate": True}[name]}


def vector(client: ServerClient, ask: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The vector of `ask["prompt"]` as JSON, as the flags have it. Raises BadRequest when there is no text."""
    if not ask.get("prompt"):
        raise BadRequest(f'a text is needed: ndani run {ask["model"]} "your text"')
    body = {"model": ask["model"], "input": ask["prompt"], **asked}
    if "keep_alive" in ask:
        body["keep_alive"] = ask["keep_alive"]
    answer = client.request_json("POST", "/api/embed", body, required_field="embeddings")
    if cut := answer.get("truncated"):
        emit(f"Warning: the text is longer than the model's context; {cut} of its tokens were not read", err=True)
    return json.dumps(answer["embeddings"][0], separators=(",", ":"))
