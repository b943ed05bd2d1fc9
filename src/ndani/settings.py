"""Every setting: its names, its type, its default, what it means, and where its value came from.

Flag over environment over file over default; in the environment `NDANI_X` over `OLLAMA_X`. Read once, frozen,
passed down. To add one: a field in `Settings`, with `_setting(...)`; `ndani config show`, the file and the
docs' table follow from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ndani.durations import parse_duration
from ndani.errors import BadRequest, Misconfigured
from ndani.names import DEFAULT_HOST

#: Ollama's variables that have no effect here, with what they would control. A warning is better than silence.
UNSUPPORTED_VARIABLES = {
    "OLLAMA_SCHED_SPREAD": "spreading a model over GPUs",
    "OLLAMA_IGPU_ENABLE": "integrated GPUs",
    "OLLAMA_GPU_OVERHEAD": "GPU memory reserves",
    "OLLAMA_LLM_LIBRARY": "choosing llama.cpp's library",
    "OLLAMA_VULKAN": "Vulkan",
    "OLLAMA_GO_TEMPLATE": "Go templates",
    "OLLAMA_REMOTES": "remote models",
    "OLLAMA_AUTH": "signed requests",
    "OLLAMA_EXPERIMENT": "Ollama's experiments",
    "OLLAMA_CLOUD_BASE_URL": "Ollama's cloud",
    "OLLAMA_DEBUG_LOG_REQUESTS": "writing requests to disk, which ndani never does",
}


_HOST_NAME, _DIGITS, _PRINTABLE = re.compile(r"\w[\w-]{0,62}(?:\.\w[\w-]{0,62})*\.?"), re.compile("[0-9]{0,5}"), re.compile("[!-~]*")
_TRUE_WORDS, _FALSE_WORDS = {"1", "t", "true", "yes", "on"}, {"", "0", "f", "false", "no", "off"}


def _text(value: str) -> str:
    return value


def _flag(value: str) -> bool:
    # As in Ollama: a value that is not a boolean at all counts as true.
    return value.lower() not in _FALSE_WORDS


def _seconds(value: str) -> float:
    return parse_duration(value)


def _non_negative_seconds(value: str) -> float:
    if (seconds := parse_duration(value)) < 0:
        raise ValueError("a duration of 0 or more is needed, such as 10m (0: off)")
    return seconds


def expand(value: str) -> Path:
    """A path as a user writes it, with `~`. Raises BadRequest for a NUL in it, or for the home of an unknown user."""
    if "\0" in value:  # a settings file can write one
        raise BadRequest("a path holds no NUL")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise BadRequest(f"the path {value[:80]} begins with the home of somebody who is not here") from None


def _list(value: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _folders(value: str) -> tuple[str, ...]:
    return tuple(item for item in _list(value) if expand(item))


def _registry_host(value: str) -> str:
    scheme, _, host = value.rstrip("/").rpartition("://")
    match = re.fullmatch(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", host)
    if scheme not in ("", "http", "https") or not match or not 0 < int(match[1] or 1) < 1 << 16:
        raise ValueError("a registry's host is needed, as in registry.example:5000 or http://127.0.0.1:11435")
    return value.rstrip("/")


def _size(value: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})\s*(?:([KMGT])i?)?B?", value, re.IGNORECASE)
    if not match:
        raise ValueError("a size is needed, in bytes or as 8G (0: no limit)")
    return int(match[1]) << 10 * (" KMGT".index(match[2].upper()) if match[2] else 0)


def _cache_type(value: str) -> str:
    kinds = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
    if value.lower() not in kinds:
        raise ValueError(f"one of {', '.join(kinds)}")
    return value.lower()


def _count(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """A parser for integers in a range; `maximum` None: no upper bound."""
    requirement = (
        f"a whole number of {minimum} or more is needed" if maximum is None else f"a whole number from {minimum} to {maximum} is needed"
    )

    def read(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", value) or int(value) < minimum or (maximum is not None and int(value) > maximum):
            raise ValueError(requirement)
        return int(value)

    return read


def _setting(default: Any, read: Callable[[str], Any], doc: str, ollama: str | tuple[str, ...] = (), *, terminal: bool = False) -> Any:
    """A field of `Settings`. `terminal` settings only affect the command line, and are not flags of the server."""
    names = (ollama,) if isinstance(ollama, str) else ollama
    metadata = {"read": read, "doc": doc, "ollama": names, "terminal": terminal}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def home() -> Path:
    """The folder for this user's models, settings, logs and key."""
    try:
        return Path(os.environ.get("HOME") or "~").expanduser() / ".ndani"
    except RuntimeError:  # a user without a home, as in some containers
        return Path("/.ndani")


