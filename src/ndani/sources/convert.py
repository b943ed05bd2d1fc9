"""A layer that is made here: a checkpoint that has come, converted to the file that the engine reads. Runs in the fetcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from ndani.errors import BadRequest, SourceFailed
from ndani.sources import PlannedLayer
from ndani.store import Store
from ndani.store.blobs import Mismatch
from ndani.store.disk import require_room
from ndani.types import Progress


async def make(store: Store, layer: PlannedLayer) -> AsyncGenerator[Progress, None]:
    """Convert what `layer` is made from, whose blobs must be here; its lock must be held. Consume it under aclosing.

    What comes out has a pinned digest, as if it had travelled: the same files give the same bytes. Raises SourceFailed
    when they do not, StoreFailed.
    """
    from ndani.convert.checkpoint import prepare  # numpy is loaded when it is needed: most pulls convert nothing

    require_room(store.layout.root, layer.size)
    partial = store.partial(layer.digest, layer.size)
    try:
        made = prepare({name: store.layout.blob(one.digest) for name, one in layer.made})
        for written in made.write(partial):
            yield Progress("converting model", layer.digest, made.size, written)
            await asyncio.sleep(0)
        partial.finish()
    except (Mismatch, BadRequest):
        partial.discard()
        raise SourceFailed(
            "the weights were converted to another file than the catalogue names; pull again, and report it if it stays"
        ) from None
    except BaseException:
        partial.discard()  # half a second of work: nothing to go on with
        raise
