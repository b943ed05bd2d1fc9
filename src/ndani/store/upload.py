"""A blob that a client sends: hashed while it is written, to a file of its own, and named when it is whole and right.

Two that send the same at once both succeed: each writes its own file, and the rename is one step. No lock is held in
the meantime, so that a client who dawdles keeps no pull of the same blob waiting.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ndani.errors import BadRequest
from ndani.store.blobs import CHUNK_SIZE, DigestMismatch, PartialBlob
from ndani.store.disk import require_free_space
from ndani.store.layout import normalize_digest
from ndani.store.library import Store
from ndani.store.threads import run_in_thread


async def receive(store: Store, digest: str, size: int, pieces: AsyncIterator[bytes]) -> bool:
    """Store what `pieces` bring as the blob `digest`; False when it was there already (then nothing is read).

    `size` is how many bytes are said to come, 0 where nobody said. Raises BadRequest for a digest that is none or is
    another, StoreFailed for the disk; whatever is raised, by `pieces` too, nothing of it stays.
    """
    digest = normalize_digest(digest)
    if await run_in_thread(store.blobs.is_intact, digest):
        return False
    partial = store.open_upload(digest, size)
    try:
        await run_in_thread(require_free_space, store.layout.root, size)
        held = bytearray()
        async for piece in pieces:
            held += piece
            if len(held) >= CHUNK_SIZE:
                await run_in_thread(partial.write, bytes(held))
                held = bytearray()
        await run_in_thread(_finish, partial, bytes(held))
    except DigestMismatch as error:
        raise BadRequest(f'digest mismatch, expected "{error.expected}", got "{error.actual}"') from None
    except BaseException:
        await run_in_thread(partial.discard)
        raise
    return True


def _finish(partial: PartialBlob, last: bytes) -> None:
    partial.write(last)
    partial.finish()
