"""The worked example of docs/adding-a-dialect.md is run as it stands there: its code, added to the row of dialects."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ndani.api import app as application
from ndani.engines.stream import Coalescer
from ndani.ledger.counts import Counts
from ndani.ledger.log import open_log
from ndani.runtime import hardware
from ndani.runtime.clock import SystemClock
from ndani.runtime.folder import runtime_folder
from ndani.runtime.pool import Pool
from ndani.runtime.runner import Runner
from ndani.service import Service
from ndani.settings import Settings
from ndani.sources.fetcher import Fetcher
from ndani.store import Store
from stores import put_echo

PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-dialect.md").read_text()
CODE, ROW = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
async def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """The application with the page's dialect, over a real runner of the echo engine."""
    module = types.ModuleType("ndani.api.plain.dialect")
    monkeypatch.setitem(sys.modules, "ndani.api.plain", types.ModuleType("ndani.api.plain"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(CODE, "adding-a-dialect.md", "exec"), module.__dict__)
    names = dict(vars(application))
    exec(compile(ROW, "adding-a-dialect.md", "exec"), names)
    assert names["DIALECTS"][:-1] == application.DIALECTS, "the page shows the row as it is"
    monkeypatch.setattr(application, "DIALECTS", names["DIALECTS"])
    put_echo(tmp_path / "models", "m")
    settings, log = Settings(models=tmp_path / "models"), open_log("", False)

    async def spawn(options: Any, weights: int, *inherited: int) -> Runner:
        child = await Runner.spawn(options, weights, folder, require_jail=False)
        await child.ready()
        return child

    with runtime_folder() as folder:
        pool = Pool(settings, spawn, Coalescer(), log, hardware.detect, SystemClock(), lambda error: None)
        service = Service(settings, Store(settings.models), pool, Fetcher(settings), log, Counts())
        app = application.build(service, frozenset(), lambda: None)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as ready:
            yield ready
        await service.close()


@pytest.mark.slow
async def test_the_page_adds_a_dialect_in_one_folder_and_one_row(client: httpx.AsyncClient) -> None:
    answer = await client.post("/plain/chat", json={"model": "m", "question": "words that come back @n"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert answer.text.startswith("words that come back")
    missing = await client.post("/plain/chat", json={"model": "nobody", "question": "x"})
    assert (missing.status_code, missing.json()) == (404, "model 'nobody' not found")
    wrong = await client.post("/plain/chat", json={"model": "m"})
    assert (wrong.status_code, wrong.json()) == (400, "question is required")
    assert (await client.get("/plain/nothing")).text == "no such route"
    described = (await client.get("/openapi.json")).json()
    assert described["paths"]["/plain/chat"]["post"]["summary"] == "Answer a question"
    assert described["components"]["schemas"]["plain.Question"]["required"] == ["model", "question"]
    assert (await client.post("/api/show", json={})).json() == {"error": "model is required"}, "the others are as they were"
