"""llama.cpp's own conversion functions for weights, called in the shared library that the engine's wheel contains.

The wheel is located but not imported: no engine starts, and none of its Python code runs. Only a worker process loads the
library, before it enters the jail. `quant_types` decides which tensor gets which type.
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
_LIBRARY_SUFFIXES = (".so", ".dylib", ".pyd", ".dll")
_WHEEL = "xllamacpp"
_MISSING = f"the engine {_WHEEL}, which also converts weights, is not installed or does not fit this system; install ndani again"

#: Converts values of one type to floats: the address of the values, the address of the floats, the count.
_ToFloat32 = Callable[[int, int, int], None]


class Kernels:
    """The loaded functions. Several threads may call them at once; ctypes releases the GIL meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._quantize = _function(library, "ggml_quantize_chunk", ctypes.c_size_t, "ippqqqp")
        self._valid = _function(library, "ggml_validate_row_data", ctypes.c_bool, "ipz")
        self._to_float32: dict[str, _ToFloat32] = {
            "F16": _function(library, "ggml_fp16_to_fp32_row", None, "ppq"),
            "BF16": _function(library, "ggml_bf16_to_fp32_row", None, "ppq"),
        }

    def to_float32(self, kind: str, source: int, target: int, count: int) -> None:
        """Convert `count` values of the type F16 or BF16 to floats. `source` and `target` are addresses."""
        self._to_float32[kind](source, target, count)

    def require_finite(self, kind: str, source: int, size: int) -> None:
        """Raise ValueError when these values include an infinity or NaN, which quantisation would turn into ordinary numbers."""
        if not self._valid(TYPE_NUMBERS[kind], source, size):
            raise ValueError("it holds numbers that are not finite")

    def quantise(self, kind: str, source: int, target: int, rows: int, columns: int) -> int:
        """Quantise rows of floats; returns how many bytes were written. `source` and `target` are addresses.

        Raises ValueError when the result is not finite, because values are too large for the type.
        """
        written = int(self._quantize(TYPE_NUMBERS[kind], source, target, 0, rows, columns, None))
        self.require_finite(kind, target, written)
        return written


def load() -> Kernels:
    """Load the wheel's shared library. Raises Misconfigured when it, or a system library that it needs, is missing."""
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
            if path.suffix in _LIBRARY_SUFFIXES:
                return path
    raise Misconfigured(_MISSING)


def _function(library: ctypes.CDLL, name: str, result: Any, arguments: str) -> Callable[..., Any]:
    """A function with its argument types: i an int, q 64 bits, z a size, p an address."""
    types = {"i": ctypes.c_int, "q": ctypes.c_int64, "z": ctypes.c_size_t, "p": ctypes.c_void_p}
    function = getattr(library, name)
    function.restype, function.argtypes = result, [types[letter] for letter in arguments]
    return function  # type: ignore[no-any-return]
