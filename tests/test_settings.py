"""Settings: flag over environment over file over default, and where each value came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndani.errors import Misconfigured
from ndani.settings import Settings, fields, load, parse_flag, server_fields, unsupported_variable_warnings, variables_of


def read(tmp_path: Path, environ: dict[str, str] | None = None, file: str = "", **flags: object) -> Settings:
    path = tmp_path / "config.toml"
    path.write_text(file)
    return load(environ or {}, flags, path)


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = str(tmp_path / "config.toml")
    both = {"OLLAMA_MAX_QUEUE": "3", "NDANI_MAX_QUEUE": "4"}
    layers = [
        (read(tmp_path), 512, "default"),
        (read(tmp_path, file="max_queue = 2"), 2, path),
        (read(tmp_path, {"OLLAMA_MAX_QUEUE": "3"}, "max_queue = 2"), 3, "OLLAMA_MAX_QUEUE"),
        (read(tmp_path, both, "max_queue = 2"), 4, "NDANI_MAX_QUEUE"),
        (read(tmp_path, both, "max_queue = 2", max_queue=5), 5, "flag"),
    ]
    for settings, value, origin in layers:
        assert (settings.max_queue, settings.value_sources["max_queue"]) == (value, origin)


def test_every_setting_has_a_name_a_meaning_and_an_origin(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert set(settings.value_sources) == {f.name for f in fields()}
    assert len(fields()) > 15
    assert all(f.metadata["doc"] and variables_of(f)[0] == f"NDANI_{f.name.upper()}" for f in fields())


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("OLLAMA_KEEP_ALIVE", "10", "keep_alive", 10.0),
        ("OLLAMA_KEEP_ALIVE", "-1", "keep_alive", -1.0),
        ("OLLAMA_KEEP_ALIVE", " '1h' ", "keep_alive", 3600.0),
        ("OLLAMA_LOAD_TIMEOUT", "90s", "load_timeout", 90.0),
        ("OLLAMA_ORIGINS", "http://a, http://b,", "origins", ("http://a", "http://b")),
        ("OLLAMA_NOPRUNE", "perhaps", "noprune", True),
        ("OLLAMA_NOPRUNE", "false", "noprune", False),
        ("OLLAMA_FLASH_ATTENTION", "0", "flash_attention", False),
        ("OLLAMA_DEBUG", "2", "debug", 2),
        ("OLLAMA_DEBUG", "true", "debug", 1),
        ("OLLAMA_KV_CACHE_TYPE", "Q8_0", "kv_cache_type", "q8_0"),
        ("OLLAMA_MAX_QUEUE", "  ", "max_queue", 512),
        ("NDANI_OFFLINE", "1", "offline", True),
        ("NDANI_REGISTRY", "http://127.0.0.1:11435/", "registry", "http://127.0.0.1:11435"),
        ("NDANI_REGISTRY", "models.example:5000", "registry", "models.example:5000"),
        ("NDANI_REGISTRY", "http://[::1]:28444", "registry", "http://[::1]:28444"),
        ("NDANI_SOURCES", "/media/usb, ~/models,", "sources", ("/media/usb", "~/models")),
        ("OLLAMA_MAX_TRANSFER_STREAMS", "2", "max_transfer_streams", 2),
        ("OLLAMA_NOHISTORY", "1", "nohistory", True),
        ("OLLAMA_EDITOR", "vim -n", "editor", "vim -n"),
    ],
)
def test_values_are_read_as_ollama_reads_them(tmp_path: Path, variable: str, text: str, name: str, value: object) -> None:
    assert getattr(read(tmp_path, {variable: text}), name) == value


@pytest.mark.parametrize(
    ("environ", "file", "sentence"),
    [
        ({"OLLAMA_MAX_QUEUE": "many"}, "", "OLLAMA_MAX_QUEUE is 'many': a whole number of 0 or more is needed"),
        ({"NDANI_KEEP_ALIVE": "soon"}, "", "NDANI_KEEP_ALIVE is 'soon': a duration such as 5m is needed"),
        ({"OLLAMA_MAX_TRANSFER_STREAMS": "0"}, "", "a whole number of 1 or more is needed"),
        ({"OLLAMA_NUM_PARALLEL": "300"}, "", "a whole number from 0 to 256 is needed"),
        ({"OLLAMA_NUM_THREAD": "100000"}, "", "a whole number from 0 to 512 is needed"),
        ({"OLLAMA_CONTEXT_LENGTH": "-5"}, "", "a whole number from 0 to 2147483647 is needed"),
        ({"OLLAMA_MAX_LOADED_MODELS": "²"}, "", "a whole number of 0 or more is needed"),
        ({"NDANI_MAX_BODY": "0"}, "", "a whole number of 1 or more is needed"),
        ({}, "max_body = -1", "a whole number of 1 or more is needed"),
        ({"OLLAMA_KV_CACHE_TYPE": "q3"}, "", "OLLAMA_KV_CACHE_TYPE is 'q3': one of f32"),
        ({"OLLAMA_NO_CLOUD": "0"}, "", "OLLAMA_NO_CLOUD=0 cannot be honoured"),
        ({}, "max_queues = 1", "unknown setting 'max_queues'"),
        ({}, "max_queue = ", "cannot be read"),
        ({}, "max_queue = 'x'", "max_queue in"),
        ({"NDANI_MODELS": "~nobody-here/x"}, "", "begins with the home of somebody who is not here"),
        ({"NDANI_LOG_FILE": "~nobody-here/x"}, "", "begins with the home of somebody who is not here"),
        ({"NDANI_SOURCES": "/a,~nobody-here/x"}, "", "begins with the home of somebody who is not here"),
        ({}, 'models = "a\\u0000b"', ": a path holds no NUL"),
        ({}, 'log_file = "\\u0000"', ": a path holds no NUL"),
        ({}, 'sources = ["/a", "\\u0000"]', ": a path holds no NUL"),
        ({"NDANI_IDLE_EXIT": "-5m"}, "", "NDANI_IDLE_EXIT is '-5m': a duration of 0 or more is needed"),
        ({"NDANI_RESPONSES_TTL": "-1h"}, "", "NDANI_RESPONSES_TTL is '-1h': a duration of 0 or more is needed"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_sentence(tmp_path: Path, environ: dict[str, str], file: str, sentence: str) -> None:
    with pytest.raises(Misconfigured) as met:
        read(tmp_path, environ, file)
    assert sentence in str(met.value)
    assert "\n" not in str(met.value)


@pytest.mark.parametrize(
    ("host", "address", "url"),
    [
        ("", ("127.0.0.1", 11434), "http://127.0.0.1:11434"),
        ("0.0.0.0", ("0.0.0.0", 11434), "http://127.0.0.1:11434"),
        (":8080", ("127.0.0.1", 8080), "http://127.0.0.1:8080"),
        ("http://h", ("h", 80), "http://h:80"),
        ("https://h", ("h", 443), "https://h:443"),
        ("http://h:1/path", ("h", 1), "http://h:1"),
        ("[::1]:9", ("::1", 9), "http://[::1]:9"),
        ("::1", ("::1", 11434), "http://[::1]:11434"),
        ("[::]", ("::", 11434), "http://[::1]:11434"),
        ("HTTPS://h.example.", ("h.example.", 443), "https://h.example.:443"),
        ("fe80::1%eth0", ("fe80::1%eth0", 11434), "http://[fe80::1%eth0]:11434"),
        ("m\u00fcnchen.example:1", ("m\u00fcnchen.example", 1), "http://m\u00fcnchen.example:1"),
    ],
)
def test_addresses(tmp_path: Path, host: str, address: tuple[str, int], url: str) -> None:
    settings = read(tmp_path, {"OLLAMA_HOST": host})
    assert (settings.address, settings.url) == (address, url)


@pytest.mark.parametrize(
    "host",
    [
        *("h:x", "h:65536", "h:-1", "h:1q", "h:\u00b2", "no such host:1", "a..b:1", ".", "h" * 300, "\udcff:1", "\u00fc" * 63),
        *("[::1", "[::1]9", "[h]:1", "1:2:3", "user:pw@127.0.0.1:1", "user@127.0.0.1:1", "ftp://h:1", "http://h/a b", "http://h/\u00e9"),
    ],
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(Misconfigured, match="is not an address to listen on"):
        _ = Settings(host=host).address


def test_a_home_that_is_no_folder_has_no_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")  # the home of many a service
    assert load({}).host == Settings().host


def test_a_settings_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    def said(place: str) -> str:
        with pytest.raises(Misconfigured) as met:
            load({"NDANI_CONFIG": place})
        return str(met.value)

    (tmp_path / "latin").write_bytes(b"editor = '\xff'")
    assert said(str(tmp_path)) == f"the settings file {tmp_path} cannot be read: Is a directory"
    assert said(str(tmp_path / "latin")) == f"the settings file {tmp_path / 'latin'} cannot be read: it is not text in UTF-8"
    assert said("~nobody-here/x") == "NDANI_CONFIG cannot be used: the path ~nobody-here/x begins with the home of somebody who is not here"


def test_flags_of_the_server(tmp_path: Path) -> None:
    setting = {s.name: s for s in server_fields()}
    assert parse_flag(setting["max_queue"], "7") == 7
    assert parse_flag(setting["offline"], "no") is False
    assert parse_flag(setting["models"], " ") is None, "an empty one says nothing, as in the environment"
    for name, text, sentence in (
        ("flash_attention", "maybe", "--flash-attention is 'maybe': true or false is needed"),
        ("idle_exit", "-5m", "--idle-exit is '-5m': a duration of 0 or more is needed"),
        ("keep_alive", "soon", "--keep-alive is 'soon': a duration such as 5m is needed"),
        ("num_gpu", "abc", "--num-gpu is 'abc': a whole number"),
    ):
        with pytest.raises(Misconfigured) as met:
            parse_flag(setting[name], text)
        assert str(met.value).startswith(sentence)


def test_the_store_is_ndanis_else_ollamas_else_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(tmp_path).models == tmp_path / ".ndani" / "models"
    assert read(tmp_path, {"OLLAMA_MODELS": "~/o"}).models == tmp_path / "o"
    assert read(tmp_path, {"OLLAMA_MODELS": "/o", "NDANI_MODELS": "/n"}).models == Path("/n")


def test_a_variable_that_nothing_obeys_is_named() -> None:
    assert unsupported_variable_warnings({"OLLAMA_VULKAN": "1", "OLLAMA_HOST": "x"}) == [
        "OLLAMA_VULKAN is set, but has no effect: Vulkan is not in this version"
    ]
    assert unsupported_variable_warnings({}) == []


@pytest.mark.parametrize(
    "text", ["http://", "models.example/v2", "ftp://models.example", "a b", "https://user:secret@models.example", "h:99999", "[::1"]
)
def test_a_registry_is_a_host(tmp_path: Path, text: str) -> None:
    with pytest.raises(Misconfigured, match=r"^NDANI_REGISTRY is .*: a registry's host is needed, as in registry.example:5000"):
        read(tmp_path, {"NDANI_REGISTRY": text})


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("123", 123), ("8G", 8 << 30), ("8g", 8 << 30), ("8GiB", 8 << 30), ("512 MB", 512 << 20), ("1T", 1 << 40), ("7B", 7)],
)
def test_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert read(tmp_path, {"OLLAMA_MAX_VRAM": text}).max_memory == size


@pytest.mark.parametrize("text", ["-1", "8 X", "G", "1.5G", "8Gb/s", "8" * 16])
def test_a_size_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Misconfigured, match="a size is needed, in bytes or as 8G"):
        read(tmp_path, {"NDANI_MAX_MEMORY": text})
