"""Foundry Local's routes on the echo engine: those of SDK v2's service, those of the older daemon, and the ids of models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import Start
from ndani.cli.formatting import parse_time
from ndani.names import parse
from ndani.service import model_ids
from server import Server, serving, until
from stores import put_echo

FORMS = ("small:135m", "small-135m", "small-135m-generic-cpu", "small-135m-generic-cpu:1", "SMALL-135M-Generic-CPU:1")
#: What SDK 0.5.1 requires of a listed model; `minFLVersion` may be missing.
LISTED = {
    "name", "displayName", "modelType", "providerType", "uri", "version", "promptTemplate", "publisher", "task", "runtime", "fileSizeMb",
    "modelSettings", "alias", "supportsToolCalling", "license", "licenseDescription", "parentModelUri", "maxOutputTokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with `small:135m`, `echo` and two models whose aliases are one."""
    folder = tmp_path_factory.mktemp("foundry")
    for name in ("small:135m", "echo", "a:b-c", "a-b:c"):
        put_echo(folder / "models", name)
    with serving(folder, folder / "models") as started:
        yield started


def get(server: Server, path: str, status: int = 200, **more: Any) -> Any:
    """The decoded body of a GET, whose status and media type are as they should be."""
    answer = server.http.get(path, **more)
    assert answer.status_code == status, answer.text
    if not answer.content:
        return None
    assert answer.headers["content-type"].startswith("application/json")
    return answer.json()


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of an error in Foundry's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return str(error["message"])


def test_names_become_ids_and_ids_names() -> None:
    names = [parse(name) for name in ("smollm2:135m", "all-minilm", "me/x:t", "host:80/me/y:t", "hf.co/a/B:Q4_K_M")]
    assert [model_ids.alias_of(name) for name in names] == ["smollm2-135m", "all-minilm", "me-x-t", "host-80-me-y-t", "hf.co-a-B-Q4_K_M"]
    assert model_ids.id_of(names[0]) == "smollm2-135m-generic-cpu:1"
    for name in names:
        for form in (
            model_ids.alias_of(name),
            model_ids.id_of(name),
            model_ids.id_of(name).removesuffix(":1"),
            model_ids.id_of(name).upper(),
        ):
            assert model_ids.match(form, names) == name, form
    for other in ("smollm2", "smollm2-135m:1", "smollm2-135m-generic-cpu:2", "smollm2-135m-cuda-gpu:1", "", ":1", "-generic-cpu:1"):
        assert model_ids.match(other, names) is None, other


def test_one_alias_of_two_models_is_the_first_ones() -> None:
    first, second = parse("a-b:c"), parse("a:b-c")
    for names in ([first, second], [second, first]):
        assert model_ids.match("a-b-c", names) == first
        assert model_ids.ids(names) == {first: "a-b-c-generic-cpu:1", second: "a:b-c"}


@pytest.mark.slow
def test_every_form_of_a_name_is_accepted_by_routes_that_use_a_model(server: Server) -> None:
    for form in FORMS:
        assert get(server, f"/models/load/{form}")["status"] in ("loaded", "already_loaded"), form
        assert server.ask("/api/generate", {"model": form, "prompt": "hi"})["response"], form
        get(server, f"/openai/load/{form}")
        assert get(server, f"/models/unload/{form}") == {"status": "unloaded"}, form
        get(server, f"/openai/unload/{form}")


@pytest.mark.slow
def test_an_exact_name_wins_over_an_alias(server: Server) -> None:
    put_echo(server.models, "small-135m")
    try:
        assert server.ask("/api/show", {"model": "small-135m"})
        get(server, "/models/load/small-135m")
        assert get(server, "/models/loaded") == ["small-135m-generic-cpu:1"]
        get(server, "/models/unload/small-135m")
        assert server.post("/api/generate", {"model": "small-135m:latest", "keep_alive": 0}).status_code == 200
    finally:
        assert server.http.request("DELETE", "/api/delete", json={"model": "small-135m"}).status_code == 200


