"""What Foundry Local's routes answer: errors, and models as its catalogue lists them. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.api.foundry.bodies import ErrorBody, ListedModel, ModelRuntime, Problem
from ndani.errors import NdaniError
from ndani.names import Name
from ndani.service import model_ids
from ndani.service.available import AvailableModel

#: The scheme of a listed model's URI; what follows is the model's full name.
URI_SCHEME = "ndani://"
PROVIDER = "ndani"

#: A program on the engine's own processors: the one device that every machine has.
_RUNTIME = ModelRuntime("CPU", "CPUExecutionProvider")


def error_body(error: NdaniError) -> ErrorBody:
    """The body of an error."""
    return ErrorBody(Problem(str(error), "server_error" if error.status >= 500 else "invalid_request_error"))


def _no_route(status: int, headers: Mapping[str, str]) -> Response:
    message = "this path does not take this method" if status == 405 else "there is no such path"
    return json_response.respond(ErrorBody(Problem(message, "invalid_request_error")), status, dict(headers))


ERRORS = ErrorFormat(error_body, lambda error: encode(error_body(error)) + b"\n", _no_route, ErrorBody)


def uri_of(name: Name) -> str:
    """The URI of a model in the catalogue."""
    return URI_SCHEME + name.full


def format_models(models: Iterable[AvailableModel]) -> list[ListedModel]:
    """The body of /foundry/list: what is here first, since the first model of an alias is the one that a client takes."""
    models = sorted(models, key=lambda model: (not model.installed, model.name.key))
    ids = model_ids.ids(model.name for model in models)
    return [_listed(model, ids[model.name]) for model in models]


def _listed(model: AvailableModel, own_id: str) -> ListedModel:
    alias = model_ids.alias_of(model.name)
    return ListedModel(
        name=own_id,
        display_name=alias,
        model_type="GGUF",
        provider_type=PROVIDER,
        uri=uri_of(model.name),
        version=model_ids.VERSION,
        prompt_template=None,
        publisher=model.name.namespace,
        task="chat-completion" if "completion" in model.capabilities else "embeddings",
        runtime=_RUNTIME,
        file_size_mb=math.ceil(model.size / 2**20),
        model_settings={"parameters": []},
        alias=alias,
        supports_tool_calling="tools" in model.capabilities,
        license=model.license,
        license_description="",
        parent_model_uri="",
        max_output_tokens=model.context_length or None,
        min_fl_version=None,
        type=model.type,
        size_class=model.size_class,
        cached=model.installed,
    )
