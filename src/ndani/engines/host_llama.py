"""The llama.cpp engine's side inside the runner: xllamacpp's C++ server on a Unix socket.

No Python code runs per token: once `open` returns, llama.cpp's own threads serve. This file only starts that server. Each line
below that looks odd avoids a problem that was found by experiment, and says which.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import Any

from ndani.engines import Launch, socket_without_template
from ndani.errors import LoadFailed, Misconfigured

#: HTTP threads in addition to one per slot, for short requests and the last read of a disconnected client. The server has few
#: by default: with four slots, ten open streams left `/health` unanswered.
SPARE_HTTP_THREADS = 6

_LOAD_FAILED = "the engine could not load this model: the file is damaged, of a kind it does not know, or memory is short"
_LOAD_FAILED_WITH_MORE = (
    "the engine could not load this model with its {0}: the {0} was made for another model, a file is damaged "
    "or of a kind it does not know, or memory is short"
)

#: The variable from which the library takes the text that stands for an image in a prompt, once, before it loads a model.
_MEDIA_MARKER = "LLAMA_MEDIA_MARKER"

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


#: Used instead of the chat template in the weights when the engine cannot read that or it is not needed.
_PLACEHOLDER_TEMPLATE = "none"

#: Matches the name of each backend in the library's system info, before its features: `CPU : AVX2 = 1 | …`
_BACKEND_NAME = re.compile(r"(?:\A|\| )(\w+) : ")


class LlamaHost:
    """llama.cpp, as packaged by xllamacpp."""

    def __init__(self) -> None:
        self.gpu = self.without_template = False
        self._library: Any = None
        self._server: Any = None  # if it were garbage-collected, the server would stop

    def prepare(self, launch: Launch) -> None:
        """Import the wheel. Raises Misconfigured when it, or the system library that it links to, is missing."""
        if sys.platform == "linux":  # the wheel does not bring this library, and a bare machine lacks it
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
        self.gpu = launch.options.num_gpu != 0 and set(_BACKEND_NAME.findall(xllamacpp.get_system_info())) > {"CPU"}

    def open(self, launch: Launch) -> None:
        """Load and serve. The server's constructor returns when the model is ready, and raises an error without details when it fails.

        An unreadable chat template is one of the possible reasons, so a second try uses a placeholder template.
        """
        # Otherwise the only error is "Failed to init server".
        if len(socket_without_template(launch.socket).encode()) > 107 or Path(launch.socket).exists():
            raise LoadFailed("the runner's socket path is too long or already there; set TMPDIR to a shorter folder")
        if launch.projector >= 0:
            os.environ[_MEDIA_MARKER] = launch.media_marker
        parameters = self._parameters(launch)
        for template in (_PLACEHOLDER_TEMPLATE,) if launch.options.embedding else ("", _PLACEHOLDER_TEMPLATE):
            parameters.chat_template = template  # empty: the template in the weights
            try:
                self._server = self._library.Server(parameters)
                return
            except RuntimeError:  # its message is dropped on purpose: it can quote the input
                self.without_template, parameters.hostnames = True, [socket_without_template(launch.socket)]
        others = " or ".join(name for name in ("adapter", "projector") if getattr(launch, name) >= 0)
        raise LoadFailed(_LOAD_FAILED_WITH_MORE.format(others) if others else _LOAD_FAILED)

    def _parameters(self, launch: Launch) -> Any:
        lib, options = self._library, launch.options
        p = lib.CommonParams()
        p.model.path = f"/proc/self/fd/{launch.weights}"
        if launch.projector >= 0:
            p.mmproj.path, p.mmproj_use_gpu = f"/proc/self/fd/{launch.projector}", options.num_gpu != 0
        if launch.adapter >= 0:
            lora = lib.CommonAdapterLoraInfo()
            lora.path, lora.scale = f"/proc/self/fd/{launch.adapter}", 1.0
            p.lora_adapters = [lora]
        p.hostnames = [launch.socket]
        p.n_parallel = options.slots
        p.n_ctx = options.slots * options.num_ctx  # it divides n_ctx by its slots
        p.n_batch = p.n_ubatch = options.num_batch  # it checks between batches whether the client has disconnected
        p.cache_ram_mib = 0  # otherwise every distinct prompt stays in memory, shared between all clients
        p.n_threads_http = options.slots + SPARE_HTTP_THREADS
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = options.num_thread
        p.n_gpu_layers = options.num_gpu
        p.main_gpu = options.main_gpu
        p.cache_type_k = p.cache_type_v = _enum_value(lib.ggml_type, f"GGML_TYPE_{_CACHE_TYPES[options.kv_cache_type]}")
        p.flash_attn_type = lib.llama_flash_attn_type({None: -1, False: 0, True: 1}[options.flash_attention])
        p.load_mode = lib.llama_load_mode({None: -1, False: 0, True: 1}[options.use_mmap])
        p.embedding = options.embedding  # the routes for embeddings exist only with it
        if options.pooling:
            p.pooling_type = _enum_value(lib.llama_pooling_type, f"LLAMA_POOLING_TYPE_{options.pooling.upper()}")
        p.ctx_shift = not options.embedding  # a long answer continues beyond the end of the context, as in Ollama
        p.fit_params = False  # the front has already decided what fits, and logged why
        p.warmup = False  # the first request warms it; loading is 1 s faster
        p.verbosity = -1  # its messages on stderr quote prompts
        p.endpoint_slots = True
        p.endpoint_props = p.endpoint_metrics = p.ui = False
        return p


def _enum_value(enum: Any, name: str) -> Any:
    return getattr(enum, name)
