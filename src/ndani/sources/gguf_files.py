"""Which of a place's GGUF files a tag means: pure, the same for a hub's repository and for a folder.

A file is called `model-Q4_K_M.gguf`, a large one `model-Q4_K_M-00001-of-00003.gguf` and so on; the tag is the
quantisation, however its letters are cased, or the whole name of the file. Where the name does not say it, the folder does
(`Q8_0/model.gguf`). What lies beside a model to go with it, such as a small one that drafts for it, is no model here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ndani.errors import NotFound, SourceFailed
from ndani.names import DEFAULT_TAG

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\Z")
_QUANT = re.compile(r"(?:\A|[-_.])((?:UD-)?(?:I?Q|TQ)\d(?:_[A-Z0-9]+)*|MXFP4(?:_[A-Z]+)*|BF16|FP?16|FP?32)\Z", re.IGNORECASE)
#: Files beside a model's weights: what reads images, what a quantiser was guided by.
_BESIDE = ("mmproj", "imatrix")
#: What drafts for a model: `mtp-model.gguf`, `model-Q8_0-MTP.gguf` (a model's own name may hold the word, before the
#: quantisation), anything in a folder of such a name.
_DRAFT = re.compile(r"(?:mtp|dflash|dspark|draft(?:er)?|eagle[23]?)[-_.]", re.IGNORECASE)
_DRAFTS = re.compile(r"(?:mtp|dflash|dspark|draft(?:er)?s?|eagle[23]?|speculative|mmproj)\Z", re.IGNORECASE)
_SUFFIX = re.compile(r"[-_.](?:mtp|draft(?:er)?)\Z", re.IGNORECASE)
_SOME = 20  # tags that are named to somebody who has asked for another


def group(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The models among these paths, in the order given: by stem (no number of a shard, a quantisation), their files in order.

    A model that is there several times, whole or in parts, is one with the files of all. Drafts are models only where
    there is nothing else.
    """
    models = [path for path in files if path.lower().endswith(".gguf") and not any(word in _name(path).lower() for word in _BESIDE)]
    found: dict[str, list[str]] = {}
    for path in [path for path in models if not _is_draft(path)] or models:
        found.setdefault(stem_of(path), []).append(path)
    return {stem: tuple(sorted(paths, key=lambda path: (path.count("/"), path))) for stem, paths in found.items()}


def pick(files: Iterable[str], tag: str, place: str) -> tuple[str, ...]:
    """The files of the model that a tag means, shards in order; `latest` is Q4_K_M, else the first.

    Raises NotFound naming what there is in `place`, SourceFailed when shards are missing.
    """
    models = group(files)
    wanted = tag.lower().removesuffix(".gguf")
    if wanted == DEFAULT_TAG:
        best = _ending(models, "q4_k_m") or list(models)
    else:
        best = [stem for stem in models if stem.lower() == wanted] or _ending(models, wanted)
        best = best or [stem for stem, paths in models.items() if _name(_bare(paths[0])).lower() == wanted]
    if not best:
        there = sorted({(_QUANT.search(stem) or [stem, stem])[1] for stem in models})
        more = f" and {len(there) - _SOME} more" if len(there) > _SOME else ""
        raise NotFound(f"{place} has no {tag}; it has {', '.join(there[:_SOME])}{more}")
    return _whole(models[best[0]])


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _bare(path: str) -> str:
    """A path without the number of a shard."""
    shard = _SHARD.match(path[:-5])
    return shard[1] if shard else path[:-5]


def stem_of(path: str) -> str:
    """What a model is told from others by: its name, with the quantisation that only its folder has."""
    *folders, name = _bare(path).split("/")
    if not _QUANT.search(name):
        for folder in reversed(folders):
            if quant := _QUANT.search(folder):
                return f"{name}-{quant[1]}"
    return name


def _is_draft(path: str) -> bool:
    *folders, name = _bare(path).split("/")
    bare = _SUFFIX.sub("", name)
    return bool(_DRAFT.match(name) or any(map(_DRAFTS.match, folders)) or (bare != name and _QUANT.search(bare)))


def _ending(models: dict[str, tuple[str, ...]], wanted: str) -> list[str]:
    """Stems that end in this quantisation, the plainest first."""
    alike = {wanted, re.sub(r"(?<![a-z])fp(?=16|32)", "f", wanted), re.sub(r"(?<![a-z])f(?=16|32)", "fp", wanted)}
    found = [stem for stem in models if any(re.search(rf"(\A|[-_.]){re.escape(word)}\Z", stem.lower()) for word in alike)]
    return sorted(found, key=len)


def _whole(paths: tuple[str, ...]) -> tuple[str, ...]:
    """One file if there is one, else all parts of one that is complete."""
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
