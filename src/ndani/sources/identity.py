"""This user's own key, with which a registry of Ollama's kind knows them again: ed25519, in OpenSSH's file format.

Made on first need, which is a registry that hands out tokens for a signature only. The arithmetic is that of RFC 8032,
section 5.1, in Python's own integers: a signature takes some milliseconds and is needed once an hour, so a library for
it would be a dependency for nothing. Not in constant time: whoever can time this process can read its key file.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from base64 import b64decode, b64encode
from pathlib import Path

from ndani.errors import Misconfigured

_P = 2**255 - 19
_Q = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_BASE_Y = 4 * pow(5, _P - 2, _P) % _P

#: x, y, z and t of a point, as in RFC 8032, 5.1.4.
Point = tuple[int, int, int, int]

_HEAD, _FOOT = "-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"
_KIND = b"ssh-ed25519"


class Identity:
    """A key pair, from its 32 secret bytes."""

    def __init__(self, seed: bytes) -> None:
        digest = hashlib.sha512(seed).digest()
        self._scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
        self._prefix = digest[32:]
        self.seed = seed
        self.public = _packed(_times(self._scalar, _base()))

    @property
    def shown(self) -> str:
        """The public key as OpenSSH and Ollama write it: base64 of its wire form."""
        return b64encode(_string(_KIND) + _string(self.public)).decode()

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature (RFC 8032, 5.1.6)."""
        r = int.from_bytes(hashlib.sha512(self._prefix + message).digest(), "little") % _Q
        point = _packed(_times(r, _base()))
        k = int.from_bytes(hashlib.sha512(point + self.public + message).digest(), "little") % _Q
        return point + ((r + k * self._scalar) % _Q).to_bytes(32, "little")


def open_identity(path: Path) -> Identity:
    """The key in this file; made, for its owner's eyes only, where there is none. Raises Misconfigured."""
    try:
        if not path.exists():
            _make(path)
        return parse(path.read_text(encoding="ascii"))
    except OSError as error:
        raise Misconfigured(f"the key {path} cannot be used ({error.strerror}); change its owner or mode, or remove it") from None
    except ValueError:
        raise Misconfigured(f"the key {path} is no unencrypted ed25519 key of OpenSSH; remove it, and a new one is made") from None


def _make(path: Path) -> None:
    """A new key, unless somebody else makes one in the same moment; nobody ever sees half of it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(render(Identity(os.urandom(32))))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(fresh, path)
        except FileExistsError:
            pass  # the other one was first
        except OSError:  # a disk that has no links
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def render(identity: Identity) -> str:
    """The file of a key, as `ssh-keygen -t ed25519` writes it."""
    public = _string(_KIND) + _string(identity.public)
    check = os.urandom(4)
    secret = check * 2 + public + _string(identity.seed + identity.public) + _string(b"")
    secret += bytes(range(1, -len(secret) % 8 + 1))
    body = _MAGIC + _string(b"none") * 2 + _string(b"") + struct.pack(">I", 1) + _string(public) + _string(secret)
    text = b64encode(body).decode()
    return "\n".join([_HEAD, *(text[at : at + 70] for at in range(0, len(text), 70)), _FOOT, ""])


def parse(text: str) -> Identity:
    """The key in such a file. Raises ValueError when it is another kind of key, or has a pass phrase."""
    body = b64decode(text.strip().removeprefix(_HEAD).removesuffix(_FOOT))
    if not body.startswith(_MAGIC):
        raise ValueError("no OpenSSH key")
    cipher, rest = _take(body[len(_MAGIC) :])
    _, rest = _take(rest)  # how a pass phrase is stretched
    _, rest = _take(rest)
    _, rest = _take(rest[4:])  # the public key, once more
    secret, _ = _take(rest)
    kind, rest = _take(secret[8:])
    if cipher != b"none" or kind != _KIND:
        raise ValueError("another kind of key")
    _, rest = _take(rest)
    pair, _ = _take(rest)
    if len(pair) != 64:
        raise ValueError("a damaged key")
    return Identity(pair[:32])


def _string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _take(content: bytes) -> tuple[bytes, bytes]:
    if len(content) < 4 or len(content) < (end := 4 + struct.unpack(">I", content[:4])[0]):
        raise ValueError("a damaged key")
    return content[4:end], content[end:]


def _base() -> Point:
    # x from y (RFC 8032, 5.1.3); the base point's x is even.
    square = (_BASE_Y * _BASE_Y - 1) * pow(_D * _BASE_Y * _BASE_Y + 1, _P - 2, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if x * x % _P != square:
        x = x * pow(2, (_P - 1) // 4, _P) % _P
    x = x if x % 2 == 0 else _P - x
    return x, _BASE_Y, 1, x * _BASE_Y % _P


def _sum(one: Point, two: Point) -> Point:
    a, b = (one[1] - one[0]) * (two[1] - two[0]) % _P, (one[1] + one[0]) * (two[1] + two[0]) % _P
    c, d = 2 * one[3] * two[3] * _D % _P, 2 * one[2] * two[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(factor: int, point: Point) -> Point:
    total = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            total = _sum(total, point)
        point, factor = _sum(point, point), factor >> 1
    return total


def _packed(point: Point) -> bytes:
    inverse = pow(point[2], _P - 2, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")
