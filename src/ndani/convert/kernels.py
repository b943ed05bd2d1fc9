"""llama.cpp's own arithmetic for weights, called in the shared object that the engine's wheel brings.

The wheel is found and not imported: no engine starts, and nothing of Python's runs in it. Only a worker's process loads
this, before its jail shuts. Which tensor gets which type is not decided here (`kinds`).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ndani.errors import Misconfigured
from ndani.store.gguf import TENSOR_TYPES

#: The number of a type in llama.cpp, by its name.
TYPE_NUMBERS = {name: number for number, name in TENSOR_TYPES.items()}
_ENDINGS = (".so", ".dylib", ".pyd", ".dll")
_WHEEL = "xllamacpp"
_MISSING = f"the engine {_WHEEL}, which also converts weights, is not installed or does not fit this system; install ndani again"

#: Turns numbers of one type into floats: address of the first, address of the floats, how many.
_ToFloat32 = Callable[[int, int, int], None]


class Kernels:
    """The functions, loaded. They may be called from several threads at once, and hold no lock of Python's meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._quantize = _function(library, "ggml_quantize_chunk", ctypes.c_size_t, "ippqqqp")
        self._valid = _function(library, "ggml_validate_row_data", ctypes.c_bool, "ipz")
        self._to_float32: dict[str, _ToFloat32] = {
            "F16": _function(library, "ggml_fp16_to_fp32_row", None, "ppq"),
            "BF16": _function(library, "ggml_bf16_to_fp32_row", None, "ppq"),
        }

    def to_float32(self, kind: str, source: int, target: int, count: int) -> None:
        """Make floats of `count` numbers of the type F16 or BF16; both places are addresses."""
        self._to_float32[kind](source, target, count)

    def require_finite(self, kind: str, source: int, size: int) -> None:
        """Raise ValueError when these bytes of numbers hold an infinity or no number: quantised, they would pass for some."""
        if not self._valid(TYPE_NUMBERS[kind], source, size):
            raise ValueError("it holds numbers that are not finite")

    def quantise(self, kind: str, source: int, target: int, rows: int, columns: int) -> int:
        """Make rows of a type of rows of floats; the bytes that were written. Both places are addresses.

        Raises ValueError when what came out is not finite: numbers too large for the type.
        """
        written = int(self._quantize(TYPE_NUMBERS[kind], source, target, 0, rows, columns, None))
        self.require_finite(kind, target, written)
        return written


def load() -> Kernels:
    """Load the wheel's shared object. Raises Misconfigured when it, or the system library that it links, is missing."""
    try:
        return Kernels(ctypes.CDLL(str(_shared_object())))
    except AttributeError:
        raise Misconfigured(f"this version of the engine {_WHEEL} has no functions to convert weights; install ndani again") from None
    except OSError as error:
        if "libgomp" in str(error):
            raise Misconfigured(
                "converting weights needs the system library libgomp.so.1, which is not installed; "
                "install it with `apt install libgomp1` or `dnf install libgomp`"
            ) from None
        raise Misconfigured(_MISSING) from None


def _shared_object() -> Path:
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob(f"{_WHEEL}*")):
            if path.suffix in _ENDINGS:
                return path
    raise Misconfigured(_MISSING)


def _function(library: ctypes.CDLL, name: str, result: Any, arguments: str) -> Callable[..., Any]:
    """A function with its types: i an int, q 64 bits, z a size, p an address."""
    types = {"i": ctypes.c_int, "q": ctypes.c_int64, "z": ctypes.c_size_t, "p": ctypes.c_void_p}
    found = getattr(library, name)
    found.restype, found.argtypes = result, [types[letter] for letter in arguments]
    return found  # type: ignore[no-any-return]
