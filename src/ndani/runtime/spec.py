"""What a request needs of a runner, whether a running one can serve it, and how a new one starts. Values and arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ndani.engines import LaunchOptions
from ndani.settings import Settings
from ndani.types import Details

#: Tokens of context where nobody says how many.
DEFAULT_CTX = 4096
MIN_CTX = 4
#: The least batch of a model with a projector: in some (Gemma 3) all tokens of an image attend to each other, so they must come in
#: one batch, and there are up to 256.
IMAGE_BATCH = 256
#: The least context of such a model, as in Ollama: one image may take a thousand tokens.
MIN_IMAGE_CTX = 2048
#: Appended to the key of a chat model that is loaded for embeddings: a runner does either text or embeddings.
EMBEDDING_KEY_SUFFIX = "/vectors"


def batch_size(cores: int, slots: int) -> int:
    """How many prompt tokens an engine processes between two checks whether its client is still connected.

    A small model processes about 120 prompt tokens a second per core, and noticing a disconnect can take two batches. 32 tokens
    per core keep that near half a second, and cost a tenth of the prompt speed that 256 give. llama.cpp aborts when the batch
    is smaller than the number of slots.
    """
    return max(min(32 * cores, 256), slots)


def default_num_ctx(settings: Settings) -> int:
    """The context of a request when neither it nor its model sets one: that of the settings, else DEFAULT_CTX."""
    return settings.context_length if settings.context_length > 0 else DEFAULT_CTX


def default_options(engine: str, settings: Settings, cores: int, slots: int) -> LaunchOptions:
    """How a runner of an engine starts when neither a request nor its model sets an option."""
    return LaunchOptions(
        engine,
        slots=slots,
        num_ctx=default_num_ctx(settings),
        num_batch=batch_size(cores, slots),
        num_thread=settings.num_thread if settings.num_thread > 0 else cores,
        num_gpu=settings.num_gpu,
        flash_attention=settings.flash_attention,
        kv_cache_type=settings.kv_cache_type,
    )


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """A model and what one request needs of its runner. `None` means that the request accepts any value.

    `key` identifies a runner (the digests of the weights, of their adapter and of their projector), `size` is the size of these
    files in bytes, `kv_bytes` is the size of one token of context in bytes.
    """

    key: str
    name: str
    digest: str
    details: Details
    weights: Path | None
    size: int
    kv_bytes: int
    trained_ctx: int
    engine: str
    adapter: Path | None = None
    projector: Path | None = None
    num_ctx: int | None = None
    num_batch: int | None = None
    num_thread: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    embedding: bool = False
    pooling: str = ""

    def can_use(self, running: LaunchOptions) -> bool:
        """Whether a runner with these options can serve the request: a restart for the request would change none of its options.

        The batch size of a runner for embeddings is no reason for a restart: it changes no vector.
        """
        options = self._options(running)
        if self.embedding:
            options["num_batch"] = running.num_batch
        return all(getattr(running, option) == value for option, value in options.items())

    def launch_options(self, previous: LaunchOptions | None, defaults: LaunchOptions) -> LaunchOptions:
        """How the runner should start: with the request's options, else with those of the `previous` runner, else with `defaults`."""
        # A first runner gets exactly the requested context; only a restart because of too little context gives more.
        fresh = replace(defaults, num_ctx=self._cap(defaults.num_ctx if self.num_ctx is None else self.num_ctx))
        previous = replace(previous or fresh, engine=self.engine, embedding=self.embedding, pooling=self.pooling, slots=defaults.slots)
        return replace(previous, **self._options(previous))

    def needs_more_context_than(self, other: RunnerSpec) -> bool:
        """Whether this request needs more context than another request for the same model."""
        return self.num_ctx is not None and (other.num_ctx is None or other.num_ctx < self.num_ctx)

    def _options(self, previous: LaunchOptions) -> dict[str, Any]:
        """The options of a runner that replaces the `previous` one for this request. Options that the request leaves open are kept."""
        options = {
            option: value for option in ("num_thread", "num_gpu", "main_gpu", "use_mmap") if (value := getattr(self, option)) is not None
        }
        num_ctx, num_batch = previous.num_ctx, previous.num_batch
        if self.num_ctx is not None and self._cap(self.num_ctx) > previous.num_ctx:  # a runner with more context can serve it too
            # Round up to a power of two, so that a growing conversation restarts its runner only a few times.
            num_ctx = self._cap(1 << (self._cap(self.num_ctx) - 1).bit_length())
        if self.num_batch is not None:
            num_batch = max(self.num_batch, 1)
        if self.projector is not None:
            num_batch = max(num_batch, IMAGE_BATCH)
        if self.embedding and self.pooling != "last":
            num_batch = max(num_batch, num_ctx)  # each token attends to all others: a text must be processed in one batch
        return options | {"num_ctx": num_ctx, "num_batch": num_batch}

    def _cap(self, num_ctx: int) -> int:
        return max(MIN_CTX, min(num_ctx, self.trained_ctx) if self.trained_ctx else num_ctx)