@pytest.mark.slow
def test_nothing_is_removed_or_made_by_an_alias(server: Server) -> None:
    assert server.http.request("DELETE", "/api/delete", json={"model": "small-135m"}).status_code == 404
    assert server.post("/api/copy", {"source": "small-135m", "destination": "x"}).status_code == 404
    offline = server.post("/api/create", {"model": "x", "from": "small-135m", "stream": False})
    assert offline.status_code >= 400, "FROM asks the sources for a model of exactly that name"


@pytest.mark.slow
def test_status_of_both(server: Server) -> None:
    assert get(server, "/status") == {"endpoints": [server.url], "modelCachePath": str(server.models), "pid": server.pid}
    assert get(server, "/openai/status") == {"endpoints": [server.url], "modelDirPath": str(server.models), "pipeName": None}


@pytest.mark.slow
def test_loaded_and_unloaded(server: Server) -> None:
    get(server, "/openai/unloadall")
    until(lambda: not server.resident(), "the models have left")
    assert get(server, "/models/loaded") == get(server, "/openai/loadedmodels") == []
    assert get(server, "/models/load/small-135m") == {"status": "loaded"}
    assert get(server, "/models/load/small:135m") == {"status": "already_loaded"}
    assert get(server, "/models/loaded") == get(server, "/openai/loadedmodels") == ["small-135m-generic-cpu:1"]
    assert get(server, "/models/unload/small-135m-generic-cpu:1") == {"status": "unloaded"}
    assert get(server, "/models/loaded") == [], "not one that is leaving"
    assert get(server, "/models/unload/small-135m-generic-cpu:1") == {"status": "not_loaded"}
    get(server, "/openai/load/echo")
    get(server, "/openai/load/a:b-c")
    assert sorted(get(server, "/openai/loadedmodels")) == ["a:b-c", "echo-generic-cpu:1"]
    get(server, "/openai/unloadall")
    assert get(server, "/openai/loadedmodels") == []


@pytest.mark.slow
def test_a_model_that_was_loaded_by_another_name_is_loaded_by_every_name(start: Start, echo_store: Path) -> None:
    server = start(echo_store)
    assert server.post("/api/copy", {"source": "echo", "destination": "twin"}).status_code == 200
    server.ask("/api/generate", {"model": "echo", "prompt": ""})
    assert get(server, "/models/load/twin") == {"status": "already_loaded"}
    assert get(server, "/models/loaded") == get(server, "/openai/loadedmodels") == ["echo-generic-cpu:1", "twin-generic-cpu:1"]
    assert get(server, "/models/unload/twin") == {"status": "unloaded"}
    assert get(server, "/models/loaded") == []


@pytest.mark.parametrize(
    ("query", "seconds"),
    [("", 600), ("?ttl=1200", 1200), ("?ttl=0", 600), ("?ttl=0&unload=true", 600), ("?unload=false", None), ("?unload=false&ttl=30", 30)],
)
def test_ttl_and_unload_say_how_long_it_stays(server: Server, query: str, seconds: int | None) -> None:
    def stays(expected: int | None) -> bool:
        [model] = [model for model in server.resident().values() if model["name"] == "small:135m"]
        left = (parse_time(model["expires_at"]) or 0) - time.time()
        return left > 1e9 if expected is None else expected - 60 < left <= expected

    get(server, f"/openai/load/small-135m{query}")
    assert stays(seconds)
    server.ask("/api/generate", {"model": "small:135m", "prompt": "hi"})
    assert stays(seconds), "a question that says nothing of it leaves it"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/models/load/nope", 404, "no model here has the name, alias or id 'nope'"),
        ("/models/unload/nope", 404, "no model here has the name"),
        ("/models/load/qwen2.5-0.5b", 400, "is not downloaded"),
        ("/models/load/", 404, ""),
        ("/openai/load/nope", 404, "No OpenAIService provider found for modelName: nope"),
        ("/openai/load/qwen2.5-0.5b", 400, "No OpenAIService provider found for modelName: qwen2.5-0.5b"),
        ("/openai/load/smollm2-135m-generic-cpu:1", 400, "No OpenAIService provider found for modelName"),
        ("/openai/unload/nope", 404, "No OpenAIService"),
        ("/openai/load/echo?ttl=soon", 400, "ttl must be a whole number of seconds"),
        ("/openai/load/echo?ttl=-1", 400, "ttl must be"),
        ("/openai/load/echo?unload=maybe", 400, "unload must be true or false"),
        ("/openai/load/echo?ep=cuda", 400, "ep must be cpu"),
        ("/openai/unload/echo?force=perhaps", 400, "force must be true or false"),
        ("/openai/setgpudevice/1", 400, "main_gpu"),
        ("/openai/nope", 404, "no such path"),
        ("/foundry/nope", 404, "no such path"),
        ("/models/nope", 404, "no such path"),
        ("/shutdown", 405, "does not take this method"),
        ("/openai/register", 405, "does not take this method"),
    ],
)
def test_refusals(server: Server, path: str, status: int, sentence: str) -> None:
    assert sentence in refused(server.http.get(path), status)


