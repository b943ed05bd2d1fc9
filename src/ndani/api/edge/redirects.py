"""Paths that are not quite a route's: where they lead, as the real server's two routers say."""

from __future__ import annotations

import html
import posixpath
import re
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_WORDS = {301: "Moved Permanently", 307: "Temporary Redirect"}
_PLAIN = "/:@!$&'()*+,;=~"
_ENCODED = re.compile(rb"%2[ef]", re.IGNORECASE)


def redirect(request: Request) -> Response | None:
    """The answer to a path that becomes a route's when doubled slashes and dots are taken out, or a slash at its end; else None.

    307, so that a body is sent again; 301 for a GET where only the slash at the end is too much or missing, as in gin.
    """
    path = request.url.path
    if _ENCODED.search(request.scope.get("raw_path") or b""):
        return None  # what was written as a character of a name is no slash and no dot of the path
    clean = cleaned(path)
    bare = clean.rstrip("/") or "/"
    for place in (clean, bare, f"{bare}/"):
        if place != path and any(isinstance(route, Route) and route.path_regex.match(place) for route in request.app.routes):
            status = 301 if request.method == "GET" and clean == path else 307
            there = quote(place, safe=_PLAIN) + (f"?{request.url.query}" if request.url.query else "")
            return HTMLResponse(f'<a href="{html.escape(there)}">{_WORDS[status]}</a>.\n\n', status, {"location": there})
    return None


def cleaned(path: str) -> str:
    """A path without doubled slashes and without `.` and `..`; a slash at its end stays."""
    clean = posixpath.normpath("/" + path.lstrip("/"))
    return clean + "/" if path.endswith("/") and clean != "/" else clean
