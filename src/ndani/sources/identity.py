"""The user's own key, by which a registry of Ollama's kind recognises them: ed25519, in OpenSSH's file format.

The key is created on first use: when a registry issues tokens only for a signature. The arithmetic follows RFC 8032,
section 5.1, in Python's own integers. A signature takes some milliseconds and is needed once an hour, so a library would
be an unnecessary dependency. It does not run in constant time: anybody who can time this process can read its key file.
"""

from __future__ import annotations

import hashlib
import os
import struct
import uuid
from base64 import b64decode, b64encode
from pathlib import Path

from ndani.errors import Misconfigured

_PRIME = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_CURVE_D = -121665 * pow(121666, _PRIME - 2, _PRIME) % _PRIME
_BASE_Y = 4 * pow(5, _PRIME - 2, _PRIME) % _PRIME

#: x, y, z and t of a point, as in RFC 8032, 5.1.4.
Point = tuple[int, int, int, int]

_HEADER, _FOOTER = "-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----"
_MAGIC = b"openssh-key-v1\0"
_KEY_TYPE = b"ssh-ed25519"


class Identity:
    """A key pair, from its 32 secret bytes."""

    def __init__(self, seed: bytes) -> None:
        digest = hashlib.sha512(seed).digest()
        self._scalar = int.from_bytes(digest[:32], "little") & (2**254 - 8) | 2**254
        self._prefix = digest[32:]
        self.seed = seed
        self.public = _encode_point(_multiply(self._scalar, _base_point()))

    @property
    def public_text(self) -> str:
        """The public key as OpenSSH and Ollama write it: base64 of its wire format."""
        return b64encode(_encode_string(_KEY_TYPE) + _encode_string(self.public)).decode()

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature (RFC 8032, 5.1.6)."""
        r = int.from_bytes(hashlib.sha512(self._prefix + message).digest(), "little") % _ORDER
        point = _encode_point(_multiply(r, _base_point()))
        k = int.from_bytes(hashlib.sha512(point + self.public + message).digest(), "little") % _ORDER
        return point + ((r + k * self._scalar) % _ORDER).to_bytes(32, "little")


def open_identity(path: Path) -> Identity:
    """The key in this file. If there is none, a new one is created that only its owner can read. Raises Misconfigured."""
    try:
        if not path.exists():
            _create_key_file(path)
        return parse(path.read_text(encoding="ascii"))
    except OSError as error:
        raise Misconfigured(f"the key {path} cannot be used ({error.strerror}); change its owner or mode, or remove it") from None
    except ValueError:
        raise Misconfigured(f"the key {path} is no unencrypted ed25519 key of OpenSSH; remove it, and a new one is made") from None


def _create_key_file(path: Path) -> None:
    """Create a key file atomically; if another process creates one at the same moment, that one stays. Raises OSError."""
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
            pass  # another process was first
        except OSError:  # the file system has no hard links
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def render(identity: Identity) -> str:
    """The content of a key file, as `ssh-keygen -t ed25519` writes it."""
    public = _encode_string(_KEY_TYPE) + _encode_string(identity.public)
    check = os.urandom(4)
    secret = check * 2 + public + _encode_string(identity.seed + identity.public) + _encode_string(b"")
    secret += bytes(range(1, -len(secret) % 8 + 1))
    body = (
        _MAGIC + _encode_string(b"none") * 2 + _encode_string(b"") + struct.pack(">I", 1) + _encode_string(public) + _encode_string(secret)
    )
    text = b64encode(body).decode()
    return "\n".join([_HEADER, *(text[at : at + 70] for at in range(0, len(text), 70)), _FOOTER, ""])


def parse(text: str) -> Identity:
    """The key in the content of such a file. Raises ValueError for another type of key, or one with a passphrase."""
    body = b64decode(text.strip().removeprefix(_HEADER).removesuffix(_FOOTER))
    if not body.startswith(_MAGIC):
        raise ValueError("no OpenSSH key")
    cipher, remaining = _read_string(body[len(_MAGIC) :])
    _, remaining = _read_string(remaining)  # the key derivation function of a passphrase, and its options
    _, remaining = _read_string(remaining)
    _, remaining = _read_string(remaining[4:])  # the public key, which the secret part repeats
    secret, _ = _read_string(remaining)
    key_type, remaining = _read_string(secret[8:])
    if cipher != b"none" or key_type != _KEY_TYPE:
        raise ValueError("another kind of key")
    _, remaining = _read_string(remaining)
    pair, _ = _read_string(remaining)
    if len(pair) != 64:
        raise ValueError("a damaged key")
    return Identity(pair[:32])


def _encode_string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def _read_string(content: bytes) -> tuple[bytes, bytes]:
    if len(content) < 4 or len(content) < (end := 4 + struct.unpack(">I", content[:4])[0]):
        raise ValueError("a damaged key")
    return content[4:end], content[end:]


def _base_point() -> Point:
    # x from y (RFC 8032, 5.1.3); the base point's x is even.
    square = (_BASE_Y * _BASE_Y - 1) * pow(_CURVE_D * _BASE_Y * _BASE_Y + 1, _PRIME - 2, _PRIME) % _PRIME
    x = pow(square, (_PRIME + 3) // 8, _PRIME)
    if x * x % _PRIME != square:
        x = x * pow(2, (_PRIME - 1) // 4, _PRIME) % _PRIME
    x = x if x % 2 == 0 else _PRIME - x
    return x, _BASE_Y, 1, x * _BASE_Y % _PRIME


def _add(first: Point, second: Point) -> Point:
    a, b = (first[1] - first[0]) * (second[1] - second[0]) % _PRIME, (first[1] + first[0]) * (second[1] + second[0]) % _PRIME
    c, d = 2 * first[3] * second[3] * _CURVE_D % _PRIME, 2 * first[2] * second[2] % _PRIME
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _PRIME, g * h % _PRIME, f * g % _PRIME, e * h % _PRIME


def _multiply(factor: int, point: Point) -> Point:
    total = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            total = _add(total, point)
        point, factor = _add(point, point), factor >> 1
    return total


def _encode_point(point: Point) -> bytes:
    inverse = pow(point[2], _PRIME - 2, _PRIME)
    x, y = point[0] * inverse % _PRIME, point[1] * inverse % _PRIME
    return (y | (x & 1) << 255).to_bytes(32, "little")
