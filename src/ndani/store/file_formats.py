"""Detects the format of a weights file from its first bytes, with one short read.

File names mislead: a GGUF file may be called `ggml-model-q4_0.bin`, and a file called `.gguf` may be a web page or a git LFS
pointer.
"""

from __future__ import annotations

import os
import struct

from ndani.errors import BadRequest, Unsupported

GGUF, SAFETENSORS, PYTORCH, GGML, LFS_POINTER = "GGUF", "safetensors", "PyTorch", "GGML", "git-lfs"

#: Bytes that are read.
_PREFIX_LENGTH = 64
_MAGIC = {
    b"GGUF": GGUF,
    b"PK\x03\x04": PYTORCH,
    b"version https://git-lfs": LFS_POINTER,
    **dict.fromkeys((b"lmgg", b"fmgg", b"tjgg", b"algg"), GGML),
    **{b"\x80" + bytes([protocol]): PYTORCH for protocol in range(2, 6)},  # a bare pickle, as it was saved before
}
_CONVERT_ADVICE = "in this version; convert it to GGUF and give that file"


def detect_format(descriptor: int) -> str:
    """The format of an open file: one of the constants above, or an empty text if it is unknown. Raises OSError."""
    prefix = os.pread(descriptor, _PREFIX_LENGTH, 0)
    for magic, form in _MAGIC.items():
        if prefix.startswith(magic):
            return form
    if len(prefix) < 10:
        return ""
    length = struct.unpack("<Q", prefix[:8])[0]  # of a safetensors file's header, which is a JSON object
    return SAFETENSORS if 2 <= length <= os.fstat(descriptor).st_size - 8 and prefix[8:9] == b"{" else ""


def wrong_format(path: str, form: str, adapter: bool = False) -> BadRequest:
    """The error about a file that is not GGUF where GGUF is needed; `path` is the client's name for it."""
    if form == LFS_POINTER:
        return BadRequest(f"{path} is git's stand-in for the file and not the file itself; fetch it with `git lfs pull`")
    if form == GGML:
        return Unsupported(f"{path} is a GGML file, the form before GGUF, which nothing reads any more; get a GGUF file of this model")
    if form in (SAFETENSORS, PYTORCH) and adapter:
        return Unsupported(f"only a GGUF file can be an adapter {_CONVERT_ADVICE} ({path} is a {form} file)")
    if form == PYTORCH:
        supported = "only safetensors and GGUF files can be made into models in this version"
        return Unsupported(f"{supported}; save the weights as one of them ({path} is a {form} file)")
    return BadRequest(f"supplied file was not in GGUF format: {path}")
