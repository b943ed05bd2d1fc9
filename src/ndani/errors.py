"""Every error that a user can see: one class tree, each class with a code and an HTTP status.

    NdaniError
    ├── BadRequest            400  the request is wrong
    │   ├── BadName           400  a text that cannot be a model name
    │   └── Unsupported       400  this model or this version cannot do it
    ├── Forbidden             403  a rule of this machine forbids it
    │   └── Offline           403  NDANI_OFFLINE is set
    ├── NotFound              404  no such model here, or at its source
    ├── TooLarge              413  a body above the limit
    ├── Cancelled             499  the client disconnected
    ├── Failed                500  this machine could not do it
    │   ├── Misconfigured     500  an unusable setting or a missing library
    │   ├── EngineFailed      500  the runner died, or sent an invalid response
    │   ├── LoadFailed        500  the model did not load, or not in time
    │   ├── Unconfined        500  the jail could not be set up (fails closed)
    │   ├── StoreFailed       500  the disk is full, unreadable or damaged
    │   ├── NoServer          500  no server answers at the address that the client uses
    │   └── SourceFailed      502  a model's source refused, disconnected or sent wrong bytes
    └── Busy                  503  the queue is full
        └── OutOfMemory       503  not enough memory for this model, even with nothing else loaded

A message is one sentence that says what is wrong and what to do. It never contains a prompt, an answer or an engine's own
message, because engines quote prompts in theirs. Only the API dialects render these errors into response bodies.
"""

from __future__ import annotations

#: Characters of a child process's message that are kept.
_MAX_CHILD_MESSAGE = 2000


class NdaniError(Exception):
    """Root of the tree. `str(error)` is the sentence that the user reads."""

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
    """Every class of the tree by its code, so that an error of another process can be raised again here."""
    by_code = {root.code: root}
    for subclass in root.__subclasses__():
        by_code |= errors_by_code(subclass)
    return by_code


def error_from_child(code: str, message: str, default: type[NdaniError] = Failed) -> NdaniError:
    """The error that a child process reports, or a `default` one when its code is unknown.

    What the child has read may determine its message, so the length is limited and control characters are removed.
    """
    sanitized = "".join(letter for letter in " ".join(message[:_MAX_CHILD_MESSAGE].split()) if letter.isprintable())
    return errors_by_code().get(code, default)(
        sanitized or "a process of this server failed without a word; try again, and report it if it stays"
    )
