"""`ndani run`: one prompt and its answer, streamed to stdout; a model that is missing is pulled first.

Without a prompt, at a terminal, it starts the interactive prompt: `repl`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from typing import Any

import click

from ndani.cli.answer_summary import print_answer_summary
from ndani.cli.client import ServerClient
from ndani.cli.command import HOST_VARIABLE, Command, at_least
from ndani.cli.image_paths import take_images
from ndani.cli.output import emit
from ndani.cli.thinking import ThinkingWriter
from ndani.cli.word_wrap import WordWrapper
from ndani.durations import parse_duration
from ndani.errors import BadRequest, Failed, NotFound
from ndani.settings import Settings, load

_THINK_VALUES = {"": True, "true": True, "false": False} | {level: level for level in ("high", "medium", "low", "max")}
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
@click.option("--format", "format_", default="", metavar="string", help="Response format (e.g. json)")
@click.option("--think", default=None, metavar="string", help="Think or not: true/false, or high/medium/low for models that have levels")
@click.option("--hidethinking", is_flag=True, help="Hide thinking output (if provided)")
@click.option("--dimensions", default="0", metavar="int", help="Numbers of the vector (embedding models only)")
@click.option("--truncate", default="true", help="Cut a text that is too long (embedding models only)")
def run(args: tuple[str, ...], keepalive: str, verbose: bool, insecure: bool, nowordwrap: bool, **request_flags: Any) -> None:
    """Answer one prompt: the text from stdin, then the arguments. Without either, start the interactive prompt."""
    from ndani.cli.autostart import connect_or_start
    from ndani.cli.embed import capabilities, embed_prompt, is_embedding_model, parse_flags

    model, *words = args
    embed_fields = parse_flags(request_flags.pop("dimensions"), request_flags.pop("truncate"))
    hide_thinking = request_flags.pop("hidethinking")
    request: dict[str, Any] = {"model": model} | _request_fields(**request_flags) | _environment_options(load())
    if keepalive:
        parse_duration(keepalive)
        is_number = keepalive.lstrip("+-").replace(".", "").isdigit()
        request["keep_alive"] = float(keepalive) if is_number else keepalive
    if not words and sys.stdin.isatty() and sys.stdout.isatty():
        from ndani.cli.repl import run_repl

        settings = load()
        client = connect_or_start(settings)
        if is_embedding_model(client, model, insecure):
            # An embedding model has no interactive prompt: this raises that a text is needed.
            emit(embed_prompt(client, request, embed_fields))
        _refuse_embed_fields(embed_fields)
        return run_repl(settings, request, verbose=verbose, wordwrap=not nowordwrap, insecure=insecure, hide_thinking=hide_thinking)
    request["prompt"] = read_prompt(words)
    client = connect_or_start(load())
    able = capabilities(client, model, insecure)
    if "embedding" in able:
        emit(embed_prompt(client, request, embed_fields))
        return
    if "vision" in able and words:  # text from stdin may be anybody's: its paths are left alone
        request |= _prompt_with_images(request["prompt"], words)
    _refuse_embed_fields(embed_fields)
    wrap = sys.stdout.isatty() and not nowordwrap
    writer = WordWrapper(sys.stdout, columns=shutil.get_terminal_size().columns if wrap else 0, terminal=sys.stdout.isatty())
    try:
        final_event = _stream_answer(client, request, writer, hide_thinking)
    except NotFound:
        from ndani.cli.models import pull_with_progress

        pull_with_progress(client, model, insecure=insecure)
        final_event = _stream_answer(client, request, writer, hide_thinking)
    if request["prompt"] or request.get("images"):
        emit("\n")
    return print_answer_summary(final_event, verbose=verbose)


def _environment_options(settings: Settings) -> dict[str, Any]:
    """The option that a variable of this command sets: the server may run already, with another environment."""
    return {"options": {"num_gpu": settings.num_gpu}} if settings.value_sources["num_gpu"] in os.environ else {}


def _prompt_with_images(prompt: str, words: list[str]) -> dict[str, Any]:
    """The fields of a prompt whose end, the arguments, may name images."""
    typed = " ".join(words)
    text, images = take_images(typed)
    return {"prompt": prompt.removesuffix(typed) + text, "images": images} if images else {}


def _refuse_embed_fields(embed_fields: Mapping[str, Any]) -> None:
    if embed_fields:
        raise BadRequest("--dimensions and --truncate are for models of embeddings; leave them out")


def _request_fields(*, format_: str, think: str | None) -> dict[str, Any]:
    """The fields of a request that the flags set. Raises BadRequest for a value that means nothing."""
    fields: dict[str, Any] = {}
    if format_:
        fields["format"] = "json" if format_ == "json" else _schema(format_)
    if think is not None:
        if think not in _THINK_VALUES:
            raise BadRequest(f'invalid value for --think: "{think}" (must be true, false, high, medium, low, or max)')
        # The server checks whether the model can think, and clients know its error message.
        fields["think"] = _THINK_VALUES[think]
    return fields


def _schema(text: str) -> dict[str, Any]:
    """The JSON Schema of --format. Raises BadRequest."""
    with contextlib.suppress(ValueError, RecursionError):
        schema = json.loads(text)
        if isinstance(schema, dict):
            return schema
    raise BadRequest("--format must be json, or a JSON Schema object")


def read_prompt(words: list[str]) -> str:
    """The prompt of a command line: the text from stdin, then the arguments, joined by spaces.

    Raises BadRequest when there are no arguments and stdin is a terminal. An empty prompt only loads the model.
    """
    text = " ".join(words)
    piped = _read_stdin()
    if piped is None and not words:
        raise BadRequest('a prompt is needed: ndani run MODEL "your question" (a conversation needs a terminal to be shown on)')
    if piped:
        text = f"{piped} {text}" if words else piped
    return text


def _read_stdin() -> str | None:
    """The text from stdin; None when stdin is a terminal."""
    try:
        descriptor = sys.stdin.fileno()
        mode = os.fstat(descriptor).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or without a file descriptor
        return ""
    if os.isatty(descriptor):
        return None
    if stat.S_ISCHR(mode):  # /dev/null
        return ""
    return sys.stdin.buffer.read().decode("utf-8", "replace")


def _stream_answer(client: ServerClient, request: Mapping[str, Any], writer: WordWrapper, hide_thinking: bool) -> Mapping[str, Any]:
    """Stream one answer into the writer and return its last event. Ctrl-C disconnects, which cancels the computation."""
    final_event: Mapping[str, Any] | None = None
    events = client.stream("/api/generate", request)
    output = ThinkingWriter(writer, hidden=hide_thinking)
    try:
        with contextlib.closing(events):
            for event in events:
                output.write(event.get("thinking") or "", event.get("response") or "")
                if event.get("done"):
                    final_event = event
        if final_event is None:
            raise Failed("the server ended the answer in the middle; ask again, and look at its log if it stays so")
    except BadRequest as error:
        # Ollama's client has the status before this message, and before no other.
        raise BadRequest(f"400 Bad Request: {error}" if request.get("think") else str(error)) from None
    except (KeyboardInterrupt, Failed):
        if writer.close() and sys.stdout.isatty():
            emit()  # the shell's prompt, or the error, starts on a new line
        raise
    writer.close()
    return final_event
