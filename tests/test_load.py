"""Two hundred clients at once against a queue of thirty-two: right answers or the exact 503, nothing hangs, no memory stays."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from conftest import Start
from server import Server, until

pytestmark = pytest.mark.weights

FULL = {"error": "server busy, please try again.  maximum pending requests exceeded"}
ASK = {
    "model": "smollm2",
    "prompt": "The capital of France is",
    "raw": True,
    "stream": False,
    "options": {"num_predict": 6, "temperature": 0},
}


async def crowd(server: Server, count: int) -> list[tuple[int, dict[str, object]]]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one() -> tuple[int, dict[str, object]]:
            async with session.post(f"{server.url}/api/generate", json=ASK) as answer:
                return answer.status, await answer.json()

        async with asyncio.timeout(600):
            return await asyncio.gather(*(one() for _ in range(count)))


def settled(server: Server) -> int:
    """Resident bytes of front and runner, once nothing moves any more."""
    until(lambda: server.busy() == 0 and server.health()["waiting"] == 0, "it is quiet")
    time.sleep(0.5)
    return server.rss() + sum(psutil.Process(p.pid).memory_info().rss for p in server.runners())


async def test_two_hundred_at_once(real_store: Path, start: Start) -> None:
    server = start(real_store, OLLAMA_MAX_QUEUE="32")
    right = server.ask("/api/generate", ASK)["response"]
    assert "Paris" in right
    await crowd(server, 8)  # every slot has been used once, as it would be after a day
    before = settled(server)
    answers = await crowd(server, 200)
    assert {status for status, _ in answers} == {200, 503}
    assert all(body == FULL for status, body in answers if status == 503)
    said = [body for status, body in answers if status == 200]
    assert len(said) >= 32 + 4, "the queue and the slots are used to the full"
    # Slots computed together round otherwise than one alone, so the words may differ after the first few.
    assert all(body["done"] is True and "Paris" in str(body["response"]) for body in said)
    after = settled(server)
    assert after <= before * 1.1, (before, after)
    counts = server.health()["counts"]
    assert counts["failures"] == 200 - len(said)
    assert counts["cancelled"] == 0
    assert server.ask("/api/generate", ASK)["response"]
    assert "fault of its own" not in server.log
