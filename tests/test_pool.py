"""Who is in memory, seen from outside: runners shared, evicted, reloaded and let go (the echo engine)."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from ndani.engines import LaunchOptions
from ndani.runtime.hardware import processors
from ndani.runtime.spec import MIN_CTX, RunnerSpec
from ndani.types import Details
from server import PATIENCE, Server, until
from stores import gguf, put_echo


def chat(server: Server, model: str = "echo", text: str = "a b", **more: Any) -> dict[str, Any]:
    options = {"num_predict": 2} | more.pop("options", {})
    return server.ask("/api/chat", {"model": model, "messages": [{"role": "user", "content": text}], "options": options, **more})


def pids(server: Server) -> set[int]:
    return {p.pid for p in server.runners()}


class Asking:
    """A request in a thread; `answer` once it has come."""

    def __init__(self, server: Server, model: str = "echo", text: str = "a b", **options: Any) -> None:
        self.answer: Any = None
        body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": False, "options": {"num_predict": 2} | options}
        self._thread = threading.Thread(target=self._run, args=(server, body))
        self._thread.start()

    def _run(self, server: Server, body: dict[str, Any]) -> None:
        self.answer = server.post("/api/chat", body)

    def done(self, seconds: float = PATIENCE) -> Any:
        self._thread.join(seconds)
        assert self.answer is not None, f"no answer within {seconds} s"
        return self.answer


def test_two_names_over_one_blob_share_a_runner(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    server.post("/api/copy", {"source": "echo", "destination": "twin"})
    chat(server)
    before = pids(server)
    chat(server, "twin")
    assert pids(server) == before
    assert len(before) == 1


def test_requests_that_come_together_load_a_model_once(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    many = [Asking(server) for _ in range(12)]
    assert all(one.done().status_code == 200 for one in many)
    assert len(pids(server)) == 1
    assert server.log.count("loading a model") == 1


def test_parallel_slots_answer_at_once_and_num_parallel_says_how_many(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_NUM_PARALLEL="2")
    assert chat(server)
    assert server.resident()["echo:latest"]["slots"] == 2
    many = [Asking(server, text="a @delay=0.5") for _ in range(3)]
    until(lambda: server.busy() == 2 and server.health()["waiting"] == 1, "two answer and one waits", at_rest=5)
    assert all(one.done().status_code == 200 for one in many)
    four = start(echo_store)
    assert chat(four)
    assert four.resident()["echo:latest"]["slots"] >= 4


def test_the_most_loaded_models_evict_the_idle_one(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_MAX_LOADED_MODELS="1")
    chat(server)
    (first,) = pids(server)
    chat(server, "other")
    assert set(server.resident()) == {"other:latest"}
    assert first not in pids(server)


def test_of_several_the_one_that_expires_first_is_evicted(start: Start, echo_store: Path) -> None:
    put_echo(echo_store, "third")
    server = start(echo_store, OLLAMA_MAX_LOADED_MODELS="2")
    chat(server, "echo", keep_alive="10m")
    chat(server, "other", keep_alive="1m")
    chat(server, "third")
    assert set(server.resident()) == {"echo:latest", "third:latest"}


def test_a_busy_model_is_waited_for_and_takes_no_new_work(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_MAX_LOADED_MODELS="1")
    chat(server)
    long = Asking(server, text="a b @delay=0.1", num_predict=10)
    until(lambda: server.busy() == 1, "the first computes", at_rest=5)
    began = time.monotonic()
    other = Asking(server, "other")
    assert other.done().status_code == 200
    assert time.monotonic() - began > 0.4, "it waited its turn"
    assert long.done().json()["eval_count"] == 10, "what was under way was finished"
    assert set(server.resident()) == {"other:latest"}


def test_more_context_reloads_once_to_the_next_power_of_two_and_less_never(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_CONTEXT_LENGTH="1024")
    chat(server)
    first = pids(server)
    assert server.resident()["echo:latest"]["context_length"] == 1024
    chat(server, options={"num_ctx": 512})
    assert pids(server) == first
    chat(server, options={"num_ctx": 1500})
    second = pids(server)
    assert second != first
    assert len(second) == 1
    assert server.resident()["echo:latest"]["context_length"] == 2048
    for num_ctx in (2000, 2048, 100, 1024):
        chat(server, options={"num_ctx": num_ctx})
    chat(server)
    assert pids(server) == second
    chat(server, options={"num_ctx": 10**9})
    assert server.resident()["echo:latest"]["context_length"] == 8192, "never more than the model was trained for"
    third = pids(server)
    chat(server, options={"num_ctx": 10**9})
    assert pids(server) == third


def test_a_reload_waits_for_the_answers_under_way(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_CONTEXT_LENGTH="1024")
    chat(server)
    long = Asking(server, text="a b @delay=0.05", num_predict=10)
    until(lambda: server.busy() == 1, "the first computes", at_rest=5)
    bigger = Asking(server, num_ctx=2000)
    assert long.done().json()["eval_count"] == 10
    assert bigger.done().status_code == 200
    assert server.resident()["echo:latest"]["context_length"] == 2048


def test_keep_alive_of_the_last_request_counts(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_KEEP_ALIVE="1h")

    def left() -> float:
        return datetime.fromisoformat(server.resident()["echo:latest"]["expires_at"]).timestamp() - time.time()

    chat(server)
    assert 3500 < left() <= 3601
    chat(server, keep_alive="10m")
    assert 500 < left() <= 601
    chat(server, keep_alive=-1)
    assert left() > 200 * 365 * 86400, "for ever"
    server.post("/api/generate", {"model": "echo", "keep_alive": 60})
    assert 50 < left() <= 61
    chat(server, keep_alive="300ms")
    until(lambda: not server.runners() and not server.resident(), "it expires", at_rest=3)


def test_keep_alive_zero_lets_a_model_go_as_soon_as_nobody_uses_it(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    for nothing in (0, "0", "0s", 0.0):
        chat(server, keep_alive=nothing)
        until(lambda: not server.runners() and not server.resident(), "it leaves", at_rest=2)


def test_a_full_queue_is_the_exact_503_and_drains(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_MAX_QUEUE="2", OLLAMA_NUM_PARALLEL="1")
    chat(server)
    long = Asking(server, text="a b @delay=0.1", num_predict=10)
    until(lambda: server.busy() == 1, "the first computes", at_rest=5)
    waiting = [Asking(server), Asking(server)]
    until(lambda: server.health()["waiting"] == 2, "two wait", at_rest=5)
    refused = server.post("/api/chat", {"model": "echo", "messages": [{"role": "user", "content": "x"}]})
    assert (refused.status_code, refused.json()) == (503, {"error": "server busy, please try again.  maximum pending requests exceeded"})
    assert all(one.done().status_code == 200 for one in (long, *waiting))
    assert chat(server)["done"]


def test_a_runner_that_dies_idle_is_noticed_and_replaced(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    chat(server)
    server.runners()[0].kill()
    until(lambda: not server.resident(), "its death is seen", at_rest=2)
    assert chat(server)["done"]
    assert "a runner died" in server.log


def test_a_model_that_cannot_load_is_one_sentence_and_harms_nobody(start: Start, echo_store: Path) -> None:
    put_echo(echo_store, "broken", gguf("broken"), engine="gguf")  # a head, and no weights for llama.cpp to find
    server = start(echo_store)
    for _ in range(2):
        answer = server.post("/api/chat", {"model": "broken", "messages": [{"role": "user", "content": "x"}]})
        assert answer.status_code == 500
        assert "\n" not in answer.json()["error"]
        assert "/" not in answer.json()["error"]
    assert chat(server)["done"]
    assert set(server.resident()) == {"echo:latest"}


def test_what_needs_more_memory_than_there_is_gets_a_sentence(start: Start, tmp_path: Path) -> None:
    huge = gguf("huge", context=2**31 - 1, **{"llama.block_count": 60000, "llama.embedding_length": 2**20, "llama.attention.head_count": 4})
    put_echo(tmp_path / "models", "huge", huge)
    server = start(tmp_path / "models")
    answer = server.post("/api/chat", {"model": "huge", "messages": [{"role": "user", "content": "x"}]})
    assert answer.status_code == 503
    assert "more than this machine can free" in answer.json()["error"]
    assert "num_ctx" in answer.json()["error"]
    assert server.http.get("/").status_code == 200


def test_what_can_never_fit_leaves_the_runner_that_is_there_alone(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "wide", gguf("wide", context=2**31 - 1, **{"llama.block_count": 60}))
    server = start(tmp_path / "models", OLLAMA_DEBUG="1")
    chat(server, "wide", options={"num_predict": 1})
    before = pids(server)
    long = Asking(server, "wide", text="@delay=0.05", num_predict=1)
    for _ in range(2):
        body = {"model": "wide", "messages": [{"role": "user", "content": "x"}], "options": {"num_ctx": 2**30}}
        answer = server.post("/api/chat", body)
        assert answer.status_code == 503, answer.text
        assert "more than this machine can free" in answer.json()["error"], answer.text
    assert long.done().status_code == 200
    assert pids(server) == before
    assert "a model leaves" not in server.log
    assert "no room for a model model=wide:latest" in server.log


def test_debug_lines_tell_of_loads_queues_and_reasons_and_of_no_word(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_DEBUG="1", OLLAMA_MAX_LOADED_MODELS="1", OLLAMA_MAX_QUEUE="0")
    chat(server, text="SECRET WORDS", options={"num_thread": 2, "num_gpu": 1, "num_batch": 64})
    chat(server, text="SECRET WORDS", options={"num_thread": 1})
    chat(server, "other", text="SECRET WORDS", keep_alive="100ms")
    until(lambda: "a keep-alive ran out model=other:latest" in server.log, "it expires", at_rest=20)
    for line in (
        "debug how it loads model=echo:latest size=", "num_batch=64 num_thread=2 num_gpu=1 adapter=False", "num_thread=1 num_gpu=1",
        "debug a model is loaded model=echo:latest pid=", "debug a slot is given model=echo:latest waited_ms=",
        "debug a runner must start otherwise model=echo:latest slots=", "debug a model leaves for another model=echo:latest size=",
        'to=other:latest why="1 idle model(s) leave"', "debug a model leaves model=echo:latest pid=",
    ):  # fmt: skip
        assert line in server.log, line
    assert "SECRET" not in server.log
    quiet = start(echo_store)
    chat(quiet)
    assert " debug " not in quiet.log
    assert "info loading a model" in quiet.log


def test_no_more_threads_compute_than_there_are_processors(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_DEBUG="1")
    chat(server, options={"num_thread": 512})
    first = pids(server)
    chat(server, options={"num_thread": 511})
    assert pids(server) == first, server.log
    assert f" num_thread={processors()} " in server.log


def test_another_batch_starts_another_runner_and_the_same_does_not(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    chat(server, options={"num_batch": 64})
    first = pids(server)
    chat(server, options={"num_batch": 64})
    chat(server)
    assert pids(server) == first
    chat(server, options={"num_batch": 1})
    second = pids(server)
    chat(server, options={"num_batch": 3})
    assert pids(server) == second != first, "both are too small to be, and mean the least"
    chat(server, options={"num_batch": 128})
    assert pids(server) != first
    assert len(pids(server)) == 1


SPEC = RunnerSpec("k", "m", "d", Details(), None, 100, 10, 8192, engine="echo", num_ctx=4096)
LAUNCH = LaunchOptions("echo", num_ctx=4096)


@pytest.mark.parametrize(
    ("change", "fits"),
    [({}, True), ({"num_ctx": 4}, True), ({"num_ctx": 4097}, False), ({"num_ctx": None}, True), ({"num_batch": 256}, True),
     ({"num_batch": 255}, False), ({"num_thread": 1}, True), ({"num_thread": 2}, False), ({"num_gpu": -1}, True), ({"num_gpu": 0}, False),
     ({"use_mmap": False}, False), ({"main_gpu": 0}, True)],
)  # fmt: skip
def test_what_a_runner_can_serve(change: dict[str, Any], fits: bool) -> None:
    assert replace(SPEC, **change).can_use(LAUNCH) is fits


@pytest.mark.parametrize(
    ("num_ctx", "before", "launched"),
    [(4096, None, 4096), (5000, None, 5000), (5000, 4096, 8192), (100000, None, 8192), (100000, 4096, 8192), (4097, 4096, 8192),
     (100, 4096, 4096), (0, None, MIN_CTX), (1, None, MIN_CTX), (None, None, 4096), (None, 2048, 2048), (1025, 1024, 2048)],
)  # fmt: skip
def test_how_much_context_a_runner_starts_with(num_ctx: int | None, before: int | None, launched: int) -> None:
    old = replace(LAUNCH, num_ctx=before) if before else None
    assert replace(SPEC, num_ctx=num_ctx).launch_options(old, LAUNCH).num_ctx == launched


def test_what_a_request_asks_for_outlives_a_reload_for_more_context() -> None:
    first = replace(SPEC, num_thread=3, num_batch=64).launch_options(None, LAUNCH)
    assert (first.num_thread, first.num_batch) == (3, 64)
    again = replace(SPEC, num_ctx=8000).launch_options(first, LAUNCH)
    assert (again.num_thread, again.num_batch, again.num_ctx) == (3, 64, 8192)
