"""Every error that a user can meet: one tree, each leaf with a code and a status.

    NdaniError
    ├── BadRequest            400  what was asked cannot be done as asked
    │   ├── BadName           400  a model name that cannot be one
    │   └── Unsupported       400  this model or this version cannot do it
    ├── Forbidden             403  a rule of this machine says no
    │   └── Offline           403  NDANI_OFFLINE is set
    ├── NotFound              404  no such model here, or at its source
    ├── TooLarge              413  a body above the limit
    ├── Cancelled             499  the client went away
    ├── Failed                500  this machine could not do it
    │   ├── Misconfigured     500  a setting that cannot be used, a library that is missing
    │   ├── EngineFailed      500  the runner died, or answered what it never should
    │   ├── LoadFailed        500  a model that would not load, or not in time
    │   ├── Unconfined        500  a jail that would not shut (fails closed)
    │   ├── StoreFailed       500  the disk: full, unreadable, damaged
    │   ├── NoServer          500  nobody answers at the address that a client was told
    │   └── SourceFailed      502  the place a model comes from: refused, broken off, wrong bytes
    └── Busy                  503  the queue is full
        └── OutOfMemory       503  no room for this model, even with nothing else loaded

A sentence says what is wrong and what to do; it never holds a prompt, an answer, or an engine's own words
(an engine quotes prompts in its errors). Dialects render these; nothing else writes an error body.
"""

from __future__ import annotations

#: Letters of a sentence that comes from a child.
_MOST_TOLD = 2000


class NdaniError(Exception):
    """Root of the tree. `str(error)` is the one sentence that the user reads."""

    status = 500
    code = "error"


class BadRequest(NdaniError):
    status = 400
    code = "bad_request"


class BadName(BadRequest):
    code = "bad_name"


class Unsupported(BadRequest):
    code = "unsupported"


class Forbidden(NdaniError):
    status = 403
    code = "forbidden"


class Offline(Forbidden):
    code = "offline"


class NotFound(NdaniError):
    status = 404
    code = "not_found"


class TooLarge(NdaniError):
    status = 413
    code = "too_large"


class Cancelled(NdaniError):
    status = 499
    code = "cancelled"


class Failed(NdaniError):
    code = "failed"


class Misconfigured(Failed):
    code = "misconfigured"


class EngineFailed(Failed):
    code = "engine_failed"


class LoadFailed(Failed):
    code = "load_failed"


class Unconfined(Failed):
    code = "unconfined"


class StoreFailed(Failed):
    code = "store_failed"


class NoServer(Failed):
    code = "no_server"


class SourceFailed(Failed):
    status = 502
    code = "source_failed"


class Busy(NdaniError):
    status = 503
    code = "busy"


class OutOfMemory(Busy):
    code = "out_of_memory"


def errors_by_code(root: type[NdaniError] = NdaniError) -> dict[str, type[NdaniError]]:
    """Every class of the tree by its code, so that an error can cross a process border and be raised again."""
    found = {root.code: root}
    for leaf in root.__subclasses__():
        found |= errors_by_code(leaf)
    return found


def error_from_child(code: str, sentence: str, default: type[NdaniError] = Failed) -> NdaniError:
    """The error that a child of ours says it met, or one of `otherwise` where its code is none of the tree.

    What it has read may have put the words into its mouth: they have an end, and nothing that a terminal would obey.
    """
    plain = "".join(letter for letter in " ".join(sentence[:_MOST_TOLD].split()) if letter.isprintable())
    return errors_by_code().get(code, default)(
        plain or "a process of this server failed without a word; try again, and report it if it stays"
    )
