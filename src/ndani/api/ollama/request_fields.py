"""The fields that Ollama's requests share: options, messages, keep_alive. Options that nothing obeys are named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ndani.api.edge.fields import array, text
from ndani.durations import parse_duration
from ndani.engines.sampling import parse_options
from ndani.errors import BadRequest
from ndani.types import Message, Sampling


def numbers(body: dict[str, Any], name: str) -> tuple[int, ...] | None:
    """A list of token ids."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**31 for n in value):
        raise BadRequest(f"{name} must be an array of token ids")
    return tuple(value)


def keep_alive(body: dict[str, Any]) -> float | None:
    """Seconds: a number, or a Go duration; negative is for ever."""
    value = body.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise BadRequest("keep_alive must be a number of seconds or a duration such as 5m")
    if isinstance(value, str):
        return parse_duration(value.strip())
    # A whole number may be longer than any float; what it means does not depend on how long it is.
    return max(-1.0, min(value, 1e12)) if isinstance(value, int) else value


def sampling(body: dict[str, Any]) -> tuple[Sampling, list[str]]:
    """The options said in a request, and the names of those that nothing obeys.

    Wrong types are 400 here (500 in Ollama). A fraction for a whole number is cut, as there; null is not said.
    """
    options = body.get("options")
    if options is None:
        return Sampling(), []
    if not isinstance(options, dict):
        raise BadRequest("options must be an object")
    return parse_options(options)


def options(body: dict[str, Any]) -> tuple[Sampling, list[str], str]:
    """As `sampling`, with what is wrong with a value as a sentence: it is said only of a model that is there (reference 1.6)."""
    try:
        return (*sampling(body), "")
    except BadRequest as error:
        if not isinstance(body.get("options"), dict):
            raise
        return Sampling(), [], str(error)


def messages(body: dict[str, Any], roles: tuple[str, ...] = ()) -> tuple[tuple[Message, ...], frozenset[str]]:
    """The turns of a conversation, and what they hold beyond text: images, tool_calls.

    A role is whatever the model's template knows (`control`, `document 2`), or one of `roles`; without one it is empty.
    """
    turns, more = [], set()
    for number, turn in enumerate(array(body, "messages")):
        if not isinstance(turn, dict):
            raise BadRequest(f"messages[{number}] must be an object with role and content")
        named = {key.lower(): part for key, part in turn.items()}
        try:
            role = text(named, "role").lower()
            more |= {name for name in ("images", "tool_calls") if array(named, name)}
            rest = {name: text(named, name) for name in ("content", "thinking", "tool_name", "tool_call_id")}
        except BadRequest as error:
            raise BadRequest(f"messages[{number}].{error}") from None
        if roles and role not in roles:
            raise BadRequest(f"messages[{number}].role must be one of {', '.join(roles)}")
        turns.append(Message(role, **rest))
    return tuple(turns), frozenset(more)


def ignored_headers(ignored: Sequence[str]) -> dict[str, str]:
    """What nothing obeyed, by name; one that is no plain word, or a long one, is not repeated: clients take headers of a few KiB."""
    plain = [name for name in ignored if len(name) <= 64 and name.isascii() and name.isidentifier()][:32]
    return {"X-Ndani-Ignored": ", ".join(plain)} if plain else {}
