"""A client that hangs up stops the computation: the slot of the real model is idle within a second, whatever it was doing."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

import pytest

from ndani.runtime import hardware
from ndani.runtime.spec import batch_size
from server import Server, until

pytestmark = pytest.mark.weights

#: Well above 2,000 tokens, and another text each time so that no prefix cache helps.
WORDS = "the quick brown fox jumps over the lazy dog while nine wise owls watch from an old oak tree "


def begin(server: Server, path: str, body: dict[str, Any]) -> socket.socket:
    line = server.connect()
    content = json.dumps(body).encode()
    line.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(content), content))
    return line


def hang_up(line: socket.socket, *, rudely: bool) -> None:
    if rudely:  # a reset instead of a goodbye
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()


def long_request(kind: str, *, stream: bool) -> tuple[str, dict[str, Any]]:
    options = {"num_predict": 2000, "temperature": 1.0, "num_ctx": 4096}
    if kind == "answer":
        turns = [{"role": "user", "content": f"{time.monotonic_ns()} Tell me a very long story about a river."}]
        return "/api/chat", {"model": "smollm2", "messages": turns, "stream": stream, "options": options | {"stop": ["\x00never"]}}
    prompt = f"{time.monotonic_ns()} " + WORDS * 110
    return "/api/generate", {"model": "smollm2", "prompt": prompt, "stream": stream, "options": options}


@pytest.fixture
def patience(real: Server) -> float:
    """Seconds until a slot must be idle: one; more only on a machine so slow just now that two batches take longer.

    The engine looks between two batches, and by then the next one has begun.
    """
    one = real.ask("/api/generate", {"model": "smollm2", "prompt": f"{time.monotonic_ns()} " + WORDS * 13, "options": {"num_predict": 1}})
    read = one["prompt_eval_count"] - one.get("prompt_eval_cached_count", 0)
    return max(1.0, 2.5 * batch_size(hardware.detect().cores, 4) * one["prompt_eval_duration"] / 1e9 / read)


def ended(counted: Server | dict[str, int]) -> int:
    """How many requests have come to an end, as cancelled or as answers."""
    counts = counted.health()["counts"] if isinstance(counted, Server) else counted
    return int(counts["cancelled"] + counts["answers"])


def leave(real: Server, patience: float, kind: str, *, stream: bool, rudely: bool) -> None:
    """Ask, hang up in the middle, and see the slot idle in time."""
    line = begin(real, *long_request(kind, stream=stream))
    until(lambda: real.busy() == 1, "the model computes", at_rest=10)
    if kind == "answer":
        if stream:
            assert line.recv(65536).startswith(b"HTTP/1.1 200")
        else:
            time.sleep(0.5)
    else:
        time.sleep(0.3)  # in the middle of the prompt
        line.setblocking(False)
        with pytest.raises(BlockingIOError):
            line.recv(1)
        assert real.busy() == 1
    hang_up(line, rudely=rudely)
    until(lambda: real.busy() == 0, "the slot is idle", at_rest=patience if kind == "prompt" else 1.0)


@pytest.mark.parametrize("rudely", [False, True], ids=["goodbye", "reset"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("kind", ["answer", "prompt"])
def test_the_slot_is_idle_within_a_second(real: Server, patience: float, kind: str, stream: bool, rudely: bool) -> None:
    for _ in range(5):
        before = real.health()["counts"]
        leave(real, patience, kind, stream=stream, rudely=rudely)
        until(lambda before=before: ended(real) > ended(before), "it is counted", at_rest=1)
        if real.health()["counts"]["answers"] == before["answers"]:
            break  # else the model came to an end by itself, just then
    assert real.health()["counts"]["cancelled"] == before["cancelled"] + 1
    assert len(real.runners()) == 1


def test_a_client_that_leaves_the_queue_takes_nobodys_turn(real: Server, patience: float) -> None:
    (slots,) = (model["slots"] for model in real.resident().values())
    lines = [begin(real, *long_request("answer", stream=True)) for _ in range(slots + 3)]
    until(lambda: real.busy() == slots, "every slot computes", at_rest=10)
    until(lambda: real.health()["waiting"] == 3, "three wait", at_rest=5)
    for line in lines[slots:]:
        hang_up(line, rudely=False)
    until(lambda: real.health()["waiting"] == 0, "nobody waits", at_rest=1)
    for line in lines[:slots]:
        hang_up(line, rudely=True)
    until(lambda: real.busy() == 0, "every slot is idle", at_rest=patience)
    assert real.ask("/api/generate", {"model": "smollm2", "prompt": "hi", "options": {"num_predict": 1}})["done"]
