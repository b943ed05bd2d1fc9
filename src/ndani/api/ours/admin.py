"""Our own routes about the server's state: whether it is healthy, and whether its runners can reach anything outside."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.errors import NdaniError
from ndani.service import Service
from ndani.service.doctor import DoctorReport
from ndani.settings import unsupported_variable_warnings


class AdminRoutes:
    """The health and doctor routes, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, request: Request) -> Response:
        """GET /api/health: 200 with what is loaded; 503 with the reason when no request could be served."""
        try:
            return json_response.respond(self._service.health())
        except NdaniError as error:
            return json_response.respond({"status": "unavailable", "reason": str(error)}, 503)

    async def doctor(self, request: Request) -> Response:
        """POST /api/doctor: try every way out of the jail, inside a real runner.

        Not a GET, since it may load a model: browsers send GET requests for any web page, and without its origin.
        """
        report = await self._service.doctor()
        return json_response.respond(_format_report(report) | {"warnings": unsupported_variable_warnings()})


def _format_report(report: DoctorReport) -> dict[str, Any]:
    confinement = report.confinement
    return {
        "engine": report.engine,
        "model": report.model,
        "confinement": {
            "word": confinement.status,
            "seccomp": confinement.seccomp,
            "landlock": confinement.landlock,
            "namespace": confinement.namespace,
            "missing": list(confinement.missing),
        },
        "routes": [
            {"name": route.name, "outside": route.effect, "inside": "blocked" if route.blocked else "open", "why": route.why}
            for route in report.routes
        ],
    }
