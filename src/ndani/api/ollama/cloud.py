"""Ollama's routes to its cloud. There is no cloud here, and each route says so. Nothing in this file opens a connection."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ndani.errors import Forbidden


async def account(request: Request) -> Response:
    """POST /api/me and /api/signout: nobody signs in here."""
    raise Forbidden("ollama cloud is disabled: ndani has no accounts, and whoever reaches this server may use it")


async def web_search(request: Request) -> Response:
    """POST /api/experimental/web_search."""
    raise Forbidden("ollama cloud is disabled: web search is unavailable")


async def web_fetch(request: Request) -> Response:
    """POST /api/experimental/web_fetch."""
    raise Forbidden("ollama cloud is disabled: web fetch is unavailable")
