"""What a request needs of a runner, whether one that runs can serve it, and how one that cannot is started. Values and arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ndani.engines import Launch
from ndani.settings import Settings
from ndani.types import Details

DEFAULT_CTX = 4096
LEAST_CTX = 4
#: Behind the key of a model that speaks, when it is asked for vectors: the engine does one or the other.
VECTORS = "/vectors"


def batch(cores: int, slots: int) -> int:
    """Prompt tokens that an engine reads between two looks at whether its client is still there.

    A small model reads about 120 tokens a second per core, and a hang-up can wait for two batches: 32 per core keep
    that near half a second, for a tenth less prompt speed than 256. llama.cpp aborts with fewer than its slots.
    """
    return max(min(32 * cores, 256), slots)


def default_launch(settings: Settings, cores: int, slots: int) -> Launch:
    """How a runner starts where neither a request nor its model says otherwise; the engine is the request's to say."""
    return Launch(
        engine="",
        socket="",
        weights=-1,
        slots=slots,
        num_ctx=settings.context_length if settings.context_length > 0 else DEFAULT_CTX,
        num_batch=batch(cores, slots),
        num_thread=settings.num_thread if settings.num_thread > 0 else cores,
        num_gpu=settings.num_gpu,
        flash_attention=settings.flash_attention,
        kv_cache_type=settings.kv_cache_type,
    )


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """A model and what one request needs of its runner. `None`: the request does not mind.

    `key` says which runners are the same (the digests of the weights and of the adapter over them), `size` is the bytes
    of those files, `kv_bytes` is one token of context, in bytes.
    """

    key: str
    name: str
    digest: str
    details: Details
    weights: Path | None
    size: int
    kv_bytes: int
    trained_ctx: int
    engine: str = "llama"
    adapter: Path | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    embedding: bool = False
    pooling: str = ""

    def fits(self, launch: Launch) -> bool:
        """Whether a runner launched so can serve this: to start it again for this would change none of its options.

        The batch of a runner that makes vectors is no reason to start it again: it changes no vector.
        """
        options = self._options(launch)
        if self.embedding:
            options["num_batch"] = launch.num_batch
        return all(getattr(launch, option) == value for option, value in options.items())

    def launch(self, replaced: Launch | None, defaults: Launch) -> Launch:
        """How its runner should start: as asked, else as the runner that it replaces had it, else by `defaults`."""
        # A first runner gets the very context that is asked for; only one that was too small gets more than that.
        first = replace(defaults, num_ctx=self._capped(defaults.num_ctx if self.num_ctx is None else self.num_ctx))
        old = replace(replaced or first, engine=self.engine, embedding=self.embedding, pooling=self.pooling, slots=defaults.slots)
        return replace(old, **self._options(old))

    def asks_for_more_than(self, other: RunnerSpec) -> bool:
        """Whether this asks for more context than another request for the same model does."""
        return self.num_ctx is not None and (other.num_ctx is None or other.num_ctx < self.num_ctx)

    def _options(self, old: Launch) -> dict[str, Any]:
        """The options of a runner that is started for this in place of an old one. What this does not ask for stays as it was."""
        options = {
            option: asked for option in ("num_thread", "num_gpu", "main_gpu", "use_mmap") if (asked := getattr(self, option)) is not None
        }
        num_ctx, num_batch = old.num_ctx, old.num_batch
        if self.num_ctx is not None and self._capped(self.num_ctx) > old.num_ctx:  # one that has more than is asked for can serve it
            # To the next power of two, so that a conversation that grows restarts its runner a few times, and not each time.
            num_ctx = self._capped(1 << (self._capped(self.num_ctx) - 1).bit_length())
        if self.num_batch is not None:
            num_batch = max(self.num_batch, 1)
        if self.embedding and not self.pooling:
            num_batch = max(num_batch, num_ctx)  # each token looks at all others: a text is read in one go, or not at all
        return options | {"num_ctx": num_ctx, "num_batch": num_batch}

    def _capped(self, num_ctx: int) -> int:
        return max(LEAST_CTX, min(num_ctx, self.trained_ctx) if self.trained_ctx else num_ctx)
