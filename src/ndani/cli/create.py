"""`ndani create`: parses a Modelfile, links or uploads its files by digest, and sends the create request.

The paths in a Modelfile are opened by this process, with the user's permissions, and are never sent to the server.
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
from ndani.cli.handover import link_into_store
from ndani.cli.output import emit
from ndani.control_characters import remove_invisible
from ndani.convert.file_selection import SUFFIX, holds_tensors, preferred_weights
from ndani.convert.quant_types import parse_kind
from ndani.errors import BadRequest, NdaniError, NotFound, Unsupported
from ndani.settings import expand, load
from ndani.store.file_formats import GGUF, LFS_POINTER, detect_format, wrong_format
from ndani.store.modelfile import Modelfile, check_grammar, parse, to_request
from ndani.store.parameters import excerpt

_CHUNK_BYTES = 1 << 20
_GATHERING = {"status": "gathering model components"}
_NO_FILES = "no Modelfile or safetensors files found"
_OTHER_WEIGHT_SUFFIXES = (".bin", ".pth", ".pt", ".onnx")
#: Suffixes of the files that describe weights, and the files with such a suffix that do not and may be large.
_METADATA_SUFFIXES, _TRAINING_NOTES = (".json", ".txt", ".jinja"), ("trainer_state.json",)


@click.command("create", cls=Command, usage="create MODEL", arity=exactly(1), help="Create a model")
@click.option("-f", "--file", "file", default="", shell_complete=complete_file, help='Name of the Modelfile (default "Modelfile")')
@click.option("-q", "--quantize", default="", help="Quantize model to this level (e.g. q4_K_M)")
def create(args: tuple[str, ...], file: str, quantize: str) -> None:
    """Create a model from a Modelfile, with its progress on stderr."""
    model = args[0]
    names.parse(model)
    if quantize:
        parse_kind(quantize)  # reports an unknown type before anything is sent
    path = expand(file or "Modelfile")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        if file:
            emit(_GATHERING["status"], err=True)
            raise NotFound(_NO_FILES) from None
        text = b"FROM .\n"  # as in Ollama: the weights in the current folder
    check_grammar(text)
    try:
        modelfile = parse(text)
        body, files = build_request(modelfile, path.parent)
        body |= {"quantize": quantize} if quantize else {}
    except NdaniError:
        emit(_GATHERING["status"], err=True)
        raise
    for warning in modelfile.warnings:
        emit(f"Warning: {warning}", err=True)
    settings = load()
    client = connect_or_start(settings)
    try:
        with contextlib.closing(_create_steps(client, settings.models, {"model": model, **body}, files)) as steps:
            progress.follow(itertools.chain([_GATHERING], steps), f"the server ended before {model} was made; create it again")
    except KeyboardInterrupt:
        emit(f"{model} was not made; what was sent stays for the next `ndani create {model}`", err=True)
        raise


def build_request(modelfile: Modelfile, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Path]]]:
    """A create request without its files, and the files: by field of the request, then by their name in the request.

    A FROM that exists as a path (relative to `folder`, or with ~) is a file, or a folder with a checkpoint or GGUF files;
    otherwise it is the name of a model. Raises BadRequest, NotFound, Unsupported.
    """
    body = to_request(modelfile)
    files: dict[str, dict[str, Path]] = {"files": {}, "adapters": {}}
    for value in modelfile.froms:
        paths = _resolve_files(value, folder)
        if paths is None:
            if "from" in body:
                raise BadRequest("there are two FROM lines with the name of a model; a model is made from one")
            body["from"] = remove_invisible(value)  # as in Ollama: a name that was copied from a page may contain invisible characters
        root = folder / expand(value)
        for path in paths or ():
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            files["files"][_unique_name(name, files["files"])] = path
    for value in modelfile.adapters:
        for path in _resolve_files(value, folder, adapter=True) or ():
            files["adapters"][_unique_name(path.name, files["adapters"])] = path
    if modelfile.drafts:
        raise Unsupported("DRAFT is not in this version of ndani; take the line out: the answers are the same without it")
    return body, files


def _resolve_files(value: str, folder: Path, adapter: bool = False) -> list[Path] | None:
    """The files that a FROM or an ADAPTER names, or None for the name of a model. Their first bytes tell their format."""
    path = folder / expand(value)
    try:
        path.stat()
    except PermissionError as error:
        raise NotFound(f"{excerpt(str(error.filename or value))} cannot be read ({error.strerror}); change its owner or mode") from None
    except (OSError, ValueError):  # for example too long for a path
        _require_name(value, adapter)
        return None
    if path.is_dir():
        return _files_of_model(value, path, adapter=adapter)
    if not path.is_file():
        _require_name(value, adapter)
        return None
    file_format = _format_of(path)
    if holds_tensors(path.name, file_format) and not adapter and file_format != LFS_POINTER:
        raise BadRequest(f"{excerpt(value)} is one file of a model; give FROM its folder, with config.json and the tokenizer's files")
    if file_format != GGUF:
        raise wrong_format(excerpt(value), file_format, adapter=adapter)
    return [path]


def _files_of_model(value: str, folder: Path, adapter: bool) -> list[Path]:
    """The files in a folder that make up a model, or an adapter. Raises NotFound, BadRequest, Unsupported."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        weights = [] if adapter else [path.name for path in paths if path.suffix == SUFFIX]
        if weights:
            return checkpoint_files(folder, paths)
        formats = {path: _format_of(path) for path in paths}
        subfolders = {path.parent.name for path in folder.glob("*/*") if path.suffix in (SUFFIX, ".gguf")}
    except PermissionError as error:
        raise NotFound(f"{excerpt(str(error.filename or value))} cannot be read ({error.strerror}); change its owner or mode") from None
    if models := [path for path in paths if formats[path] == GGUF]:
        return models
    if refused := next((path for path in paths if formats[path] or path.suffix == ".gguf"), None):
        raise wrong_format(refused.name, formats[refused], adapter)
    if subfolders:
        raise NotFound(f"the weights in {excerpt(value)} lie in folders of it; give one of them: {excerpt(', '.join(sorted(subfolders)))}")
    raise NotFound(_NO_FILES)


