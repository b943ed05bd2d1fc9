"""Which GGUF files of a hub's repository, or of a folder, a tag means. Pure.

A file is called `model-Q4_K_M.gguf`, a large one `model-Q4_K_M-00001-of-00003.gguf` and so on. The tag is the quantisation,
in any letter case, or the whole name of the file. Where the name does not have it, the folder does (`Q8_0/model.gguf`).
Companion files of a model, such as a draft model for speculative decoding, do not count as models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ndani.errors import NotFound, SourceFailed
from ndani.names import DEFAULT_TAG

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\Z")
_QUANTIZATION = re.compile(r"(?:\A|[-_.])((?:UD-)?(?:I?Q|TQ)\d(?:_[A-Z0-9]+)*|MXFP4(?:_[A-Z]+)*|BF16|FP?16|FP?32)\Z", re.IGNORECASE)
#: Words in the names of companion files: the projector for images, the importance matrix of the quantisation.
_COMPANION_WORDS = ("mmproj", "imatrix")
#: Draft models: `mtp-model.gguf`, `model-Q8_0-MTP.gguf` (a model's own name may contain the word before the
#: quantisation), and everything in a folder with such a name.
_DRAFT_PREFIX = re.compile(r"(?:mtp|dflash|dspark|draft(?:er)?|eagle[23]?)[-_.]", re.IGNORECASE)
_DRAFT_FOLDER = re.compile(r"(?:mtp|dflash|dspark|draft(?:er)?s?|eagle[23]?|speculative|mmproj)\Z", re.IGNORECASE)
_DRAFT_SUFFIX = re.compile(r"[-_.](?:mtp|draft(?:er)?)\Z", re.IGNORECASE)
_MAX_LISTED_TAGS = 20  # in the error for a tag that does not exist


def group(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The models among these paths, in the given order: the sorted files of each, by stem (`stem_of`).

    A model that is there several times, as one file and as shards, is one entry with all files. Draft models count only where
    there is nothing else.
    """
    models = [
        path for path in files if path.lower().endswith(".gguf") and not any(word in _file_name(path).lower() for word in _COMPANION_WORDS)
    ]
    matching: dict[str, list[str]] = {}
    for path in [path for path in models if not _is_draft(path)] or models:
        matching.setdefault(stem_of(path), []).append(path)
    return {stem: tuple(sorted(paths, key=lambda path: (path.count("/"), path))) for stem, paths in matching.items()}


def pick(files: Iterable[str], tag: str, location: str) -> tuple[str, ...]:
    """The files of the model that a tag means, shards in order; `latest` is Q4_K_M, else the first.

    Raises NotFound, naming the tags in `location`; SourceFailed when shards are missing.
    """
    models = group(files)
    wanted = tag.lower().removesuffix(".gguf")
    if wanted == DEFAULT_TAG:
        best = _stems_ending_in(models, "q4_k_m") or list(models)
    else:
        best = [stem for stem in models if stem.lower() == wanted] or _stems_ending_in(models, wanted)
        best = best or [stem for stem, paths in models.items() if _file_name(_without_shard_number(paths[0])).lower() == wanted]
    if not best:
        tags = sorted({(_QUANTIZATION.search(stem) or [stem, stem])[1] for stem in models})
        others = f" and {len(tags) - _MAX_LISTED_TAGS} more" if len(tags) > _MAX_LISTED_TAGS else ""
        raise NotFound(f"{location} has no {tag}; it has {', '.join(tags[:_MAX_LISTED_TAGS])}{others}")
    return _complete(models[best[0]])


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _without_shard_number(path: str) -> str:
    """A path without the number of a shard."""
    shard = _SHARD.match(path[:-5])
    return shard[1] if shard else path[:-5]


def stem_of(path: str) -> str:
    """The key of a model: its file name, with the quantisation added where only its folder has it."""
    *folders, name = _without_shard_number(path).split("/")
    if not _QUANTIZATION.search(name):
        for folder in reversed(folders):
            if match := _QUANTIZATION.search(folder):
                return f"{name}-{match[1]}"
    return name


def _is_draft(path: str) -> bool:
    *folders, name = _without_shard_number(path).split("/")
    without_suffix = _DRAFT_SUFFIX.sub("", name)
    return bool(
        _DRAFT_PREFIX.match(name)
        or any(map(_DRAFT_FOLDER.match, folders))
        or (without_suffix != name and _QUANTIZATION.search(without_suffix))
    )


def _stems_ending_in(models: dict[str, tuple[str, ...]], wanted: str) -> list[str]:
    """Stems that end in this quantisation, the shortest first."""
    spellings = {wanted, re.sub(r"(?<![a-z])fp(?=16|32)", "f", wanted), re.sub(r"(?<![a-z])f(?=16|32)", "fp", wanted)}
    matching = [stem for stem in models if any(re.search(rf"(\A|[-_.]){re.escape(spelling)}\Z", stem.lower()) for spelling in spellings)]
    return sorted(matching, key=len)


def _complete(paths: tuple[str, ...]) -> tuple[str, ...]:
    """One file if there is one, else all shards of a complete set."""
    sets: dict[tuple[str, int], dict[int, str]] = {}
    for path in paths:
        if not (shard := _SHARD.match(path[:-5])):
            return (path,)
        sets.setdefault((shard[1], int(shard[3])), {})[int(shard[2])] = path
    for (_, count), parts in sets.items():
        if parts.keys() == set(range(1, count + 1)):
            return tuple(parts[number] for number in sorted(parts))
    (_, count), _ = next(iter(sets.items()))
    raise SourceFailed(f"{paths[0]} is one of {count} parts, and not all of them are there; choose another tag")
