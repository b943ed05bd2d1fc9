"""Which of many files are the model: training programs leave checkpoints, other formats and notes beside it. Pure.

The weights nearest to the top folder are the model, and of these the ones that its publishers' library would read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ndani.errors import BadRequest
from ndani.store.file_formats import GGML, GGUF, PYTORCH, SAFETENSORS
from ndani.store.parameters import excerpt

SUFFIX = ".safetensors"
MIXED_MODELS = "there are safetensors and another model; FROM takes one of them"
_SINGLE_FILE, _PART = "model.safetensors", re.compile(r"model-\d{5}-of-\d{5}\.safetensors\Z")
#: The only file that is read from a folder beside the weights: how a BERT pools its vectors.
_SUBFOLDER_FILE = "config.json"


def holds_tensors(name: str, file_format: str) -> bool:
    """Whether a file is safetensors: by its format, or by its name when it is damaged, so that the damage gets reported."""
    return file_format == SAFETENSORS or (file_format != GGUF and name.endswith(SUFFIX))


def preferred_weights(names: Iterable[str]) -> list[str]:
    """The safetensors files of one folder to read: the single file, else its parts, else those called `model…`, else all."""
    ordered = sorted(names)
    if _SINGLE_FILE in ordered:
        return [_SINGLE_FILE]
    return [name for name in ordered if _PART.match(name)] or [name for name in ordered if name.startswith("model")] or ordered


def choose_files(formats: Mapping[str, str]) -> dict[str, str]:
    """The files of the checkpoint nearest to the top: its weights and the files beside them, as {name in its folder: path}.

    `formats` are file formats by relative path. Empty when a GGUF file is nearer to the top, or there are no safetensors.
    Raises BadRequest for several models side by side.
    """
    weights = [path for path, file_format in formats.items() if holds_tensors(path, file_format)]
    if not weights:
        return {}
    depth = min(path.count("/") for path in weights)
    gguf_depths = [path.count("/") for path, file_format in formats.items() if file_format == GGUF]
    if gguf_depths and min(gguf_depths) <= depth:
        if min(gguf_depths) == depth:
            raise BadRequest(MIXED_MODELS)
        return {}
    folders = sorted({_folder(path) for path in weights if path.count("/") == depth})
    if len(folders) > 1:
        both = f"{excerpt(folders[0])} and {excerpt(folders[1])}"
        raise BadRequest(f"there are weights in {both}, and none beside them; give one of these folders")
    folder = folders[0]
    inside = {path.removeprefix(folder): file_format for path, file_format in formats.items() if path.startswith(folder)}
    chosen = preferred_weights(name for name, file_format in inside.items() if "/" not in name and holds_tensors(name, file_format))
    metadata = [name for name, file_format in inside.items() if _is_metadata(name, file_format)]
    return {name: folder + name for name in (*chosen, *metadata)}


def _is_metadata(name: str, file_format: str) -> bool:
    """Whether a file may describe the weights: it holds no weights, and in a subfolder it is the one file that is read there."""
    folder, _, base = name.rpartition("/")
    is_weights = holds_tensors(name, file_format) or file_format in (GGUF, GGML, PYTORCH)
    return not is_weights and (not folder or base == _SUBFOLDER_FILE)


def _folder(path: str) -> str:
    """The folder of a path, with a trailing slash; empty for a file at the top."""
    return path[: path.rfind("/") + 1]