@pytest.mark.slow
def test_gpu_ep_and_register(server: Server) -> None:
    assert get(server, "/openai/getgpudevice") == 0
    get(server, "/openai/setgpudevice/0")
    get(server, "/openai/load/echo?ep=cpu")
    get(server, "/openai/load/echo?ep=")
    assert "registered" in refused(server.post("/openai/register", {"TypeName": "x", "ModelName": "y", "BaseUri": "http://z"}), 400)


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/models/load/echo", "/models/unload/echo", "/openai/load/echo", "/openai/unload/echo", "/openai/unloadall"]
)
def test_no_foreign_page_moves_a_model(server: Server, path: str) -> None:
    path = path.removesuffix("x") + ("echo" if path.endswith("x") else "")
    for site in ("cross-site", "same-site"):
        assert "web page" in refused(server.http.get(path, headers={"sec-fetch-site": site}), 403)
    for headers in ({"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "same-site", "origin": server.url}):
        get(server, path, headers=headers)


BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", "accept-language": "en-US"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/models/load/echo", "/models/unload/echo", "/openai/load/echo", "/openai/unload/echo", "/openai/unloadall"]
)
def test_no_page_moves_a_model_by_an_address_to_which_browsers_do_not_say_whence(server: Server, path: str) -> None:
    """As Chromium asks for an image at 0.0.0.0, at an address of the local network or at x.local: with none of its Sec-Fetch headers."""
    for host in (f"0.0.0.0:{server.port}", "printer.local", "10.1.2.3"):
        for more in ({}, {"referer": "http://evil.example/"}):
            assert "browser" in refused(server.http.get(path, headers={**BROWSER, **more, "host": host}), 403)
    for site in ("none", "same-origin"):
        get(server, path, headers={**BROWSER, "sec-fetch-site": site})
    get(server, path, headers={**BROWSER, "origin": server.url})
    programs = ("Mozilla/5.0 (Windows NT 10.0) WindowsPowerShell/5.1", "curl/8.5.0", "node")
    for program in programs:
        get(server, path, headers={"user-agent": program})
    get(server, path, headers={"user-agent": "node", "accept-language": "*", "sec-fetch-mode": "cors"})


@pytest.mark.slow
def test_the_catalogue(server: Server) -> None:
    listed = get(server, "/foundry/list")
    for model in listed:
        assert set(model) >= LISTED, model["name"]
        assert model["name"].startswith(model["alias"]) or model["alias"] == "a-b-c"
        assert (isinstance(model["fileSizeMb"], int), isinstance(model["version"], str)) == (True, True)
        assert model["runtime"] == {"deviceType": "CPU", "executionProvider": "CPUExecutionProvider"}
        assert "minFLVersion" in model
    here = [model for model in listed if model["cached"]]
    assert listed[: len(here)] == here, "the first one of an alias is taken"
    assert [model["name"] for model in here] == ["a-b-c-generic-cpu:1", "a:b-c", "echo-generic-cpu:1", "small-135m-generic-cpu:1"]
    assert sorted(get(server, "/openai/models")) == sorted(model["name"] for model in here)
    by_alias = {model["alias"]: model for model in listed}
    assert by_alias["smollm2-135m"]["license"] == "Apache-2.0"
    assert by_alias["smollm2-135m"]["fileSizeMb"] > 80
    assert by_alias["all-minilm-22m"]["task"] == "embeddings"
    assert not by_alias["qwen2.5-0.5b"]["cached"]
    assert len({model["name"] for model in listed}) == len(listed)


