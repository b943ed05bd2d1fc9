"""What the description of the routes says of an answer, for tests: every whole answer that any test gets is compared with it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import msgspec
from starlette.applications import Starlette

from ndani import settings
from ndani.api.app import build
from ndani.api.edge.media_types import JSON, NDJSON
from ndani.api.edge.operation import DescribedRoute
from ndani.engines.stream import Coalescer
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log
from ndani.runtime import hardware
from ndani.runtime.clock import SystemClock
from ndani.runtime.pool import Pool
from ndani.service import Service
from ndani.sources.fetcher import Fetcher
from ndani.store import Store


@cache
def application() -> Starlette:
    """The application of a server; none of its runners starts."""

    async def spawn(*_: object) -> Any:
        raise AssertionError("nothing is asked")

    async def built() -> Starlette:
        with tempfile.TemporaryDirectory() as folder:
            chosen, log = settings.load({"NDANI_MODELS": folder}), Log()
            pool = Pool(chosen, spawn, Coalescer(), log, hardware.detect, SystemClock(), lambda _: None)
            service = Service(chosen, Store(Path(folder)), pool, Fetcher(chosen), log, Counts())
            return build(service, frozenset(), lambda: None)

    with ThreadPoolExecutor(1) as own_thread:  # this one may be in an event loop already
        return own_thread.submit(asyncio.run, built()).result()


def route_table() -> tuple[DescribedRoute, ...]:
    """Every route of it."""
    routes = application().routes
    assert all(isinstance(route, DescribedRoute) for route in routes), "a route without its description"
    return tuple(route for route in routes if isinstance(route, DescribedRoute))


def shaped(answer: httpx.Response, route: DescribedRoute, error: Any = None) -> str:
    """What of an answer is not as its description says; empty if nothing is. `error` is the type of the dialect's errors."""
    operation = route.operation
    media = answer.headers.get("content-type", "").partition(";")[0]
    if answer.status_code not in operation.statuses:
        wanted = operation.failures.get(answer.status_code, error)
        return _misfit(answer.json(), wanted) if media == JSON else f"an error of {media}"
    if operation.item is not None and media == operation.item_media:
        return "; ".join(filter(None, (_misfit(item, operation.item) for item in _items(answer.text, media))))
    if operation.answer is None:
        return "" if not answer.content else "a body"
    if media != operation.answer_media:
        return f"{media} instead of {operation.answer_media}"
    return _misfit(answer.json(), operation.answer) if media == JSON else ""


def _items(text: str, media: str) -> list[Any]:
    """The JSON values of a stream."""
    if media == NDJSON:
        return [json.loads(line) for line in text.splitlines()]
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(value) for value in data if value != "[DONE]"]


def _misfit(value: Any, wanted: Any) -> str:
    problems = []
    for one in wanted if isinstance(wanted, tuple) else (wanted,):
        try:
            msgspec.convert(value, one)
            return ""
        except msgspec.ValidationError as error:
            problems.append(str(error))
    return " and ".join(problems)


def route_of(method: str, path: str) -> DescribedRoute:
    """The first route that a request takes."""
    return next(route for route in route_table() if route.method == method and route.path_regex.match(path))


def error_of(path: str) -> Any:
    """The type of the errors of requests to this path."""
    return application().state.error_format(path).body_type


def compare(answer: httpx.Response) -> None:
    """Fail where a whole JSON answer to a route is not as described. What the middleware answers itself has no body."""
    if not answer.headers.get("content-type", "").startswith(JSON) or answer.request.method == "HEAD":
        return
    path = answer.request.url.path
    if any(route.path_regex.match(path) and route.method == answer.request.method for route in route_table()):
        answer.read()
        misfit = shaped(answer, route_of(answer.request.method, path), error_of(path))
        assert not misfit, f"{answer.request.method} {path} is not as its row of the dialect says: {misfit}"
