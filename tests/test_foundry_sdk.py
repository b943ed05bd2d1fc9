"""The genuine `foundry-local-sdk` 0.5.1, unmodified: it finds and starts the server by the shim `foundry`, and drives the daemon's routes.

The models that it downloads come from a mirror of ours, which has the real smollm2:135m under the name that is asked for.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from foundry_local import FoundryLocalManager
from foundry_local.models import FoundryModelInfo

from cli_server import free_port
from mirrors import Mirror
from ndani.names import parse
from ndani.store import Store
from stores import REAL, link, put_echo

pytestmark = [pytest.mark.weights, pytest.mark.slow]

HELLO = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8, "temperature": 0}


@pytest.fixture(autouse=True)
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes the SDK's HTTP clients, which it only forgets."""
    opened: list[httpx.Client] = []
    real = httpx.Client.__init__

    def noted(self: httpx.Client, *args: Any, **kwargs: Any) -> None:
        opened.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(httpx.Client, "__init__", noted)
    yield
    for client in opened:
        client.close()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's home with the shims on the path, an empty store and a free port; its service is stopped at the end."""
    for name in [name for name in os.environ if name.startswith(("NDANI_", "OLLAMA_")) and name != "NDANI_TEST_MODELS"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NDANI_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    shims = tmp_path / "bin"
    installed = [sys.executable, "-P", "-m", "ndani", "shims", "install", "--force", "--dir", str(shims)]
    subprocess.run(installed, check=True, capture_output=True)
    monkeypatch.setenv("PATH", f"{shims}{os.pathsep}{os.environ['PATH']}")
    assert shutil.which("foundry") == str(shims / "foundry")
    yield tmp_path
    subprocess.run(["foundry", "service", "stop"], check=True, capture_output=True)


@pytest.fixture
def mirror(house: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """The registry of that user, with the real model as qwen2.5:0.5b."""
    shelf = link(models, house / "shelf")
    Store(shelf).copy(parse(REAL), parse("qwen2.5:0.5b"))
    started = Mirror(shelf, house)
    monkeypatch.setenv("NDANI_REGISTRY", f"http://{started.host}")
    yield started
    assert started.close() == 0


def ids(models: list[FoundryModelInfo]) -> list[str]:
    return [model.id for model in models]


def test_from_nothing_to_an_answer(
    house: Path, mirror: Mirror, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "foundry_local")  # then it reads the progress too
    manager = FoundryLocalManager("qwen2.5-0.5b")  # starts the service, downloads and loads
    own = "qwen2.5-0.5b-generic-cpu:1"
    assert "100.0/100.0" in capsys.readouterr().err
    assert manager.is_service_running()
    assert manager.endpoint == f"http://{os.environ['NDANI_HOST']}/v1"
    assert manager.get_cache_location() == str(house / ".ndani" / "models")
    assert Store(house / ".ndani" / "models").find(parse("qwen2.5:0.5b")).weights.size > 90_000_000
    assert ids(manager.list_cached_models()) == ids(manager.list_loaded_models()) == [own]
    catalogue = manager.list_catalog_models()
    assert {"qwen2.5-0.5b", "smollm2-135m", "all-minilm-22m"} <= {model.alias for model in catalogue}
    for form in ("qwen2.5-0.5b", "qwen2.5-0.5b-generic-cpu", own):
        info = manager.get_model_info(form)
        assert info is not None
        assert info.id == own
        assert not manager.is_model_upgradeable(form)

    headers = {"authorization": f"Bearer {manager.api_key}"}
    texts = {
        httpx.post(f"{manager.endpoint}/chat/completions", json={"model": name, **HELLO}, headers=headers, timeout=120, trust_env=False)
        .raise_for_status()
        .json()["choices"][0]["message"]["content"]
        for name in (own, "qwen2.5-0.5b", "qwen2.5-0.5b-generic-cpu", "qwen2.5:0.5b")
    }
    assert len(texts) == 1
    assert texts.pop().strip()

    manager.unload_model("qwen2.5-0.5b")
    assert manager.list_loaded_models() == []
    manager.unload_model("qwen2.5-0.5b", force=True)  # nothing is left to do
    assert manager.load_model(own, ttl=30).id == own
    assert ids(manager.list_loaded_models()) == [own]
    manager.unload_model(own, force=True)
    assert manager.list_loaded_models() == []
    assert manager.download_model("qwen2.5-0.5b", force=True).id == own, "all of it is here"


def test_what_it_says_where_something_is_missing(house: Path, mirror: Mirror) -> None:
    with pytest.raises(RuntimeError, match="Please start the service first"):
        FoundryLocalManager(bootstrap=False).list_catalog_models()
    manager = FoundryLocalManager()
    with pytest.raises(ValueError, match="not found in the catalog"):
        manager.load_model("nope")
    with pytest.raises(ValueError, match="has not been downloaded yet"):
        manager.load_model("qwen2.5-0.5b")
    with pytest.raises(RuntimeError, match=r"Failed to download model with error: .*does not exist"):
        manager.download_model("smollm2-360m")  # no registry has it
    assert manager.list_cached_models() == []
    manager.unload_model("qwen2.5-0.5b")


def test_a_model_of_ones_own_is_in_its_lists(house: Path) -> None:
    put_echo(house / ".ndani" / "models", "me/mine:v2")
    manager = FoundryLocalManager("me-mine-v2")
    assert ids(manager.list_cached_models()) == ["me-mine-v2-generic-cpu:1"] == ids(manager.list_loaded_models())
