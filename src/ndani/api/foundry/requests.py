"""What Foundry Local's routes read: query parameters, and the body of a download. Pure functions.

What would have no effect here is refused, with a sentence that says what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ndani.api.edge.body_type import convert
from ndani.api.foundry.bodies import DownloadBody, DownloadModel
from ndani.api.foundry.responses import PROVIDER
from ndani.errors import BadRequest, Forbidden
from ndani.types import Sampling

#: Seconds that the daemon keeps a model which it was told to load, where nobody says more.
DEFAULT_TTL = 600.0

#: The longest time-to-live that is read: more digits are a mistake.
_MAX_TTL_DIGITS = 9

_PROVIDERS = frozenset({"", PROVIDER, "AzureFoundry", "AzureFoundryLocal", "FoundryLocal"})
_FLAGS = {"true": True, "1": True, "false": False, "0": False, "": None}


def require_no_foreign_page(headers: Mapping[str, str]) -> None:
    """Refuse a GET that changes something when a foreign web page may be behind it. Raises Forbidden.

    A browser sends such a GET for any page, as for an image, and without an Origin. (With one, `OriginGuard` has decided.)
    It says by Sec-Fetch-Site that it comes from elsewhere, but only to addresses that it trusts: not to 0.0.0.0, to an address
    of the local network or to a name such as x.local, and old browsers never. There the page cannot be told from the user, so
    any browser is refused. Programs are not: those that call themselves Mozilla too, as PowerShell does, name no language.
    """
    if headers.get("origin"):
        return
    site = headers.get("sec-fetch-site")
    if site in ("cross-site", "same-site"):
        raise Forbidden("a web page of another site asks for this; allow its origin with NDANI_ORIGINS, and let it use fetch with CORS")
    if site is None and headers.get("user-agent", "").startswith("Mozilla/") and "accept-language" in headers:
        raise Forbidden("this browser does not say which web page asks for this; use http://127.0.0.1 or http://localhost, or a program")


def keep_alive(query: Mapping[str, str]) -> float:
    """Seconds that a model is to stay loaded, negative: for ever. `ttl` above 0 counts more than `unload`. Raises BadRequest."""
    ttl, unload = query.get("ttl", ""), flag(query, "unload")
    if ttl and not (ttl.isascii() and ttl.isdecimal() and len(ttl) <= _MAX_TTL_DIGITS):
        raise BadRequest("ttl must be a whole number of seconds, such as 600")
    if int(ttl or 0) > 0:
        return float(ttl)
    return -1.0 if unload is False else DEFAULT_TTL


def sampling(query: Mapping[str, str]) -> Sampling:
    """The options of a load: `ep=cpu` leaves the GPUs out. Raises BadRequest."""
    provider = query.get("ep", "").lower().removesuffix("executionprovider")
    if provider not in ("", "cpu"):
        raise BadRequest("ep must be cpu, or be left out: then the engine takes the GPUs that it finds")
    return Sampling(num_gpu=0) if provider else Sampling()


def flag(query: Mapping[str, str], name: str) -> bool | None:
    """A boolean of the query; None where it is missing or empty. Raises BadRequest."""
    text = query.get(name, "").lower()
    if text not in _FLAGS:
        raise BadRequest(f"{name} must be true or false")
    return _FLAGS[text]


def parse_download(body: dict[str, Any]) -> DownloadBody:
    """The body of a download, names in any letter case. Raises BadRequest for what would have no effect here."""
    body = _cased(body, DownloadBody)
    if isinstance(body.get("model"), dict):
        body["model"] = _cased(body["model"], DownloadModel)
    parsed = convert(body, DownloadBody)
    model = parsed.model
    if not model.name.strip():
        raise BadRequest("model.Name is required: an alias or an id of GET /foundry/list")
    if model.provider_type not in _PROVIDERS:
        raise BadRequest(f"model.ProviderType must be {PROVIDER}: the models of GET /foundry/list are the ones to download")
    without_effect = {
        "model.PromptTemplate": (model.prompt_template, "a model keeps its own template"),
        "model.Path": (model.path, "the name alone says which model it is"),
        "token": (parsed.token, "a registry's login is read from this user's own files"),
        "customDirPath": (parsed.custom_dir_path, "models are kept in the folder that NDANI_MODELS names"),
        "bufferSize": (parsed.buffer_size, "the server chooses it"),
        "progressToken": (parsed.progress_token, "the progress comes with the answer"),
        "IgnorePipeReport=false": (not parsed.ignore_pipe_report, "there is no pipe, and the progress comes with the answer"),
    }
    for name, (value, reason) in without_effect.items():
        if value:
            raise BadRequest(f"{name} has no effect here ({reason}); leave it out")
    return parsed


def _cased(body: dict[str, Any], body_type: type[msgspec.Struct]) -> dict[str, Any]:
    """The body with the fields of a type spelt as that type spells them: the daemon ignored the case of letters."""
    spelling = {field.encode_name.lower(): field.encode_name for field in msgspec.structs.fields(body_type)}
    return {spelling.get(key.lower(), key): value for key, value in body.items()}
