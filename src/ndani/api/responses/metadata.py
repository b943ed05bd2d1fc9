"""The metadata that a client attaches to a response or a conversation: a few short texts by name."""

from __future__ import annotations

from ndani.errors import BadRequest

_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512


def require_metadata(metadata: dict[str, str] | None) -> dict[str, str]:
    """The metadata, if it is within OpenAI's limits. Raises BadRequest."""
    metadata = metadata or {}
    if len(metadata) > _MAX_PAIRS or any(len(name) > _MAX_NAME or len(value) > _MAX_VALUE for name, value in metadata.items()):
        raise BadRequest(f"metadata may have {_MAX_PAIRS} texts, with names of {_MAX_NAME} and values of {_MAX_VALUE} characters at most")
    return metadata
