"""One GGUF file out of its shards (`…-00001-of-0000N.gguf`), as llama.cpp's `gguf-split --merge` makes it.

The key/values are the first shard's, without those that count shards; the tensors' descriptions are strung together,
their places counted anew, and their bytes copied as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PIECE = 16 << 20
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass
class _Tensor:
    head: bytes  # name, dimensions and type, as they are written
    at: int  # in the data of its shard
    size: int = 0


@dataclass
class _Shard:
    path: Path
    version: int
    keys: dict[str, bytes]  # by name: the whole entry as it is written
    tensors: list[_Tensor]
    data: int  # where the data begins
    alignment: int


class _Head:
    """A place in the head of a shard. Slices past the end raise struct.error."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at = content, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def text(self) -> str:
        size = self.take("<Q")
        self.skip(size)
        return bytes(self.content[self.at - size : self.at]).decode("utf-8", "replace")

    def skip(self, size: int) -> None:
        if size > len(self.content) - self.at:
            raise struct.error("too short")
        self.at += size

    def pass_value(self, kind: int) -> None:
        if kind == _STRING:
            self.skip(self.take("<Q"))
        elif kind == _ARRAY:
            inner, count = self.take("<I"), self.take("<Q")
            if inner in _SCALARS:
                self.skip(count * _SCALARS[inner])
            else:
                for _ in range(count):
                    self.pass_value(inner)
        elif kind in _SCALARS:
            self.skip(_SCALARS[kind])
        else:
            raise ValueError(f"a value of the unknown kind {kind}")


def join(paths: Sequence[Path], out: Path) -> Iterator[int]:
    """Write the shards at `paths`, in order, as one file `out`; the bytes written so far, step by step.

    Raises ValueError when they are no shards of one model, OSError.
    """
    shards = [_read(path) for path in paths]
    for number, shard in enumerate(shards):
        said = [_number(shard, f"split.{key}") for key in ("no", "count")]
        if said != [number, len(shards)]:
            raise ValueError(f"part {number + 1} of {len(shards)} says that it is part {(said[0] or 0) + 1} of {said[1]}")
    first = shards[0]
    keys = {name: entry for name, entry in first.keys.items() if not name.startswith("split.")}
    tensors = [tensor for shard in shards for tensor in shard.tensors]
    if (count := _number(first, "split.tensors.count")) not in (None, len(tensors)):
        raise ValueError(f"{count} tensors were promised, and {len(tensors)} are there")
    head = bytearray(b"GGUF" + struct.pack("<IQQ", first.version, len(tensors), len(keys)) + b"".join(keys.values()))
    at = 0
    for tensor in tensors:
        head += tensor.head + struct.pack("<Q", at)
        at += _padded(tensor.size, first.alignment)
    head += bytes(_padded(len(head), first.alignment) - len(head))
    with out.open("wb") as file:
        file.write(head)
        done = len(head)
        for shard in shards:
            with shard.path.open("rb") as source:
                for tensor in shard.tensors:
                    source.seek(shard.data + tensor.at)
                    left = tensor.size
                    while left:
                        piece = source.read(min(left, _PIECE))
                        if not piece:
                            raise ValueError(f"{shard.path.name} ends too early")
                        file.write(piece)
                        left -= len(piece)
                        done += len(piece)
                        yield done
                    padding = _padded(tensor.size, first.alignment) - tensor.size
                    file.write(bytes(padding))
                    done += padding


def _read(path: Path) -> _Shard:
    size = path.stat().st_size
    with path.open("rb") as file:
        window = 1 << 20
        while True:
            file.seek(0)
            content = memoryview(file.read(window))
            try:
                return _parse(path, size, content)
            except struct.error:
                if window >= size:
                    raise ValueError(f"{path.name} ends too early") from None
                window *= 4


def _parse(path: Path, size: int, content: memoryview) -> _Shard:
    head = _Head(content)
    if bytes(content[:4]) != b"GGUF":
        raise ValueError(f"{path.name} is no GGUF file")
    head.at = 4
    version, count, key_count = head.take("<I"), head.take("<Q"), head.take("<Q")
    keys = {}
    for _ in range(key_count):
        begin = head.at
        name = head.text()
        head.pass_value(head.take("<I"))
        keys[name] = bytes(content[begin : head.at])
    tensors = []
    for _ in range(count):
        begin = head.at
        head.text()
        head.skip(8 * head.take("<I"))
        head.take("<I")
        described = bytes(content[begin : head.at])
        tensors.append(_Tensor(described, head.take("<Q")))
    shard = _Shard(path, version, keys, tensors, 0, 0)
    shard.alignment = _number(shard, "general.alignment") or _DEFAULT_ALIGNMENT
    shard.data = _padded(head.at, shard.alignment)
    # A tensor reaches to where the next one begins: sizes need no table of types, and padding travels with them.
    places = sorted({tensor.at for tensor in tensors} | {size - shard.data})
    for tensor in tensors:
        tensor.size = places[places.index(tensor.at) + 1] - tensor.at if tensor.at < places[-1] else 0
    return shard


def _number(shard: _Shard, name: str) -> int | None:
    entry = shard.keys.get(name)
    if entry is None:
        return None
    head = _Head(memoryview(entry))
    head.text()
    kind = head.take("<I")
    return head.take({2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}.get(kind, "<B"))


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
