"""A blob that a client uploads: written and hashed in a separate file, which is renamed when it is complete and correct.

Two clients that upload the same blob at once both succeed: each writes its own file, and the rename is atomic. No lock is
held during the upload, so a slow client does not delay a pull of the same blob.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ndani.background import run_in_thread
from ndani.errors import BadRequest
from ndani.store.blobs import CHUNK_SIZE, DigestMismatch, PartialBlob
from ndani.store.disk import require_free_space
from ndani.store.layout import normalize_digest
from ndani.store.store import Store


async def receive(store: Store, digest: str, size: int, chunks: AsyncIterator[bytes]) -> bool:
    """Store `chunks` as the blob `digest`. False when the store has it already; then nothing is read.

    `size` is the announced number of bytes, 0 if unknown. Raises BadRequest for an invalid or wrong digest, StoreFailed for
    the disk. On any exception, also one from `chunks`, the file is removed.
    """
    digest = normalize_digest(digest)
    if await run_in_thread(store.blobs.is_intact, digest):
        return False
    partial = store.open_upload(digest, size)
    try:
        await run_in_thread(require_free_space, store.layout.root, size)
        buffer = bytearray()
        async for chunk in chunks:
            buffer += chunk
            if len(buffer) >= CHUNK_SIZE:
                await run_in_thread(partial.write, bytes(buffer))
                buffer = bytearray()
        await run_in_thread(_finish, partial, bytes(buffer))
    except DigestMismatch as error:
        raise BadRequest(f'digest mismatch, expected "{error.expected}", got "{error.actual}"') from None
    except BaseException:
        await run_in_thread(partial.discard)
        raise
    return True


def _finish(partial: PartialBlob, last: bytes) -> None:
    partial.write(last)
    partial.finish()
