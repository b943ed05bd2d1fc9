"""`ndani create`: a Modelfile read here, its files linked or sent by digest, the rest said to the server.

A path in a Modelfile is the user's, and is opened here with the user's rights; the server is never told one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import click

from ndani import names
from ndani.cli import progress
from ndani.cli.autostart import connect_or_start
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, complete_file, exactly
from ndani.cli.handover import hand_over
from ndani.cli.output import emit
from ndani.control_characters import visible
from ndani.convert.file_selection import SUFFIX, holds_tensors, preferred_weights
from ndani.convert.quant_types import parse_kind
from ndani.errors import BadRequest, NdaniError, NotFound, Unsupported
from ndani.settings import expand, load
from ndani.store.file_formats import GGUF, POINTER, detect_format, refusal
from ndani.store.modelfile import Modelfile, check_grammar, parse, to_request
from ndani.store.parameters import short

_PIECE = 1 << 20
_GATHERING = {"status": "gathering model components"}
_NOTHING = "no Modelfile or safetensors files found"
_WEIGHTS = (".bin", ".pth", ".pt", ".onnx")
#: What says something of weights beside it, by the ends of names; and what ends so, may be large, and says nothing of them.
_BESIDE, _NOTES = (".json", ".txt", ".jinja"), ("trainer_state.json",)


@click.command("create", cls=Command, usage="create MODEL", takes=exactly(1), help="Create a model")
@click.option("-f", "--file", "place", default="", shell_complete=complete_file, help='Name of the Modelfile (default "Modelfile")')
@click.option("-q", "--quantize", default="", help="Quantize model to this level (e.g. q4_K_M)")
def create(args: tuple[str, ...], place: str, quantize: str) -> None:
    """Make a model as a Modelfile says, with its progress on stderr."""
    model = args[0]
    names.parse(model)
    if quantize:
        parse_kind(quantize)  # said before anything is sent
    path = expand(place or "Modelfile")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if place:
            emit(_GATHERING["status"], err=True)
            raise NotFound(_NOTHING) from None
        text = b"FROM .\n"  # as in Ollama: the weights that lie here
    check_grammar(text)
    try:
        read = parse(text)
        body, files = gather(read, path.parent)
        body |= {"quantize": quantize} if quantize else {}
    except NdaniError:
        emit(_GATHERING["status"], err=True)
        raise
    for warning in read.warnings:
        emit(f"Warning: {warning}", err=True)
    settings = load()
    client = connect_or_start(settings)
    try:
        with contextlib.closing(_steps(client, settings.models, {"model": model, **body}, files)) as steps:
            progress.follow(itertools.chain([_GATHERING], steps), f"the server ended before {model} was made; create it again")
    except KeyboardInterrupt:
        emit(f"{model} was not made; what was sent stays for the next `ndani create {model}`", err=True)
        raise


def gather(modelfile: Modelfile, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Path]]]:
    """A create request without its files, and those: by field of the request, then by the name they get there.

    A FROM that exists as a path, relative to `folder` or with ~, is a file, or a folder with a checkpoint or GGUF files; else
    it is a model's name. Raises BadRequest, NotFound, Unsupported.
    """
    body = to_request(modelfile)
    files: dict[str, dict[str, Path]] = {"files": {}, "adapters": {}}
    for value in modelfile.froms:
        found = _found(value, folder)
        if found is None:
            if "from" in body:
                raise BadRequest("there are two FROM lines with the name of a model; a model is made from one")
            body["from"] = visible(value)  # as in Ollama: nobody sees them in a name that was copied from a page
        root = folder / expand(value)
        for path in found or ():
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            files["files"][_called(name, files["files"])] = path
    for value in modelfile.adapters:
        for path in _found(value, folder, needed="ADAPTER") or ():
            files["adapters"][_called(path.name, files["adapters"])] = path
    if modelfile.drafts:
        raise Unsupported("DRAFT is not in this version of ndani; take the line out: the answers are the same without it")
    return body, files


def _found(value: str, folder: Path, needed: str = "") -> list[Path] | None:
    """The files that a FROM or an ADAPTER means, or None where it is a model's name. What they are, their first bytes say."""
    path = folder / expand(value)
    try:
        path.stat()
    except PermissionError as error:
        raise NotFound(f"{short(str(error.filename or value))} cannot be read ({error.strerror}); change its owner or mode") from None
    except (OSError, ValueError):  # too long for a path, among others
        _require_name(value, needed)
        return None
    if path.is_dir():
        return _inside(value, path, adapter=bool(needed))
    if not path.is_file():
        _require_name(value, needed)
        return None
    form = _form(path)
    if holds_tensors(path.name, form) and not needed and form != POINTER:
        raise BadRequest(f"{short(value)} is one file of a model; give FROM its folder, with config.json and the tokenizer's files")
    if form != GGUF:
        raise refusal(short(value), form, adapter=bool(needed))
    return [path]


