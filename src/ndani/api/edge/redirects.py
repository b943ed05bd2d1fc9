"""Redirects for paths that are almost a route's, as Ollama's two routers (Go's ServeMux and gin) give them."""

from __future__ import annotations

import html
import posixpath
import re
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_REASON_PHRASES = {301: "Moved Permanently", 307: "Temporary Redirect"}
_SAFE = "/:@!$&'()*+,;=~"
_ENCODED_DOT_OR_SLASH = re.compile(rb"%2[ef]", re.IGNORECASE)


def redirect(request: Request) -> Response | None:
    """A redirect where a path becomes a route's without doubled slashes, dots or a trailing slash, or with one; else None.

    Status 307, so that a body is sent again; 301 for a GET that differs only in the trailing slash, as in gin.
    """
    path = request.url.path
    if _ENCODED_DOT_OR_SLASH.search(request.scope.get("raw_path") or b""):
        return None  # a percent-encoded slash or dot is part of a name, and does not structure the path
    clean = normalized(path)
    bare = clean.rstrip("/") or "/"
    for target in (clean, bare, f"{bare}/"):
        if target != path and any(isinstance(route, Route) and route.path_regex.match(target) for route in request.app.routes):
            status = 301 if request.method == "GET" and clean == path else 307
            location = quote(target, safe=_SAFE) + (f"?{request.url.query}" if request.url.query else "")
            return HTMLResponse(f'<a href="{html.escape(location)}">{_REASON_PHRASES[status]}</a>.\n\n', status, {"location": location})
    return None


def normalized(path: str) -> str:
    """A path without doubled slashes and without `.` and `..`; a trailing slash stays."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return clean + "/" if path.endswith("/") and clean != "/" else clean