def _format_of(path: Path) -> str:
    """The format of a file. Raises NotFound when it cannot be read."""
    try:
        with path.open("rb") as file:
            return detect_format(file.fileno())
    except OSError as error:
        raise NotFound(f"{excerpt(str(path))} cannot be read ({error.strerror}); change its owner or mode") from None


def _require_name(value: str, adapter: bool) -> None:
    """Refuse a missing file whose value can only be a path: as the name of a model, its error message would be misleading."""
    if adapter or value.startswith((".", "/", "~")) or value.lower().endswith((".gguf", SUFFIX, *_OTHER_WEIGHT_SUFFIXES)):
        raise NotFound(
            f"the file {excerpt(value)} of {'ADAPTER' if adapter else 'FROM'} is not there; a path is relative to the Modelfile's folder"
        )


def checkpoint_files(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """The files to send of a folder with safetensors: the weights, and the files that describe them.

    Earlier checkpoints, other formats and the notes of a training program are not sent. Of a subfolder only `config.json`
    is sent, and only when the subfolder has no weights of its own.
    """
    by_name = {path.name: path for path in paths}
    weights = preferred_weights(name for name in by_name if name.endswith(SUFFIX))
    metadata = [path for name, path in by_name.items() if path.suffix in _METADATA_SUFFIXES and name not in _TRAINING_NOTES]
    nested_configs = [path for path in sorted(folder.glob("*/config.json")) if not _has_weights(path.parent)]
    return [*(by_name[name] for name in weights), *sorted([*metadata, *nested_configs])]


def _has_weights(folder: Path) -> bool:
    return any(path.suffix in (".gguf", SUFFIX, *_OTHER_WEIGHT_SUFFIXES) for path in folder.iterdir())


def _unique_name(name: str, used: dict[str, Path]) -> str:
    return name if name not in used else f"{len(used)}/{name}"


def _create_steps(client: ServerClient, models: Path, body: dict[str, Any], files: dict[str, dict[str, Path]]) -> Generator[dict[str, Any]]:
    """Link or upload the files that the server lacks, send the create request, and yield each step."""
    for field, paths in files.items():
        digests = {}
        for name, path in paths.items():
            with path.open("rb") as file:
                linked_digest = yield from link_into_store(client, models, path, file)
                digests[name] = linked_digest or (yield from _upload_if_missing(client, path, file))
        if digests:
            body[field] = digests
    with contextlib.closing(client.stream("/api/create", body)) as events:
        yield from events


def _upload_if_missing(client: ServerClient, path: Path, file: BinaryIO) -> Generator[dict[str, Any], None, str]:
    """Upload a file unless the server already has it, and return its digest."""
    size, hasher, bytes_read = path.stat().st_size, hashlib.sha256(), 0
    while chunk := file.read(_CHUNK_BYTES):
        hasher.update(chunk)
        bytes_read += len(chunk)
        yield {"status": f"reading {path.name}", "total": size, "completed": bytes_read}
    digest = f"sha256:{hasher.hexdigest()}"
    route = f"/api/blobs/{digest}"
    try:
        client.request_empty("HEAD", route)
    except NotFound:
        file.seek(0)
        with contextlib.closing(client.upload(route, file, size)) as sending:
            for sent in sending:
                yield {"status": f"copying file {digest}", "digest": digest, "total": size, "completed": sent}
    return digest
