"""`ndani run` with an embedding model: prints the vector of the prompt on stdout, as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ndani.cli.client import ServerClient
from ndani.cli.output import emit
from ndani.errors import BadRequest, NotFound

#: The defaults of the two flags, by field of the request.
_DEFAULTS = {"dimensions": 0, "truncate": True}
_BOOLEANS = {"": True, "true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def is_embedding_model(client: ServerClient, model: str, insecure: bool) -> bool:
    """Whether the model is an embedding model; a model that is missing is pulled first."""
    return "embedding" in capabilities(client, model, insecure)


def capabilities(client: ServerClient, model: str, insecure: bool) -> list[str]:
    """What the model is capable of; a model that is missing is pulled first."""
    try:
        info = client.request_json("POST", "/api/show", {"model": model}, required_field="details")
    except NotFound:
        from ndani.cli.models import pull_with_progress

        pull_with_progress(client, model, insecure=insecure)
        info = client.request_json("POST", "/api/show", {"model": model}, required_field="details")
    return list(info.get("capabilities") or [])


def parse_flags(dimensions: str, truncate: str) -> dict[str, Any]:
    """The fields of an embed request that the two flags change from their defaults. Raises BadRequest for an invalid value."""
    if not (dimensions or "0").isdecimal():
        raise BadRequest(f'invalid argument "{dimensions}" for "--dimensions" flag: it must be a whole number')
    if truncate.lower() not in _BOOLEANS:
        raise BadRequest(f'invalid argument "{truncate}" for "--truncate" flag: it must be true or false')
    fields = {"dimensions": int(dimensions or 0), "truncate": _BOOLEANS[truncate.lower()]}
    return {name: value for name, value in fields.items() if value != _DEFAULTS[name]}


def embed_prompt(client: ServerClient, request: Mapping[str, Any], embed_fields: Mapping[str, Any]) -> str:
    """The vector of `request["prompt"]` as JSON, with the fields of the flags. Raises BadRequest when there is no text."""
    if not request.get("prompt"):
        raise BadRequest(f'a text is needed: ndani run {request["model"]} "your text"')
    body = {"model": request["model"], "input": request["prompt"], **embed_fields}
    body |= {field: request[field] for field in ("keep_alive", "options") if field in request}
    response = client.request_json("POST", "/api/embed", body, required_field="embeddings")
    if truncated_tokens := response.get("truncated"):
        emit(f"Warning: the text is longer than the model's context; {truncated_tokens} of its tokens were not read", err=True)
    return json.dumps(response["embeddings"][0], separators=(",", ":"))
