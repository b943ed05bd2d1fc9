"""The weights that a client sends for `create` as safetensors, made one GGUF blob before the model is made of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from ndani.errors import BadRequest
from ndani.store import Store
from ndani.store.create import Recipe, check_files
from ndani.store.making import Making
from ndani.store.offloop import stepped
from ndani.types import Progress

_SUFFIX = ".safetensors"


class Conversion:
    """One recipe whose weights are safetensors: run `steps` to the end, then `recipe` is made of GGUF."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store = store
        self.recipe = recipe

    @staticmethod
    def needed(recipe: Recipe) -> bool:
        """Whether there is anything to convert."""
        return any(path.endswith(_SUFFIX) for path in recipe.files)

    async def steps(self) -> AsyncGenerator[Progress]:
        """Convert, in a thread; closing it stops the work and leaves nothing behind. Raises BadRequest, Unsupported, StoreFailed."""
        async with aclosing(stepped(self._convert())) as steps:
            async for step in steps:
                yield step

    def _convert(self) -> Generator[Progress]:
        check_files(self.recipe)
        if self.recipe.base is not None or any(path.lower().endswith(".gguf") for path in self.recipe.files):
            raise BadRequest("there are safetensors and another model; FROM takes one of them")
        from ndani.convert.checkpoint import prepare  # numpy is loaded by whoever needs it, and by nobody else

        with self._store.claim(set(self.recipe.files.values())):
            made = prepare(_places(self._store, self.recipe.files))
            out = Making(self._store, made.size)
            try:
                for written in made.write(out):
                    yield Progress("converting model", total=made.size, completed=written)
                digest = out.finish()
            finally:
                out.discard()
        self.recipe = replace(self.recipe, files={"model.gguf": digest}, made=frozenset({digest} if out.fresh else ()))


def _places(store: Store, files: Mapping[str, str]) -> dict[str, Path]:
    """Where the files of a recipe lie. Raises BadRequest for one that was not sent."""
    places = {path: store.layout.blob(digest) for path, digest in files.items()}
    for path, place in places.items():
        if not place.is_file():
            raise BadRequest(f"the file {path} ({files[path]}) is not here; send it to /api/blobs/{files[path]} first")
    return places
