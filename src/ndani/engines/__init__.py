"""Engines: each runs one loaded model. This file defines how a runner starts, the list of engines, and their features.

An engine has two sides. The *host* side (`host_*.py`) runs inside the runner, a jailed child process, and serves the runner
protocol on a Unix socket: `/completion` (SSE), `/apply-template`, `/tokenize`, `/detokenize` and, if it makes embeddings or ranks,
`/v1/embeddings` or `/v1/rerank`, as in llama.cpp's server. The *client* side (`client.py`) runs in the front and calls these routes.

To add an engine, copy `host_echo.py` and add an entry to `ENGINES` with its features. No other code decides anything by the name
of an engine, but some rules were written for llama.cpp: the fields of `/completion` (`sampling`, `client`), the bounds of a batch
(`runtime.spec`, `service.resolver`), the size of a context in memory, which is read from a GGUF header (`service.resolver`), and
how many tokens of a text a slot takes for an embedding (`service.embed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from ndani.errors import Misconfigured

_SOCKET_SUFFIX, _SUFFIX_WITHOUT_TEMPLATE = ".sock", "2.sock"


def socket_without_template(path: str) -> str:
    """The socket path on which a host serves weights whose own chat template it cannot read.

    The weights are loaded anyway: a model with its own TEMPLATE, or embeddings, do not need that template. It must be another path
    than that of the first try to load, because a jailed process cannot remove a socket that it has created.
    """
    return path.removesuffix(_SOCKET_SUFFIX) + _SUFFIX_WITHOUT_TEMPLATE


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What can be chosen of a runner before it starts. A change of any of these needs a new runner."""

    engine: str
    slots: int = 4  # how many requests run at the same time
    num_ctx: int = 4096  # tokens of context of each slot
    num_batch: int = 256  # prompt tokens between two checks whether the client is still connected
    num_thread: int = 1
    num_gpu: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    flash_attention: bool | None = None
    kv_cache_type: str = "f16"
    embedding: bool = False  # serve embeddings only
    pooling: str = ""  # how the vectors of a text's tokens are pooled: empty for the model's own method, `last`, or `rank`


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a host needs to start: the options, and what exists for this one process."""

    options: LaunchOptions
    socket: str  # a path of at most 107 bytes, new for each process
    weights: int = -1  # an inherited descriptor open for reading; -1 if the engine needs none
    adapter: int = -1  # a second descriptor, of a LoRA adapter for the weights; -1 if there is none
    projector: int = -1  # a third, of the file that makes tokens of images; -1 if there is none
    media_marker: str = ""  # stands in a prompt where an image belongs; only the front knows it, so nobody else can write it

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The inherited descriptors that there are."""
        return tuple(descriptor for descriptor in (self.weights, self.adapter, self.projector) if descriptor >= 0)


class Host(Protocol):
    """The side of an engine inside the runner. `prepare` and `open` are called on the main thread, in this order.

    `gpu`, set by `prepare`: the engine will use a GPU if there is one, so the jail leaves the GPU devices accessible.
    `without_template`, set by `open`: it serves on `socket_without_template` instead, without the weights' chat template.
    """

    gpu: bool
    without_template: bool

    def prepare(self, launch: Launch) -> None:
        """Import every library that the engine needs. Called before the jail is closed; must not start a thread.

        Raises Misconfigured with one sentence when a library is missing.
        """
        ...

    def open(self, launch: Launch) -> None:
        """Load the weights and serve on `launch.socket`; returns once it is ready. Called inside the jail.

        Raises LoadFailed with our own message, never with the engine's.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: how to create its host, and which of its features this version supports. Other requests are refused.

    `formats` are the weights formats that it runs, as written in models' configs. `features` are what a request may use besides
    text: names of `UNSUPPORTED_FEATURES` in `service.answers`. `chat_template`: it applies the chat template in the weights.
    `adapters` and `projectors`: it can load a LoRA adapter, or the projector of a vision model, with the weights. `reranking`: it
    serves models with a rank head. `max_token_id`: larger ids would be read as others.
    """

    name: str
    host: Callable[[], Host]
    formats: frozenset[str]
    features: frozenset[str] = frozenset()
    embeddings: bool = False
    reranking: bool = False
    chat_template: bool = False
    adapters: bool = False
    projectors: bool = False
    max_token_id: int = 2**31 - 1


# Hosts are imported when they are created, in the runner, so that no other process loads an engine's library.


def _llama() -> Host:
    from ndani.engines.host_llama import LlamaHost

    return LlamaHost()


def _echo() -> Host:
    from ndani.engines.host_echo import EchoHost

    return EchoHost()


_LLAMA = EngineSpec(
    "llama",
    _llama,
    frozenset({"gguf"}),
    frozenset({"thinking", "tools", "tool_calls", "format", "logprobs"}),
    embeddings=True,
    reranking=True,
    chat_template=True,
    adapters=True,
    projectors=True,
)
_ECHO = EngineSpec(
    "echo", _echo, frozenset({"echo"}), frozenset({"thinking", "tools", "tool_calls"}), chat_template=True, max_token_id=2**53
)

#: Every engine, by name.
ENGINES: Final[Mapping[str, EngineSpec]] = {spec.name: spec for spec in (_LLAMA, _ECHO)}


def host(engine: str) -> Host:
    """The host of an engine by name. Raises Misconfigured."""
    if engine not in ENGINES:
        raise Misconfigured(f"there is no engine {engine!r}")
    return ENGINES[engine].host()


def engine_for(weights_format: str) -> EngineSpec:
    """The engine for a weights format. Unknown formats go to llama.cpp, which reports what is wrong with them."""
    return next((spec for spec in ENGINES.values() if weights_format in spec.formats), _LLAMA)
