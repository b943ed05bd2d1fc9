"""A runner on loan for one operation: what a runner that ends in the middle means while the server stops."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ndani.errors import EngineFailed, Failed
from ndani.runtime.pool import Pool
from ndani.runtime.residence import Lease
from ndani.runtime.spec import RunnerSpec


@asynccontextmanager
async def lend(pool: Pool, spec: RunnerSpec, keep_alive: float | None) -> AsyncGenerator[Lease]:
    """Lease a runner for the block. Raises Failed where the runner ended because the server does, and all that a lease raises."""
    async with pool.lease(spec, keep_alive) as lease:
        try:
            yield lease
        except EngineFailed:
            if pool.closing:
                raise Failed("the server is stopping") from None
            raise
