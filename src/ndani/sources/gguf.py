"""Which of a place's GGUF files a tag means: pure, the same for a hub's repository and for a folder.

A file is called `model-Q4_K_M.gguf`, a large one `model-Q4_K_M-00001-of-00003.gguf` and so on; the tag is the
quantisation, however its letters are cased, or the whole name of the file.
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
_SOME = 20  # tags that are named to somebody who has asked for another


def group(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The models among these paths, in the order given: by stem (no folder, no number of a shard), their files in order."""
    found: dict[str, list[str]] = {}
    for path in files:
        name = path.rpartition("/")[2]
        if not name.lower().endswith(".gguf") or any(word in name.lower() for word in _BESIDE):
            continue
        stem = name[:-5]
        if shard := _SHARD.match(stem):
            stem = shard[1]
        found.setdefault(stem, []).append(path)
    return {stem: tuple(sorted(paths)) for stem, paths in found.items()}


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
    if not best:
        there = sorted({(_QUANT.search(stem) or [stem, stem])[1] for stem in models})
        more = f" and {len(there) - _SOME} more" if len(there) > _SOME else ""
        raise NotFound(f"{place} has no {tag}; it has {', '.join(there[:_SOME])}{more}")
    return _whole(models[best[0]])


def _ending(models: dict[str, tuple[str, ...]], wanted: str) -> list[str]:
    """Stems that end in this quantisation, the plainest first."""
    alike = {wanted, re.sub(r"(?<![a-z])fp(?=16|32)", "f", wanted), re.sub(r"(?<![a-z])f(?=16|32)", "fp", wanted)}
    found = [stem for stem in models if any(re.search(rf"(\A|[-_.]){re.escape(word)}\Z", stem.lower()) for word in alike)]
    return sorted(found, key=len)


def _whole(paths: tuple[str, ...]) -> tuple[str, ...]:
    shards = [_SHARD.match(path[:-5]) for path in paths]
    if not shards[0]:
        return paths[:1]
    count = int(shards[0][3])
    there = {int(shard[2]) for shard in shards if shard and int(shard[3]) == count}
    if there != set(range(1, count + 1)) or len(paths) != count:
        raise SourceFailed(f"{paths[0]} is one of {count} parts, and not all of them are there; choose another tag")
    return paths
