"""Every native route over a real server: shapes, streams, loads and unloads (the echo engine; errors are in test_malformed)."""

from __future__ import annotations

import re
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import gguf_files
from conftest import Start
from ndani import OLLAMA_API, __version__
from server import Server, until
from stores import gguf, put_echo

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z\Z")
COUNTS = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_count", "eval_duration")


def chat_body(*contents: str, **more: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": c} for c in contents], "options": {"num_predict": 4}, **more}


def generate_body(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "echo", "prompt": text, "options": {"num_predict": 4}, **more}


def test_the_root_and_the_version(echo: Server) -> None:
    root = echo.http.get("/")
    assert (root.status_code, root.text, root.headers["content-type"]) == (200, "Ollama is running", "text/plain; charset=utf-8")
    assert echo.http.head("/").status_code == echo.http.head("/api/version").status_code == echo.http.head("/api/tags").status_code == 200
    assert echo.http.head("/").text == ""
    assert echo.http.get("/api/version").json() == {"version": OLLAMA_API, "ndani": __version__}
    assert echo.http.get("/api/status").json() == {"cloud": {"disabled": True, "source": "config"}}


def test_tags_has_every_key_of_the_reference(echo: Server) -> None:
    models = {m["name"]: m for m in echo.http.get("/api/tags").json()["models"]}
    assert set(models) == {"echo:latest", "other:latest"}
    one = models["echo:latest"]
    assert one["model"] == "echo:latest"
    assert one["size"] > 100
    assert re.fullmatch("[0-9a-f]{64}", one["digest"])
    assert one["details"]["format"] == "echo"
    assert one["details"]["families"] == ["llama"]
    assert one["details"]["context_length"] == 8192
    assert one["capabilities"] == ["completion"]


def test_tags_of_an_empty_store_is_an_empty_list(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "nothing")
    assert server.http.get("/api/tags").json() == {"models": []}
    assert server.http.get("/api/ps").json() == {"models": []}
    assert server.health()["loaded"] == []


def test_chat_streams_lines_and_the_last_one_counts(echo: Server) -> None:
    answer = echo.post("/api/chat", chat_body("one two"))
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    *pieces, last = echo.lines("/api/chat", chat_body("one two"))
    assert [p["message"]["content"] for p in pieces] == ["one", " two", " one", " two"]
    assert all(set(p) == {"model", "created_at", "message", "done"} and p["done"] is False for p in pieces)
    assert all(STAMP.match(p["created_at"]) and p["message"]["role"] == "assistant" for p in pieces)
    assert last["done"] is True
    assert last["done_reason"] == "length"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert all(isinstance(last[key], int) and last[key] > 0 for key in COUNTS)
    assert last["eval_count"] == 4
    assert "truncated" not in last
    assert "context" not in last


def test_chat_without_streaming_is_the_stream_folded(echo: Server) -> None:
    one = echo.ask("/api/chat", chat_body("one two"))
    assert one["message"] == {"role": "assistant", "content": "one two one two"}
    assert one["done"] is True
    assert set(COUNTS) <= set(one)
    assert echo.post("/api/chat", {**chat_body("x"), "stream": False}).headers["content-type"] == "application/json; charset=utf-8"


def test_generate_streams_and_folds(echo: Server) -> None:
    *pieces, last = echo.lines("/api/generate", generate_body("one two"))
    assert "".join(p["response"] for p in pieces) == "one two one two"
    assert last["response"] == ""
    assert last["done_reason"] == "length"
    assert all(last[key] > 0 for key in COUNTS)
    assert last["context"]
    assert echo.ask("/api/generate", generate_body("one two"))["response"] == "one two one two"


def test_a_null_stream_and_no_stream_both_stream(echo: Server) -> None:
    assert len(echo.lines("/api/chat", chat_body("x", stream=None))) == len(echo.lines("/api/chat", chat_body("x"))) == 5


def test_names_in_answers_are_as_the_client_spelt_them_and_are_found_in_any_case(echo: Server) -> None:
    for name in ("echo", "ECHO:Latest", "registry.ollama.ai/library/echo"):
        assert echo.ask("/api/chat", chat_body("x", model=name))["model"] == name


def test_field_names_match_in_any_case_and_the_content_type_is_not_looked_at(echo: Server) -> None:
    body = b'{"MODEL":"echo","Prompt":"x","STREAM":false,"Options":{"num_predict":1}}'
    answer = echo.http.post("/api/generate", content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 200
    assert answer.json()["response"] == "x"


def test_num_predict_zero_gives_no_token(echo: Server) -> None:
    one = echo.ask("/api/chat", chat_body("one two", options={"num_predict": 0}))
    assert (one["message"]["content"], one["done_reason"], one.get("eval_count", 0)) == ("", "length", 0)
    assert len(echo.lines("/api/generate", generate_body("x", options={"num_predict": 0}))) == 1


def test_stop_words_end_an_answer_and_are_not_said(echo: Server) -> None:
    one = echo.ask("/api/chat", chat_body("one two three", options={"num_predict": 9, "stop": ["three"]}))
    assert (one["message"]["content"].strip(), one["done_reason"]) == ("one two", "stop")


def test_a_model_that_repeats_itself_is_ended(echo: Server) -> None:
    one = echo.ask("/api/chat", chat_body("same", options={"num_predict": 500}))
    assert one["eval_count"] < 40
    assert one["done_reason"] == "length"


def test_an_answer_is_never_longer_than_ten_contexts(echo: Server) -> None:
    body = chat_body("a b", model="other", options={"num_predict": 10**6, "num_ctx": 20})
    assert echo.ask("/api/chat", body)["eval_count"] == 200
    body = chat_body("a b", model="other", options={"num_predict": -1, "num_ctx": 20})
    assert echo.ask("/api/chat", body)["eval_count"] == 200


def test_raw_sends_the_prompt_untouched(echo: Server) -> None:
    body = {"options": {"num_predict": 1}}
    assert echo.ask("/api/generate", {**generate_body("a b c", raw=True), **body})["prompt_eval_count"] == 3
    assert echo.ask("/api/generate", {**generate_body("a b c"), **body})["prompt_eval_count"] > 3


@pytest.mark.parametrize(("route", "empty"), [("/api/chat", {"messages": []}), ("/api/generate", {"prompt": ""})])
def test_an_empty_prompt_loads_and_unloads(echo_store: Path, start: Start, route: str, empty: dict[str, Any]) -> None:
    server = start(echo_store)
    for stream in ({}, {"stream": False}):
        loaded = server.post(route, {"model": "echo", **empty, **stream})
        assert loaded.headers["content-type"].startswith("application/json"), "one object, streaming or not"
        assert loaded.json()["done"] is True
        assert loaded.json()["done_reason"] == "load"
        assert "eval_count" not in loaded.json()
    assert set(server.resident()) == {"echo:latest"} == set(server.health()["loaded"])
    gone = server.post(route, {"model": "echo", **empty, "keep_alive": 0})
    assert gone.json()["done_reason"] == "unload"
    assert gone.json().get("response") == "" or gone.json()["message"]["content"] == ""
    assert_gone(server)
    assert server.post(route, {"model": "echo", **empty, "keep_alive": 0}).json()["done_reason"] == "unload", "not there is fine"
    assert server.runners() == []


def assert_gone(server: Server) -> None:
    until(lambda: not server.resident() and not server.runners(), "the model leaves", at_rest=3)


def test_ps_has_every_key_of_the_reference(echo: Server) -> None:
    echo.ask("/api/chat", chat_body("x"))
    one = echo.resident()["echo:latest"]
    assert one["context_length"] == 4096
    assert one["slots"] >= 4
    assert one["size"] > 0
    assert one["size_vram"] == 0
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)\Z", one["expires_at"])
    assert one["pid"] in [p.pid for p in echo.runners()]
    assert one["confinement"] == "confined"
    assert set(one["details"]) == {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"}


def test_show_says_what_the_layers_say(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "models"
    put_echo(
        store, "full", gguf("full", template="{{ tools }}", tensors={}), system="be brief", license="free",
        params={"stop": ["<e>", "<f>"], "top_k": 3, "temperature": 0.5},
        messages=[{"role": "user", "content": "hi"}],
    )  # fmt: skip
    server = start(store)
    one = server.post("/api/show", {"model": "full"}).json()
    assert one["system"] == "be brief"
    assert one["license"] == "free"
    assert one["messages"] == [{"role": "user", "content": "hi"}]
    assert one["parameters"].splitlines() == [
        'stop                           "<e>"',
        'stop                           "<f>"',
        "temperature                    0.5",
        "top_k                          3",
    ]
    assert one["model_info"]["general.architecture"] == "llama"
    assert "general.name" not in one["model_info"]
    assert one["template"] == "{{ tools }}"
    assert one["capabilities"] == ["completion", "tools"]
    assert "FROM " in one["modelfile"]
    assert "PARAMETER stop <e>" in one["modelfile"]
    assert "SYSTEM be brief" in one["modelfile"]
    assert one["tensors"] == []
    assert server.post("/api/show", {"name": "full", "verbose": True}).json()["tensors"] == []


def test_tensors_are_listed_block_by_block_whatever_they_are_called(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "models"
    tensors = ["blk.10.x", "blk.\u00b2.x", f"blk.{'9' * 5000}.x", "blk.2.x", "output.x"]
    put_echo(store, "odd", gguf_files.gguf(dict.fromkeys(tensors, b"x")))
    shown = start(store).post("/api/show", {"model": "odd"}).json()
    assert [tensor["name"] for tensor in shown["tensors"]] == [*sorted(tensors[1:3]), "output.x", "blk.2.x", "blk.10.x"]


def test_nobody_waits_while_a_large_answer_of_show_is_made(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "models"
    scores = struct.pack("<IIQ", 9, 6, 200_000) + struct.pack("<200000f", *(number / 7 for number in range(200_000)))
    head, lists = gguf(tensors={}), [struct.pack("<Q", 2) + b"k%d" % number + scores for number in range(8)]
    count = struct.unpack("<Q", head[16:24])[0] + len(lists)
    put_echo(store, "large", head[:16] + struct.pack("<Q", count) + head[24:] + b"".join(lists))
    server, longest = start(store), 0.0
    assert server.post("/api/show", {"model": "large"}).status_code == 200
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, trust_env=False, timeout=60) as other:
        begun = time.monotonic()
        shown = pool.submit(server.post, "/api/show", {"model": "large", "verbose": True})
        while not shown.done():
            began = time.monotonic()
            assert other.get("/api/version").status_code == 200
            longest = max(longest, time.monotonic() - began)
        took = time.monotonic() - begun
    assert len(shown.result().json()["model_info"]["k7"]) == 200_000
    assert longest < took / 2, (longest, took)


def test_a_models_own_system_messages_and_parameters_count_and_the_request_wins(start: Start, tmp_path: Path) -> None:
    store = tmp_path / "models"
    weights = gguf("same")
    put_echo(store, "plain", weights)
    put_echo(store, "brief", weights, system="be very brief", params={"num_predict": 2})
    put_echo(store, "taught", weights, messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}])
    server = start(store)

    def count(model: str, route: str = "/api/chat", **more: Any) -> int:
        body = chat_body("one two", model=model) if route == "/api/chat" else generate_body("one two", model=model)
        return int(server.ask(route, {**body, **more})["prompt_eval_count"])

    bare = count("plain")
    assert count("brief") > bare
    assert count("taught") > bare
    assert count("plain", "/api/generate") == bare
    assert count("brief", "/api/generate") == count("brief")
    assert count("brief", "/api/generate", system="") == count("brief"), "an empty system is one not said"
    assert count("brief", "/api/generate", system="x") == count("brief") - 2
    own = [{"role": "system", "content": "x"}, {"role": "user", "content": "one two"}]
    assert count("brief", messages=own) == count("brief") - 2
    assert server.ask("/api/chat", {"model": "brief", "messages": own})["eval_count"] == 2, "the model's num_predict"
    assert server.ask("/api/chat", {"model": "brief", "messages": own, "options": {"num_predict": 3}})["eval_count"] == 3


def test_a_base_model_gets_the_words_themselves(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "base", gguf("base", template=""))
    server = start(tmp_path / "models")
    assert server.ask("/api/chat", chat_body("a b c", model="base"))["prompt_eval_count"] == 3


def test_copy_and_delete(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    done = server.post("/api/copy", {"source": "echo", "destination": "me/new:1"})
    assert (done.status_code, done.text) == (200, "")
    assert {m["name"] for m in server.http.get("/api/tags").json()["models"]} == {"echo:latest", "other:latest", "me/new:1"}
    assert server.ask("/api/chat", chat_body("x", model="me/new:1"))["done"]
    for name in ("echo", "me/new:1"):
        gone = server.http.request("DELETE", "/api/delete", json={"name": name})
        assert (gone.status_code, gone.text) == (200, "")
    assert [m["name"] for m in server.http.get("/api/tags").json()["models"]] == ["other:latest"]
    assert_gone(server)


def test_deleting_one_of_two_names_leaves_the_model_in_memory(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    server.post("/api/copy", {"source": "echo", "destination": "twin"})
    pid = [server.ask("/api/chat", chat_body("x", model=m)) and server.runners()[0].pid for m in ("echo", "twin")]
    assert pid[0] == pid[1]
    assert len(server.runners()) == 1
    server.http.request("DELETE", "/api/delete", json={"model": "echo"})
    assert server.ask("/api/chat", chat_body("x", model="twin"))["done"]
    assert server.runners()[0].pid == pid[0]


def test_a_compressed_body_is_told_what_it_is(echo: Server) -> None:
    for encoding, status in (("gzip", 400), ("ZSTD", 400), ("identity", 200), ("", 200)):
        answer = echo.http.post("/api/show", content=b'{"model":"echo"}', headers={"content-encoding": encoding})
        assert answer.status_code == status, encoding
        assert status == 200 or "compressed" in answer.json()["error"], encoding


def test_options_that_nothing_obeys_are_named(echo: Server) -> None:
    odd = {"bad name\r\nx: y": 1, "x" * 200_000: 1}
    answer = echo.post("/api/chat", chat_body("x", options={"num_predict": 1, "mirostat": 2, "tfs_z": 1.0, **odd}))
    assert answer.status_code == 200
    assert answer.headers["x-ndani-ignored"] == "mirostat, tfs_z"
    assert "x" not in answer.headers
    assert "x-ndani-ignored" not in echo.post("/api/chat", chat_body("x")).headers


def test_what_official_clients_send_by_habit_passes(echo: Server) -> None:
    habit = {"tools": [], "think": False, "format": "", "images": [], "keep_alive": None, "options": {"num_predict": 1}, "logprobs": None}
    assert echo.ask("/api/chat", chat_body("x") | habit)["done"]
    assert echo.ask("/api/generate", generate_body("x", suffix="", template="", system="", context=[], raw=False) | habit)["done"]


def test_truncation_is_said_and_counted(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    turns = [{"role": "user" if n % 2 == 0 else "assistant", "content": f"word{n} " * 5} for n in range(21)]
    body = {"model": "echo", "messages": turns, "options": {"num_ctx": 40, "num_predict": 1}}
    last = server.lines("/api/chat", body)[-1]
    assert last["truncated"] > 50
    assert last["prompt_eval_count"] < 40
    counts = server.health()["counts"]
    assert (counts["truncated_prompts"], counts["truncated_tokens"]) == (1, last["truncated"])
    refused = server.post("/api/chat", {**body, "truncate": False})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("the prompt is longer than the context length")
    one = [{"role": "user", "content": "long " * 300}]
    assert server.ask("/api/chat", {**body, "messages": one})["truncated"] > 200
    assert server.post("/api/chat", {**body, "messages": one, "shift": False}).status_code == 400
    assert server.ask("/api/generate", {"model": "echo", "prompt": "long " * 300, "options": body["options"]})["truncated"] > 200
    short = server.ask("/api/chat", {**body, "messages": [{"role": "user", "content": "hi"}]})
    assert "truncated" not in short


def test_without_shift_the_answer_ends_where_the_context_does(echo: Server) -> None:
    body = chat_body("a b", model="other", options={"num_predict": 100, "num_ctx": 20}, shift=False)
    one = echo.ask("/api/chat", body)
    assert one["eval_count"] + one["prompt_eval_count"] == 20
    assert one["done_reason"] == "length"


def test_health_and_doctor(echo: Server) -> None:
    health = echo.http.get("/api/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
    assert health.json()["unconfined"] == []
    answer = echo.post("/api/doctor").json()
    assert answer["engine"] == "echo"
    assert answer["confinement"]["word"] == "confined"
    assert len(answer["routes"]) >= 13
    assert {r["inside"] for r in answer["routes"]} == {"blocked"}


def test_unloading_while_an_answer_is_made_waits_for_it(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    body = chat_body("a b @delay=0.05", options={"num_predict": 10})
    with server.streaming("/api/chat", body) as lines:
        next(lines)
        assert server.post("/api/generate", {"model": "echo", "keep_alive": 0}).json()["done_reason"] == "unload"
        assert list(lines)[-1]["done_reason"] == "length"
    assert_gone(server)


def test_the_log_holds_no_word_of_a_conversation(start: Start, echo_store: Path) -> None:
    server = start(echo_store, OLLAMA_DEBUG="2")
    server.ask("/api/chat", chat_body("xylophone"))
    server.ask("/api/generate", generate_body("xylophone", system="xylophone"))
    server.post("/api/chat", chat_body("xylophone", options={"stop": "xylophone"}))
    server.http.post("/api/chat", content=b'{"model": "xylophone" xylophone')
    server.post("/api/chat", {"model": "xylophone"})
    server.http.get("/xylophone?xylophone")
    with server.streaming("/api/chat", chat_body("xylophone @crash=1", options={"num_predict": 9})) as lines:
        assert "error" in list(lines)[-1]
    assert "route=/api/chat" in server.log
    assert "xylophone" not in server.log
