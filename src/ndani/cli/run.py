"""`ndani run`: one prompt, one answer, streamed to stdout as it arrives; the model is pulled first where it is missing.

Without a prompt, at a terminal, it is a conversation: `repl`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from typing import Any

import click

from ndani.cli.answer_summary import answer_summary
from ndani.cli.client import ServerClient
from ndani.cli.command import HOST_VARIABLE, Command, at_least
from ndani.cli.output import emit
from ndani.cli.word_wrap import WordWrapper
from ndani.durations import parse_duration
from ndani.errors import BadRequest, Failed, NotFound
from ndani.settings import load

_THINK = {"": True, "true": True, "false": False} | {level: level for level in ("high", "medium", "low", "max")}
_ENVIRONMENT = (
    ("NDANI_EDITOR", "Path to editor for interactive prompt editing (Ctrl+G)"),
    HOST_VARIABLE,
    ("NDANI_NOHISTORY", "Do not preserve readline history"),
)


@click.command(
    "run",
    cls=Command,
    usage="run MODEL [PROMPT]",
    arity=at_least(1),
    environment=_ENVIRONMENT,
    implicit_values={"--think": "true", "--truncate": "true"},
    help="Run a model",
)
@click.option("--keepalive", default="", help="Duration to keep a model loaded (e.g. 5m)")
@click.option("--verbose", is_flag=True, help="Show timings for response")
@click.option("--insecure", is_flag=True, help="Use an insecure registry")
@click.option("--nowordwrap", is_flag=True, help="Don't wrap words to the next line automatically")
@click.option("--format", "format_", default="", hidden=True)
@click.option("--think", default="false", hidden=True)
@click.option("--hidethinking", is_flag=True, hidden=True)
@click.option("--dimensions", default="0", metavar="int", help="Numbers of the vector (embedding models only)")
@click.option("--truncate", default="true", help="Cut a text that is too long (embedding models only)")
def run(args: tuple[str, ...], keepalive: str, verbose: bool, insecure: bool, nowordwrap: bool, **later: Any) -> None:
    """Answer one prompt: words of the command line, after what is piped in; without any, converse. An embedder gives its vector."""
    from ndani.cli.autostart import connect_or_start
    from ndani.cli.embed import embeds, flags, vector

    model, *words = args
    of_vectors = flags(later.pop("dimensions"), later.pop("truncate"))
    ask: dict[str, Any] = {"model": model} | _later(**later)
    if keepalive:
        parse_duration(keepalive)
        ask["keep_alive"] = keepalive if not keepalive.lstrip("+-").replace(".", "").isdigit() else float(keepalive)
    if not words and sys.stdin.isatty() and sys.stdout.isatty():
        from ndani.cli.repl import converse

        settings = load()
        client = connect_or_start(settings)
        if embeds(client, model, insecure):
            emit(vector(client, ask, of_vectors))  # there is no conversing with it: says that a text is needed
        _refuse(of_vectors)
        return converse(settings, ask, verbose=verbose, wordwrap=not nowordwrap, insecure=insecure)
    ask["prompt"] = prompt(words)
    client = connect_or_start(load())
    if embeds(client, model, insecure):
        emit(vector(client, ask, of_vectors))
        return
    _refuse(of_vectors)
    wrap = sys.stdout.isatty() and not nowordwrap
    writer = WordWrapper(sys.stdout, columns=shutil.get_terminal_size().columns if wrap else 0, terminal=sys.stdout.isatty())
    try:
        done = _answer(client, ask, writer)
    except NotFound:
        from ndani.cli.models import fetch

        fetch(client, model, insecure=insecure)
        done = _answer(client, ask, writer)
    if ask["prompt"]:
        emit("\n")
    return answer_summary(done, verbose=verbose)


def _refuse(of_vectors: Mapping[str, Any]) -> None:
    if of_vectors:
        raise BadRequest("--dimensions and --truncate are for models of embeddings; leave them out")


def _later(*, format_: str, think: str, hidethinking: bool) -> dict[str, Any]:
    """Flags of Ollama's that ndani does not have yet: refused when they ask for something."""
    asked = {
        "--format": bool(format_),
        "--hidethinking": hidethinking,
    }
    for flag, on in asked.items():
        if on:
            raise BadRequest(f"{flag} is not in this version of ndani; leave it out")
    if think not in _THINK:
        raise BadRequest(f'invalid value for --think: "{think}" (must be true, false, high, medium, low, or max)')
    # Whether a model can think is the server's to say, in the words that clients know.
    return {"think": _THINK[think]} if _THINK[think] else {}


def prompt(words: list[str]) -> str:
    """The prompt of a command line: piped text first, then the words, joined by spaces.

    Raises BadRequest when there is neither and a person sits at the terminal. An empty prompt only loads the model.
    """
    text = " ".join(words)
    piped = _piped()
    if piped is None and not words:
        raise BadRequest('a prompt is needed: ndani run MODEL "your question" (a conversation needs a terminal to be shown on)')
    if piped:
        text = f"{piped} {text}" if words else piped
    return text


def _piped() -> str | None:
    """What is piped in; None when stdin is a terminal."""
    try:
        number = sys.stdin.fileno()
        kind = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or not a file at all
        return ""
    if os.isatty(number):
        return None
    if stat.S_ISCHR(kind):  # /dev/null
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _answer(client: ServerClient, ask: Mapping[str, Any], writer: WordWrapper) -> Mapping[str, Any]:
    """Stream one answer into the writer and return its last object. Ctrl-C hangs up, which stops the computation."""
    done: Mapping[str, Any] | None = None
    events = client.stream("/api/generate", ask)
    try:
        with contextlib.closing(events):
            for event in events:
                writer.write(event.get("response") or "")
                if event.get("done"):
                    done = event
        if done is None:
            raise Failed("the server ended the answer in the middle; ask again, and look at its log if it stays so")
    except BadRequest as error:
        # Ollama's client puts the status in front here and nowhere else.
        raise BadRequest(f"400 Bad Request: {error}" if ask.get("think") else str(error)) from None
    except (KeyboardInterrupt, Failed):
        if writer.close() and sys.stdout.isatty():
            emit()  # the shell's prompt, or the error, gets a line of its own
        raise
    writer.close()
    return done
