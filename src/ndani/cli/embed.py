"""`ndani run` with a model of embeddings: the vector of the prompt, as one line of JSON on stdout, for programs to read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ndani.cli.client import Client
from ndani.errors import BadRequest, NotFound

_ON = {"": True, "true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def embeds(client: Client, model: str, insecure: bool) -> bool:
    """Whether this model makes vectors and nothing else; it is pulled first where it is missing."""
    try:
        shown = client.ask("POST", "/api/show", {"model": model})
    except NotFound:
        from ndani.cli.models import fetch

        fetch(client, model, insecure=insecure)
        shown = client.ask("POST", "/api/show", {"model": model})
    return "embedding" in (shown.get("capabilities") or [])


def vector(client: Client, ask: Mapping[str, Any], dimensions: str, truncate: str) -> str:
    """The vector of `ask["prompt"]` as JSON. Raises BadRequest when there is no text, or a flag is no number or no yes or no."""
    if not ask["prompt"]:
        raise BadRequest(f'a text is needed: ndani run {ask["model"]} "your text"')
    if not (dimensions or "0").isdecimal():
        raise BadRequest(f'invalid argument "{dimensions}" for "--dimensions" flag: it must be a whole number')
    if truncate.lower() not in _ON:
        raise BadRequest(f'invalid argument "{truncate}" for "--truncate" flag: it must be true or false')
    body = {"model": ask["model"], "input": ask["prompt"], "dimensions": int(dimensions or 0), "truncate": _ON[truncate.lower()]}
    if "keep_alive" in ask:
        body["keep_alive"] = ask["keep_alive"]
    return json.dumps(client.ask("POST", "/api/embed", body)["embeddings"][0], separators=(",", ":"))