def lines_of(server: Server, model: dict[str, Any], **more: Any) -> list[str]:
    answer = server.post("/openai/download", {"model": model, "token": None, "IgnorePipeReport": True, **more})
    return answer.text.splitlines()


@pytest.mark.slow
def test_what_a_download_refuses(server: Server) -> None:
    own = "ndani://registry.ollama.ai/library/echo:latest"
    assert {model["uri"] for model in get(server, "/foundry/list")} >= {own}
    name = {"Name": "echo-generic-cpu:1"}
    for model, more, word in (
        ({}, {}, "model.Name is required"),
        ({"Name": " "}, {}, "model.Name"),
        ({"Name": 5}, {}, "model.Name must be a string"),
        (name | {"ProviderType": "HuggingFaceLocal"}, {}, "ProviderType"),
        (name | {"Uri": "azureml://x"}, {}, "model.Uri"),
        (name | {"PromptTemplate": {"prompt": "x"}}, {}, "PromptTemplate has no effect"),
        (name | {"path": "/x"}, {}, "model.Path has no effect"),
        (name, {"token": "x"}, "token has no effect"),
        (name, {"customdirpath": "/x"}, "customDirPath has no effect"),
        (name, {"IgnorePipeReport": False}, "there is no pipe"),
        ({"Name": "no name at all"}, {}, "invalid model name"),
    ):
        answer = server.post("/openai/download", {"model": model, "IgnorePipeReport": True, **more})
        assert answer.status_code == 400, answer.text
        [line] = answer.text.splitlines()
        result = json.loads(line)
        assert result["success"] is False
        assert word in result["errorMessage"] == result["error"]["message"], result


@pytest.mark.slow
def test_a_download_that_fails_says_so_in_the_object_that_the_sdk_reads(start: Start, echo_store: Path) -> None:
    server = start(echo_store, NDANI_OFFLINE="1")
    result = json.loads(lines_of(server, {"Name": "smollm2-135m", "ProviderType": "AzureFoundryLocal"})[-1])
    assert result["success"] is False
    assert "NDANI_OFFLINE" in result["errorMessage"]


@pytest.mark.slow
def test_tokens_are_counted(server: Server) -> None:
    path = "/v1/chat/completions/tokenizer/encode/count"

    def count(content: object) -> int:
        answer = server.post(path, {"model": "small-135m", "messages": [{"role": "user", "content": content}]})
        assert answer.status_code == 200, answer.text
        assert list(answer.json()) == ["tokenCount"]
        return int(answer.json()["tokenCount"])

    assert 0 < count("one") < count("one two three four")
    assert count("x " * 20000) > 20000, "more than its context, which a client wants to know"
    assert count("one two") == count([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])
    for body, status in (
        ({"model": "small-135m"}, 400),
        ({"model": "small-135m", "messages": []}, 400),
        ({"model": "nope", "messages": [{"role": "user", "content": "x"}]}, 404),
        ({"model": "small-135m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400),
        ({"model": "small-135m", "messages": "x"}, 400),
    ):
        assert refused(server.post(path, body), status), body


@pytest.mark.slow
def test_shutdown_is_for_a_server_that_was_started_in_the_background(start: Start, server: Server, echo_store: Path) -> None:
    assert "not started in the background" in refused(server.post("/shutdown"), 403)
    assert server.http.get("/status").status_code == 200
    other = start(echo_store, NDANI_ALLOW_SHUTDOWN="1")
    assert other.http.post("/shutdown", headers={"origin": "http://evil.example"}).status_code == 403
    assert other.post("/shutdown").json() == {"status": "stopping"}
    assert other.process.wait(60) == 0
