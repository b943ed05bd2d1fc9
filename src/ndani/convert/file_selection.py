"""Which of many files are the model: a training program leaves earlier states, other forms and its own notes beside it. Pure.

The outermost weights are the model, and of these the ones that its publishers' library would read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ndani.errors import BadRequest
from ndani.store.file_formats import GGML, GGUF, PYTORCH, SAFETENSORS
from ndani.store.parameters import short

SUFFIX = ".safetensors"
MIXED_MODELS = "there are safetensors and another model; FROM takes one of them"
_WHOLE, _PART = "model.safetensors", re.compile(r"model-\d{5}-of-\d{5}\.safetensors\Z")
#: The one file that is read out of a folder beside the weights: how a BERT's vectors become one.
_BESIDE = "config.json"


def holds_tensors(name: str, form: str) -> bool:
    """Whether a file is safetensors: by its form, or by its name where that is damaged, which is then to be said."""
    return form == SAFETENSORS or (form != GGUF and name.endswith(SUFFIX))


def preferred_weights(names: Iterable[str]) -> list[str]:
    """Of the safetensors files of one folder those that count: the one whole file, its parts, what is called `model…`, or all."""
    every = sorted(names)
    if _WHOLE in every:
        return [_WHOLE]
    return [name for name in every if _PART.match(name)] or [name for name in every if name.startswith("model")] or every


def choose_files(forms: Mapping[str, str]) -> dict[str, str]:
    """The files of the outermost checkpoint, by the names that they have in its own folder: its weights, and what lies beside them.

    `forms` are forms by relative path. Nothing, where a GGUF file lies further out, or there are no safetensors. Raises
    BadRequest for several models side by side.
    """
    weights = [path for path, form in forms.items() if holds_tensors(path, form)]
    if not weights:
        return {}
    depth = min(path.count("/") for path in weights)
    models = [path.count("/") for path, form in forms.items() if form == GGUF]
    if models and min(models) <= depth:
        if min(models) == depth:
            raise BadRequest(MIXED_MODELS)
        return {}
    folders = sorted({_folder(path) for path in weights if path.count("/") == depth})
    if len(folders) > 1:
        both = f"{short(folders[0])} and {short(folders[1])}"
        raise BadRequest(f"there are weights in {both}, and none beside them; give one of these folders")
    inside = {path.removeprefix(folders[0]): form for path, form in forms.items() if path.startswith(folders[0])}
    counts = preferred_weights(name for name, form in inside.items() if "/" not in name and holds_tensors(name, form))
    beside = [name for name, form in inside.items() if _is_beside(name, form)]
    return {name: folders[0] + name for name in (*counts, *beside)}


def _is_beside(name: str, form: str) -> bool:
    """Whether a file may say something of the weights: no weights itself, and of other folders only what is read out of them."""
    folder, _, base = name.rpartition("/")
    return not holds_tensors(name, form) and form not in (GGUF, GGML, PYTORCH) and (not folder or base == _BESIDE)


def _folder(path: str) -> str:
    """The folder of a file, with its last slash; nothing for one that lies outermost."""
    return path[: path.rfind("/") + 1]
