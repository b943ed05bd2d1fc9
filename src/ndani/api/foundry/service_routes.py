"""The routes of SDK v2's service: what runs, and what is in memory."""

from __future__ import annotations

import os
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.foundry import requests
from ndani.api.foundry.bodies import LoadState, ServiceStatus, ShutdownState, UnloadState
from ndani.errors import BadRequest, Forbidden, NotFound
from ndani.hosts import is_loopback
from ndani.service import Service, model_ids
from ndani.service.available import is_pullable


class FoundryServiceRoutes:
    """The routes of SDK v2's service, over one service of ours; `stop` ends the server."""

    def __init__(self, service: Service, stop: Callable[[], None]) -> None:
        self._service = service
        self._stop = stop

    async def status(self, request: Request) -> Response:
        """GET /status."""
        return json_response.respond(ServiceStatus(endpoints(request), str(self._service.settings.models), os.getpid()))

    async def shutdown(self, request: Request) -> Response:
        """POST /shutdown: ends a server that a command line has started in the background, for a client on this machine alone.

        A server that somebody has started for others must not end because one of its clients says so.
        """
        if not self._service.settings.allow_shutdown:
            raise Forbidden("this server was not started in the background by a command; stop it where it was started")
        if request.client is None or not is_loopback(request.client.host):
            raise Forbidden("only a program on the server's own machine can stop it")
        self._stop()
        return json_response.respond(ShutdownState())

    async def loaded(self, request: Request) -> Response:
        """GET /models/loaded: the ids of the models in memory."""
        return json_response.respond(loaded_ids(self._service))

    async def load(self, request: Request) -> Response:
        """GET /models/load/{name}: returns once the model is in memory."""
        requests.require_no_foreign_page(request.headers)
        name = request.path_params["name"]
        try:
            was_loaded = await self._service.loading.load(name, missing(name))
        except NotFound:
            if is_pullable(name):
                raise BadRequest(f"the model {name} is not downloaded; POST it to /openai/download, or `ndani pull` it") from None
            raise
        return json_response.respond(LoadState("already_loaded" if was_loaded else "loaded"))

    async def unload(self, request: Request) -> Response:
        """GET /models/unload/{name}: as soon as its answers in progress have ended."""
        requests.require_no_foreign_page(request.headers)
        name = request.path_params["name"]
        was_loaded = await self._service.loading.unload(name, missing(name))
        return json_response.respond(UnloadState("unloaded" if was_loaded else "not_loaded"))


def endpoints(request: Request) -> list[str]:
    """The address at which the server was reached, as a list of URLs."""
    host, port = request.scope["server"]
    return [f"http://{f'[{host}]' if ':' in host else host}:{port}"]


def loaded_ids(service: Service) -> list[str]:
    """The ids of the models in memory, each as the lists of models have it."""
    listed = model_ids.ids(service.store.names())
    return [listed.get(name, str(name)) for name in service.loading.loaded()]


def missing(name: str) -> str:
    """The sentence for a model that is not in the store."""
    return f"no model here has the name, alias or id {name!r}; GET /foundry/list shows those there are"