def make_home() -> None:
    """Create that folder with access for this user only, since models below it may hold conversations. An existing one is kept as it is."""
    with contextlib.suppress(OSError):  # whatever needs the folder reports the error
        home().mkdir(mode=0o700, parents=True, exist_ok=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one process. `value_sources` has for each field where its value came from: a variable, a file, "flag", "default"."""

    host: str = _setting("127.0.0.1:11434", _text, "address the server listens on, and clients call", "OLLAMA_HOST")
    models: Path = _setting(lambda: home() / "models", expand, "folder of the model store", "OLLAMA_MODELS")
    origins: tuple[str, ...] = _setting((), _list, "further web origins that may call (comma list, * as wildcard)", "OLLAMA_ORIGINS")
    keep_alive: float = _setting(
        300.0, _seconds, "how long a model stays loaded after its last answer (negative: for ever)", "OLLAMA_KEEP_ALIVE"
    )
    load_timeout: float = _setting(300.0, _seconds, "how long a model may take to load (0 or less: no limit)", "OLLAMA_LOAD_TIMEOUT")
    num_parallel: int = _setting(
        0, _count(0, 256), "answers a model gives at once (0: four, fewer where memory is short)", "OLLAMA_NUM_PARALLEL"
    )
    max_loaded_models: int = _setting(0, _count(0), "models in memory at once (0: three)", "OLLAMA_MAX_LOADED_MODELS")
    max_memory: int = _setting(
        0, _size, "memory that all models in memory may take, as 8G (0: what the machine has free)", "OLLAMA_MAX_VRAM"
    )
    max_queue: int = _setting(512, _count(0), "requests that may wait for their turn", "OLLAMA_MAX_QUEUE")
    context_length: int = _setting(0, _count(0, 2**31 - 1), "context length where nobody says one (0: 4096)", "OLLAMA_CONTEXT_LENGTH")
    flash_attention: bool | None = _setting(None, _flag, "flash attention in the engine (unset: where it helps)", "OLLAMA_FLASH_ATTENTION")
    kv_cache_type: str = _setting("f16", _cache_type, "type of the key/value cache", "OLLAMA_KV_CACHE_TYPE")
    num_thread: int = _setting(0, _count(0, 512), "threads an engine computes with (0: one per physical core)", "OLLAMA_NUM_THREAD")
    num_gpu: int = _setting(-1, _count(-1, 2**31 - 1), "layers given to a GPU (-1: all that fit)", ("OLLAMA_NUM_GPU", "OLLAMA_GPU_LAYERS"))
    debug: int = _setting(
        0, lambda v: int(v) if v.isdecimal() else int(_flag(v)), "1: more log lines (never a prompt or an answer)", "OLLAMA_DEBUG"
    )
    noprune: bool = _setting(False, _flag, "keep unused blobs when the server starts", "OLLAMA_NOPRUNE")
    max_transfer_streams: int = _setting(4, _count(1), "pieces of a file that a pull fetches at once", "OLLAMA_MAX_TRANSFER_STREAMS")
    nohistory: bool = _setting(False, _flag, "do not write what is typed at the prompt to a file", "OLLAMA_NOHISTORY", terminal=True)
    editor: str = _setting("", _text, "editor that Ctrl-G opens at the prompt (empty: VISUAL, EDITOR, vi)", "OLLAMA_EDITOR", terminal=True)
    no_cloud: bool = _setting(True, _flag, "no cloud models; ndani has none, so only true is possible", "OLLAMA_NO_CLOUD")
    offline: bool = _setting(False, _flag, "refuse everything that would dial out")
    registry: str = _setting(DEFAULT_HOST, _registry_host, "registry that names without a host belong to (http://…: without TLS)")
    sources: tuple[str, ...] = _setting((), _folders, "folders to look for models in before anything is asked (comma list)")
    require_jail: bool = _setting(False, _flag, "refuse to run a model where the system cannot confine it")
    max_body: int = _setting(256 * 2**20, _count(1), "largest request body, in bytes")
    idle_exit: float = _setting(0.0, _non_negative_seconds, "stop the server after this long without a request (0: never)")
    allow_shutdown: bool = _setting(False, _flag, "let a program on this machine stop the server with POST /shutdown")
    responses_ttl: float = _setting(
        3600.0,
        _non_negative_seconds,
        "how long a response or conversation of /v1 is kept in memory after its last use (0: nothing is kept)",
    )
    foundry_errors: bool = _setting(False, _flag, "errors of /v1/chat/completions as Foundry Local's service has them, not as Ollama")
    log_file: str = _setting("", lambda v: str(expand(v)), "file for log lines (empty: stderr)")
    value_sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `host`, as Ollama reads it: a scheme implies its default port, and a path is ignored."""
        text = self.host.strip()
        scheme, _, location = text.rpartition("://")
        authority, _, path = location.partition("/")
        try:
            port = {"": 11434, "http": 80, "https": 443}[scheme.lower()]
            host, digits = _split_host_and_port(authority)
            if not (_DIGITS.fullmatch(digits) and int(digits or port) <= 65535 and _PRINTABLE.fullmatch(path)):
                raise ValueError
        except (LookupError, ValueError):
            raise Misconfigured(f"{self.host!r} is not an address to listen on; write it as 127.0.0.1:11434") from None
        return host or "127.0.0.1", int(digits or port)

    @property
    def client_address(self) -> tuple[str, int]:
        """Host and port that a client on this machine connects to: loopback in place of a wildcard address."""
        host, port = self.address
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104

    @property
    def url(self) -> str:
        """The base URL for a client on this machine."""
        host, port = self.client_address
        scheme = "https" if self.host.strip().lower().startswith("https://") else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _split_host_and_port(authority: str) -> tuple[str, str]:
    """Host and port digits of HOST, HOST:PORT, [IPv6]:PORT or a bare IPv6 address. Raises ValueError for an invalid host."""
    if not authority.startswith("[") and authority.count(":") < 2:
        host, _, digits = authority.partition(":")
        if host and (len(host) > 253 or not _HOST_NAME.fullmatch(host)):
            raise ValueError
        if not host.isascii():
            host.encode("idna")  # the resolver will do the same, and would fail later
        return host, digits
    import ipaddress

    host, closed, tail = authority[1:].partition("]") if authority.startswith("[") else (authority, "]", "")
    if not closed or tail[:1] not in ("", ":") or not _PRINTABLE.fullmatch(host):
        raise ValueError
    ipaddress.IPv6Address(host)
    return host, tail[1:]


def variables_of(setting: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Environment variables of one setting, by precedence."""
    return (f"NDANI_{setting.name.upper()}", *setting.metadata.get("ollama", ()))


def fields() -> list[dataclasses.Field[Any]]:
    """The fields of all settings, in the order of documentation."""
    return [f for f in dataclasses.fields(Settings) if "read" in f.metadata]


def server_fields() -> list[dataclasses.Field[Any]]:
    """The fields of the settings that affect a server."""
    return [f for f in fields() if not f.metadata["terminal"]]


def load(environ: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None, file: Path | None = None) -> Settings:
    """Read every setting once. Raises Misconfigured with the variable, its value and what would be valid."""
    environ = os.environ if environ is None else environ
    path = file or _config(environ)
    from_file = _from_file(path)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in fields():
        name, value, origin = setting.name, None, "default"
        if flags and flags.get(name) is not None:
            value, origin = flags[name], "flag"
        elif (variable_and_text := _from_environment(setting, environ)) is not None:
            variable, text = variable_and_text
            value, origin = _read(setting, text, variable), variable
        elif name in from_file:
            value, origin = _read(setting, _as_text(from_file[name]), f"{name} in {path}"), str(path)
        if origin != "default":
            values[name] = value
        sources[name] = origin
    if values.get("no_cloud") is False:
        raise Misconfigured("OLLAMA_NO_CLOUD=0 cannot be honoured: ndani has no cloud models; unset it")
    if values.get("flash_attention") is False and values.get("kv_cache_type", "f16") not in ("f32", "f16", "bf16"):
        raise Misconfigured(f"a key/value cache of {values['kv_cache_type']} needs flash attention; unset OLLAMA_FLASH_ATTENTION")
    return Settings(**values, value_sources=sources)


def parse_flag(setting: dataclasses.Field[Any], text: str) -> Any:
    """The value of one of the server's flags; None for an empty one, which counts as unset, as in the environment. Raises Misconfigured."""
    text, flag = text.strip(), f"--{setting.name.replace('_', '-')}"
    if not text:
        return None
    # In the environment any other word counts as true, as in Ollama; our own flags are stricter.
    if setting.metadata["read"] is _flag and text.lower() not in _TRUE_WORDS | _FALSE_WORDS:
        raise Misconfigured(f"{flag} is {text!r}: true or false is needed")
    return _read(setting, text, flag)


def unsupported_variable_warnings(environ: Mapping[str, str] | None = None) -> list[str]:
    """A warning for each variable that is set and has no effect here."""
    environ = os.environ if environ is None else environ
    return [
        f"{name} is set, but has no effect: {what} is not in this version"
        for name, what in UNSUPPORTED_VARIABLES.items()
        if environ.get(name)
    ]


def _config(environ: Mapping[str, str]) -> Path:
    try:
        return expand(environ.get("NDANI_CONFIG") or str(home() / "config.toml"))
    except BadRequest as error:
        raise Misconfigured(f"NDANI_CONFIG cannot be used: {error}") from None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        import tomllib  # imported here: most users have no such file, and the import would slow down every command

        from_file = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):  # the home of a service's user may be /dev/null
        return {}
    except (OSError, ValueError) as error:
        reason = "it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        raise Misconfigured(f"the settings file {path} cannot be read: {reason}") from None
    unknown = sorted(set(from_file) - {f.name for f in fields()})
    if unknown:
        raise Misconfigured(f"the settings file {path} has an unknown setting {unknown[0]!r}; `ndani config show` lists them all")
    return from_file


def _from_environment(setting: dataclasses.Field[Any], environ: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in variables_of(setting):
        text = environ.get(variable, "").strip().strip("'\"").strip()
        if text:
            return variable, text
    return None


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(str(item) for item in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read(setting: dataclasses.Field[Any], text: str, origin: str) -> Any:
    try:
        return setting.metadata["read"](text)
    except (ValueError, BadRequest) as error:
        requirement = "a duration such as 5m is needed" if setting.metadata["read"] is _seconds else str(error)
        raise Misconfigured(f"{origin} is {text!r}: {requirement}") from None