def _inside(value: str, folder: Path, adapter: bool) -> list[Path]:
    """The files of a folder that are a model, or an adapter. Raises NotFound, BadRequest, Unsupported."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        weights = [] if adapter else [path.name for path in paths if path.suffix == SUFFIX]
        if weights:
            return checkpoint(folder, paths)
        forms = {path: _form(path) for path in paths}
        deeper = {path.parent.name for path in folder.glob("*/*") if path.suffix in (SUFFIX, ".gguf")}
    except PermissionError as error:
        raise NotFound(f"{short(str(error.filename or value))} cannot be read ({error.strerror}); change its owner or mode") from None
    if models := [path for path in paths if forms[path] == GGUF]:
        return models
    if other := next((path for path in paths if forms[path] or path.suffix == ".gguf"), None):
        raise refusal(other.name, forms[other], adapter)
    if deeper:
        raise NotFound(f"the weights in {short(value)} lie in folders of it; give one of them: {short(', '.join(sorted(deeper)))}")
    raise NotFound(_NOTHING)


def _form(path: Path) -> str:
    """What a file is. Raises NotFound where it may not be read."""
    try:
        with path.open("rb") as file:
            return detect_format(file.fileno())
    except OSError as error:
        raise NotFound(f"{short(str(path))} cannot be read ({error.strerror}); change its owner or mode") from None


def _require_name(value: str, needed: str) -> None:
    """Refuse what can only be a path, and is not there: asked for as a model's name the answer would be about something else."""
    if needed or value.startswith((".", "/", "~")) or value.lower().endswith((".gguf", SUFFIX, *_WEIGHTS)):
        raise NotFound(f"the file {short(value)} of {needed or 'FROM'} is not there; a path is relative to the Modelfile's folder")


def checkpoint(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Of the files of a folder with safetensors those that are to be sent: the weights, and all that says what they are.

    Earlier states, other forms and notes of a training program stay: of the folders inside only those are looked into that
    hold no weights, for the one file that may say something of these.
    """
    known = {path.name: path for path in paths}
    weights = preferred_weights(name for name in known if name.endswith(SUFFIX))
    beside = [path for name, path in known.items() if path.suffix in _BESIDE and name not in _NOTES]
    nested = [path for path in sorted(folder.glob("*/config.json")) if not any(_is_weights(other) for other in path.parent.iterdir())]
    return [*(known[name] for name in weights), *sorted([*beside, *nested])]


def _is_weights(path: Path) -> bool:
    return path.suffix in (".gguf", SUFFIX, *_WEIGHTS)


def _called(name: str, taken: dict[str, Path]) -> str:
    return name if name not in taken else f"{len(taken)}/{name}"


def _steps(client: ServerClient, models: Path, body: dict[str, Any], files: dict[str, dict[str, Path]]) -> Generator[dict[str, Any]]:
    """Link or send what the server lacks, have the model made, and tell of each step."""
    for field, paths in files.items():
        digests = {}
        for name, path in paths.items():
            with path.open("rb") as file:
                digests[name] = (yield from hand_over(client, models, path, file)) or (yield from _sent(client, path, file))
        if digests:
            body[field] = digests
    with contextlib.closing(client.stream("/api/create", body)) as events:
        yield from events


def _sent(client: ServerClient, path: Path, file: BinaryIO) -> Generator[dict[str, Any], None, str]:
    """Bring one file to the server unless it is there already, and return its digest."""
    size, visible, done = path.stat().st_size, hashlib.sha256(), 0
    while piece := file.read(_PIECE):
        visible.update(piece)
        done += len(piece)
        yield {"status": f"reading {path.name}", "total": size, "completed": done}
    digest = f"sha256:{visible.hexdigest()}"
    route = f"/api/blobs/{digest}"
    try:
        client.tell("HEAD", route)
    except NotFound:
        file.seek(0)
        with contextlib.closing(client.upload(route, file, size)) as sending:
            for sent in sending:
                yield {"status": f"copying file {digest}", "digest": digest, "total": size, "completed": sent}
    return digest
