"""The llama.cpp engine's side inside the runner: xllamacpp's C++ server on a Unix socket.

No Python runs here per token: once `open` returns, llama.cpp's own threads serve. What lives here is only how that
server is started, and each line below that looks odd closes a hole that was found by trying (DESIGN, "Traps of the
engine wheel"; the numbers are its numbers).
"""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

from ndani.engines import Launch, bare_socket
from ndani.errors import LoadFailed, Misconfigured

#: HTTP threads beyond one per slot: health, slots, tokenize and a hung-up client's last read (trap 3).
SPARE_HTTP_THREADS = 6

_BROKEN = "the engine could not load this model: the file is damaged, of a kind it does not know, or memory is short"
_BROKEN_WITH_ADAPTER = (
    "the engine could not load this model with its adapter: the adapter was made for another model, a file is damaged "
    "or of a kind it does not know, or memory is short"
)

_CACHE_TYPES = {
    "f32": "F32",
    "f16": "F16",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
    "q4_1": "Q4_1",
    "iq4_nl": "IQ4_NL",
    "q5_0": "Q5_0",
    "q5_1": "Q5_1",
}


#: In place of the chat template that the weights carry, where that cannot be read or nobody needs it.
_NO_TEMPLATE = "none"

#: How the library names each backend that it was built with, in front of what that can do: `CPU : AVX2 = 1 | …`
_BACKEND = re.compile(r"(?:\A|\| )(\w+) : ")


class LlamaHost:
    """llama.cpp, as xllamacpp carries it."""

    def __init__(self) -> None:
        self.gpu = self.bare = False
        self._library: Any = None
        self._server: Any = None  # dropping it would stop the server

    def prepare(self, launch: Launch) -> None:
        """Import the wheel. Raises Misconfigured when it, or the one system library it links, is missing (trap 5)."""
        if sys.platform == "linux":
            try:
                ctypes.CDLL("libgomp.so.1")
            except OSError:
                raise Misconfigured(
                    "the engine needs the system library libgomp.so.1, which is not installed; "
                    "install it with `apt install libgomp1` or `dnf install libgomp`"
                ) from None
        try:
            import xllamacpp
        except ImportError:
            raise Misconfigured("the engine xllamacpp is not installed or does not fit this system; install ndani again") from None
        self._library = xllamacpp
        self.gpu = launch.num_gpu != 0 and set(_BACKEND.findall(xllamacpp.get_system_info())) > {"CPU"}

    def open(self, launch: Launch) -> None:
        """Load and serve. The constructor returns when the model answers, and raises one wordless error when it cannot.

        A chat template that it cannot read is among the reasons, so it is tried once more with one that nobody will use.
        """
        if len(bare_socket(launch.socket).encode()) > 107 or Path(launch.socket).exists():  # trap 7: else only "Failed to init server"
            raise LoadFailed("the runner's socket path is too long or already there; set TMPDIR to a shorter folder")
        parameters = self._parameters(launch)
        for template in (_NO_TEMPLATE,) if launch.embedding else ("", _NO_TEMPLATE):
            parameters.chat_template = template  # empty: the weights' own
            try:
                self._server = self._library.Server(parameters)
                return
            except RuntimeError:  # its words are left out on purpose: they can quote what was given (trap 8)
                self.bare, parameters.hostnames = True, [bare_socket(launch.socket)]
        raise LoadFailed(_BROKEN if launch.adapter < 0 else _BROKEN_WITH_ADAPTER)

    def _parameters(self, launch: Launch) -> Any:
        lib = self._library
        p = lib.CommonParams()
        p.model.path = f"/proc/self/fd/{launch.weights}"
        if launch.adapter >= 0:
            lora = lib.CommonAdapterLoraInfo()
            lora.path, lora.scale = f"/proc/self/fd/{launch.adapter}", 1.0
            p.lora_adapters = [lora]
        p.hostnames = [launch.socket]
        p.n_parallel = launch.slots
        p.n_ctx = launch.slots * launch.num_ctx  # it divides n_ctx by its slots (trap 10)
        p.n_batch = p.n_ubatch = launch.num_batch  # between two batches it looks whether the client left (trap 1)
        p.cache_ram_mib = 0  # else every distinct prompt stays in memory, shared between whoever asks (trap 2)
        p.n_threads_http = launch.slots + SPARE_HTTP_THREADS  # trap 3
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = launch.num_thread
        p.n_gpu_layers = launch.num_gpu
        p.main_gpu = launch.main_gpu
        p.cache_type_k = p.cache_type_v = _value(lib.ggml_type, f"GGML_TYPE_{_CACHE_TYPES[launch.kv_cache_type]}")
        p.flash_attn_type = lib.llama_flash_attn_type({None: -1, False: 0, True: 1}[launch.flash_attention])
        p.load_mode = lib.llama_load_mode({None: -1, False: 0, True: 1}[launch.use_mmap])
        p.embedding = launch.embedding  # the routes for it exist only then (trap 6)
        if launch.pooling:
            p.pooling_type = _value(lib.llama_pooling_type, f"LLAMA_POOLING_TYPE_{launch.pooling.upper()}")
        p.ctx_shift = not launch.embedding  # a long answer goes on past the context's end, as in Ollama
        p.fit_params = False  # what fits was decided in the front, with reasons
        p.warmup = False  # the first request warms it; loading is 1 s faster
        p.verbosity = -1  # trap 8
        p.endpoint_slots = True
        p.endpoint_props = p.endpoint_metrics = p.ui = False
        return p


def _value(kind: Any, name: str) -> Any:
    return getattr(kind, name)
