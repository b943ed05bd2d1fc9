"""Engines: each runs one loaded model. This is the room's door: what a runner is told, which engines there are, what each can.

An engine has two sides. The *host* side (`host_*.py`) runs inside the runner, a jailed child process, and serves
the runner protocol on a Unix socket: `/health`, `/completion` (SSE), `/v1/chat/completions` (SSE),
`/apply-template`, `/tokenize`, `/detokenize`, `/slots`, the useful subset of llama.cpp's server. The *client* side
(`client.py`) runs in the front and speaks that protocol. To add an engine, copy `host_echo.py`, and say in `ENGINES` what
it can: nothing else asks which engine it has before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from ndani.errors import Misconfigured

_FIRST, _BARE = ".sock", "2.sock"


def bare_socket(path: str) -> str:
    """Where a host serves weights without the chat template that they carry, for it cannot read that: told by the name alone.

    They are loaded all the same: who brings a template of his own, or wants vectors, needs none. It is not the socket of the
    first try to load, for what a jailed process has made it cannot remove.
    """
    return path.removesuffix(_FIRST) + _BARE


def is_bare(path: str) -> bool:
    """Whether a socket is a `bare_socket`: nobody can have conversations rendered there."""
    return path.endswith(_BARE)


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a runner is told when it starts. A change in any field but `socket` and the descriptors means another runner."""

    engine: str
    socket: str  # a path of at most 107 bytes, new for each spawn
    weights: int  # an inherited descriptor open for reading; -1 where the engine needs none
    adapter: int = -1  # one more, of a LoRA laid over the weights; -1 where there is none
    slots: int = 4  # answers at once
    num_ctx: int = 4096  # tokens of context of each slot
    num_batch: int = 256  # prompt tokens between two looks at whether the client is still there
    num_thread: int = 1
    num_gpu: int = -1
    main_gpu: int = 0
    use_mmap: bool | None = None
    flash_attention: bool | None = None
    kv_cache_type: str = "f16"
    embedding: bool = False  # vectors of texts, and nothing else
    pooling: str = ""  # of the vectors of a text's tokens: the model's own way, or `last`


class Host(Protocol):
    """The side of an engine that lives in the runner. Both calls happen on the main thread, in this order.

    `gpu`, set by `prepare`, says whether the engine will compute on a GPU where there is one: the jail then leaves its
    devices open. `bare`, set by `open`, says that it serves on `bare_socket` instead, without the weights' chat template.
    """

    gpu: bool
    bare: bool

    def prepare(self, launch: Launch) -> None:
        """Import every library the engine needs. Called before the jail shuts; must start no thread.

        Raises Misconfigured with one sentence when a library is missing.
        """
        ...

    def open(self, launch: Launch) -> None:
        """Load the weights and serve on `launch.socket`; returns once it answers. Called inside the jail.

        Raises LoadFailed with one sentence of ours; never with the engine's own words.
        """
        ...


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine: how its host is made, and what of it this version serves. Requests are refused by what stands here.

    `formats` are the forms of weights that it runs, as models' configs write them. `serves` is what a request may ask of it
    beyond text, in the words of `ChatRequest.features`. `chat_template`: it applies the chat template that the weights carry.
    `adapters` and `projectors`: it takes weights with a LoRA over them, or with eyes beside them.
    """

    name: str
    host: Callable[[], Host]
    formats: frozenset[str]
    serves: frozenset[str] = frozenset()
    embeddings: bool = False
    chat_template: bool = False
    adapters: bool = False
    projectors: bool = False


# Hosts are imported where they are made, in the runner: only who needs a library loads it.


def _llama() -> Host:
    from ndani.engines.host_llama import LlamaHost

    return LlamaHost()


def _echo() -> Host:
    from ndani.engines.host_echo import EchoHost

    return EchoHost()


_LLAMA = EngineSpec("llama", _llama, frozenset({"gguf"}), embeddings=True, chat_template=True, adapters=True)
_ECHO = EngineSpec("echo", _echo, frozenset({"echo"}), chat_template=True, adapters=True)

#: Every engine, by name.
ENGINES: Final[Mapping[str, EngineSpec]] = {spec.name: spec for spec in (_LLAMA, _ECHO)}


def host(engine: str) -> Host:
    """The host of an engine by name. Raises Misconfigured."""
    if engine not in ENGINES:
        raise Misconfigured(f"there is no engine {engine!r}")
    return ENGINES[engine].host()


def running(form: str) -> EngineSpec:
    """The engine that runs weights of a form; llama.cpp's says itself what is wrong with one that nobody knows."""
    return next((spec for spec in ENGINES.values() if form in spec.formats), _LLAMA)
