"""The command line `foundry`, as the shim starts it: the life of a server in the background, and its models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_server import free_port
from ndani.cli.foundry import catalogue
from ndani.errors import BadRequest
from server import Server
from stores import put_echo

Type = Callable[..., subprocess.CompletedProcess[str]]

#: What SDK 0.5.1 looks for in the output of `foundry service status`.
ADDRESS = re.compile(r"http://(?:[a-zA-Z0-9.-]+|\d{1,3}(\.\d{1,3}){3}):\d+")


def command(*words: str, program: str = "foundry") -> list[str]:
    return [sys.executable, "-P", "-c", f'from ndani.cli import main; raise SystemExit(main(program="{program}"))', *words]


@pytest.fixture
def foundry(tmp_path: Path) -> Iterator[Type]:
    """Types `foundry …` in a home of its own, with a free port and a store of an echo model; a server that was left is stopped."""
    put_echo(tmp_path / "home" / ".ndani" / "models", "small:135m")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NDANI_", "OLLAMA_"))}
    environment = {**kept, "HOME": str(tmp_path / "home"), "NDANI_HOST": f"127.0.0.1:{free_port()}"}

    def run(*words: str, program: str = "foundry", **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words, program=program),
            env={**environment, **more}, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    yield run
    run("service", "stop")


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_the_life_of_a_service(foundry: Type) -> None:
    absent = foundry("service", "status")
    assert absent.returncode == 0, "the SDK for JavaScript takes another code for a broken installation"
    assert "not running" in absent.stdout
    assert not ADDRESS.search(absent.stdout)
    assert "not running" in said(foundry("service", "stop"))
    started = said(foundry("service", "start"))
    status = said(foundry("service", "status"))
    address = ADDRESS.search(status)
    assert address
    assert re.fullmatch(rf"Service is Started on {address[0]}/, PID \d+!\n", started)
    assert said(foundry("service", "start")) == started, "the same one"
    restarted = said(foundry("service", "restart"))
    assert restarted.partition(",")[0] == started.partition(",")[0]
    assert restarted != started, "another process"
    assert "/openai/status" in said(foundry("service", "diag"))
    assert said(foundry("service", "stop")) == "Service is stopped.\n"
    assert "not running" in said(foundry("service", "status"))


@pytest.mark.slow
def test_a_service_stays_where_a_server_of_another_command_ends_when_idle(foundry: Type) -> None:
    quick = {"NDANI_IDLE_EXIT": ""}
    assert "it stops after 10 idle minutes" in foundry("cache", "location", **quick).stderr
    said(foundry("service", "stop"))
    assert "PID" in said(foundry("service", "start", **quick))
    assert "/status" in said(foundry("service", "diag"))


@pytest.mark.slow
def test_a_server_that_somebody_started_is_not_stopped(foundry: Type, echo: Server) -> None:
    here = {"NDANI_HOST": f"127.0.0.1:{echo.port}"}
    assert "was not started in the background" in refused(foundry("service", "stop", **here))
    assert "was not started in the background" in refused(foundry("service", "restart", **here))
    assert ADDRESS.search(said(foundry("service", "status", **here)))


@pytest.mark.slow
def test_models(foundry: Type) -> None:
    listed = said(foundry("model", "list")).splitlines()
    assert listed[0].split("  ")[0] == "ALIAS"
    assert listed[1].split()[-1] == "small-135m-generic-cpu:1", "what is here comes first"
    assert len(listed) > 10
    one = said(foundry("model", "ls", "--filter", "alias=small*")).splitlines()
    assert [row.split() for row in one] == [row.split() for row in listed[:2]]
    assert [row.split()[0] for row in said(foundry("model", "list", "--filter", "task=embeddings")).splitlines()][1:]
    assert "--filter is KEY=VALUE" in refused(foundry("model", "list", "--filter", "colour=red"))
    for form in ("small-135m", "small-135m-generic-cpu", "SMALL-135M-generic-cpu:1"):
        assert said(foundry("model", "info", form)).splitlines() == one
    assert "no model is called nope" in refused(foundry("model", "info", "nope"))
    assert "without the text of a license" in said(foundry("model", "info", "small-135m", "--license"))
    assert "download the model" in refused(foundry("model", "info", "smollm2-360m", "--license"))

    assert "No models are loaded" in said(foundry("service", "ps"))
    assert said(foundry("model", "load", "small-135m", "--ttl", "60")) == "Model small-135m loaded successfully\n"
    assert "small-135m-generic-cpu:1" in said(foundry("service", "ps")) == said(foundry("service", "list"))
    assert said(foundry("model", "unload", "small-135m")) == "Model small-135m was unloaded successfully\n"
    assert "No models are loaded" in said(foundry("service", "ps"))
    for ttl in ("0", "-1", "soon", "1.5"):
        assert "--ttl must be" in refused(foundry("model", "load", "small-135m", "--ttl", ttl))
    assert "No OpenAIService provider found" in refused(foundry("model", "load", "smollm2-360m"))
    assert said(foundry("model", "run", "small-135m", "hello", "you")) == said(
        foundry("model", "run", "small-135m", "--prompt", "hello you")
    )
    assert said(foundry("model", "run", "small-135m", "--prompt", "--verbose")), "a prompt is no flag"


@pytest.mark.slow
def test_the_cache(foundry: Type, tmp_path: Path) -> None:
    assert said(foundry("cache", "location")) == f"Cache directory path: {tmp_path / 'home' / '.ndani' / 'models'}\n"
    assert "small-135m-generic-cpu:1" in said(foundry("cache", "list"))
    assert "NDANI_MODELS=/elsewhere" in refused(foundry("cache", "cd", "/elsewhere"))
    assert "not found" in refused(foundry("cache", "remove", "nope"))
    assert said(foundry("cache", "remove", "small-135m")) == "Removed model small-135m from the cache\n"
    assert "small-135m" not in said(foundry("cache", "list"))


@pytest.mark.slow
def test_foundry_local_has_what_the_examples_type(foundry: Type, tmp_path: Path) -> None:
    def local(*words: str) -> subprocess.CompletedProcess[str]:
        return foundry(*words, program="foundry-local")

    assert "version" in said(local("--version"))
    assert str(tmp_path / "home" / ".ndani") in said(local("init"))
    assert len(said(local("models", "list")).splitlines()) > len(said(local("models", "list", "--size", "tiny")).splitlines()) > 1
    small = said(local("models", "list", "--size", "small", "--type", "instruct"))
    assert "phi" in small or "qwen" in small
    assert "embeddings" not in small
    assert 'invalid argument for "--size" flag' in refused(local("models", "list", "--size", "huge"))
    assert "not tested or measured" in refused(local("models", "test", "microsoft/phi-4-mini", "--benchmark"))
    assert "deployments are not in this version" in refused(local("deploy", "--config", "deployment.json"))


def model(name: str, alias: str, **more: Any) -> dict[str, Any]:
    runtime = {"deviceType": "CPU", "executionProvider": "CPUExecutionProvider"}
    return {"name": name, "alias": alias, "task": "chat-completion", "runtime": runtime, "uri": f"ndani://h/n/{alias}", **more}


def test_a_model_is_chosen_as_the_sdk_chooses_it() -> None:
    models = [model("x-generic-cpu:1", "x"), model("y-generic-cpu:1", "y"), model("y2-generic-cpu:1", "y")]
    for text in ("y", "Y", "y-generic-cpu", "y-generic-cpu:1"):
        assert catalogue.choose(models, text) is models[1]
    assert catalogue.choose(models, "y-generic-cpu:2") is None
    assert catalogue.name_of(models, "x") == "h/n/x"
    assert catalogue.name_of(models, "qwen2.5:3b") == "qwen2.5:3b"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("alias=x", ["x"]), ("ALIAS=X", ["x"]), ("alias=!x", ["xy", "z"]), ("alias=x*", ["x", "xy"]), ("alias=!x*", ["z"]),
        ("device=cpu", ["x", "xy", "z"]), ("device=GPU", []), ("task=chat-completion", ["x", "xy"]), ("task=!chat*", ["z"]),
        ("provider=CPUExecutionProvider", ["x", "xy", "z"]), ("alias=*", ["x", "xy", "z"]),
    ],
)  # fmt: skip
def test_filters(text: str, left: list[str]) -> None:
    models = [model("1", "x"), model("2", "xy"), model("3", "z", task="embeddings")]
    assert [found["alias"] for found in catalogue.filtered(models, text)] == left


@pytest.mark.parametrize("text", ["", "alias", "x=y", "=x"])
def test_a_filter_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="KEY is one of device, provider, task, alias"):
        catalogue.filtered([], text)
