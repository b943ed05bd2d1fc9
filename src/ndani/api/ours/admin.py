"""Our own routes: is this server well, and can its runners reach anything?"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.errors import NdaniError
from ndani.runtime.probe import Targets
from ndani.runtime.routes import routes
from ndani.runtime.runner import Runner
from ndani.service import Service
from ndani.settings import without_effect


class AdminRoutes:
    """The routes that Ollama does not have."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:
        """200 when an answer could be given and what is loaded; 503 with the reason when not."""
        try:
            return json_response.reply(self._service.health())
        except NdaniError as error:
            return json_response.reply({"status": "unavailable", "reason": str(error)}, 503)

    async def doctor(self, request: Request) -> Response:
        """POST /api/doctor: every way out, tried inside a real runner.

        It may load a model, so it is no GET: a browser sends those for any web page, and does not say for which.
        """
        engine, model, found = await self._service.doctor(_probe)
        return json_response.reply({"engine": engine, "model": model, **found, "warnings": without_effect()})


async def _probe(runner: Runner) -> dict[str, Any]:
    with Targets(runner.spare) as targets:
        outcomes = {outcome.name: outcome for outcome in await runner.probe(targets.addresses)}
        arrived = targets.arrived()
    held = runner.confinement
    return {
        "confinement": {
            "word": held.status,
            "seccomp": held.seccomp,
            "landlock": held.landlock,
            "namespace": held.namespace,
            "missing": list(held.missing),
        },
        "routes": [
            {
                "name": route.name,
                "outside": route.effect,
                "inside": "blocked" if outcome and outcome.blocked and route.name not in arrived else "open",
                "why": "not tried" if outcome is None else outcome.error if outcome.error.isidentifier() else "",
            }
            # Which routes there are, and what they do, is ours to say, not the runner's.
            for route, outcome in ((route, outcomes.get(route.name)) for route in routes())
        ],
    }
