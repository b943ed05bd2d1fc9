"""The page that shows the description of all routes, and the description itself. It loads nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.dialect import Dialect, get
from ndani.api.edge.operation import Operation

#: What the page may do: run its own script, use its own style, and ask this server. No other page may frame it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

_HEADERS = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def page(describe: Callable[[], object]) -> Dialect:
    """The routes of the page and of the description, as one more dialect; `describe` returns the description."""
    routes = PageRoutes(describe)
    return Dialect(
        name="page",
        title="This description",
        routes=(
            get("/openapi.json", routes.openapi, Operation("The description of all routes", answer=dict[str, Any])),
            get("/docs", routes.page, Operation("A page to read it", answer=str, answer_media="text/html")),
            get("/docs/page.js", routes.script, Operation("The page's script", answer=str, answer_media="text/javascript")),
            get("/docs/page.css", routes.style, Operation("The page's style", answer=str, answer_media="text/css")),
        ),
    )


class PageRoutes:
    """The page's files, and the description, which is made when it is first asked for."""

    def __init__(self, describe: Callable[[], object]) -> None:
        self._describe = describe
        self._description = b""

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        self._description = self._description or json_response.encode(self._describe())
        return Response(self._description, 200, None, json_response.JSON)

    async def page(self, request: Request) -> Response:
        """GET /docs."""
        return _file("page.html", "text/html")

    async def script(self, request: Request) -> Response:
        """GET /docs/page.js."""
        return _file("page.js", "text/javascript")

    async def style(self, request: Request) -> Response:
        """GET /docs/page.css."""
        return _file("page.css", "text/css")


def _file(name: str, media_type: str) -> Response:
    content = resources.files(__name__).joinpath(name).read_bytes()
    return Response(content, 200, _HEADERS, f"{media_type}; charset=utf-8")
