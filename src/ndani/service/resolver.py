"""What every request needs to know of a model, and what it asks of a runner: a name, a ResolvedModel, a RunnerSpec."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from ndani import names
from ndani.engines import EngineSpec, engine_for
from ndani.engines.sampling import parse_options
from ndani.errors import BadName, BadRequest, Forbidden, NotFound, Unsupported
from ndani.prompts import ChatTemplate, read_template
from ndani.runtime.hardware import processors
from ndani.runtime.spec import DEFAULT_CTX, EMBEDDING_KEY_SUFFIX, RunnerSpec
from ndani.settings import Settings
from ndani.store import Store, StoredModel
from ndani.types import Sampling

#: Prompt tokens between two looks at the client: a smaller batch than this gains nothing.
MOST_BATCH = 512
LEAST_BATCH = 32

#: A keep-alive above this is for ever: Go's longest duration, in seconds; no calendar shows the date it would end on.
FOREVER = 2**63 / 1e9

#: Models that the service remembers what it needs to know of.
MOST_MODELS = 1000


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What every request needs to know of a model; `spec` has what is the same for all its requests."""

    entry: StoredModel
    engine: EngineSpec
    options: Sampling
    spec: RunnerSpec
    template: ChatTemplate
    native: bool  # its weights hold a chat template, and the engine applies it
    unobeyed: tuple[str, ...]  # names of what its config asks for and nothing here obeys: renderer, parser
    capabilities: frozenset[str]  # Ollama's words: completion, embedding, tools, insert, vision, thinking, …


class ModelResolver:
    """The models of a store, as requests ask for them.

    `renewed` is called with the key of a runner whose weights were damaged when it loaded them and are whole now.
    """

    def __init__(self, settings: Settings, store: Store, renewed: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self.store = store
        self._renewed = renewed
        self._models: dict[tuple[names.Name, str, int], ResolvedModel] = {}
        self._files: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {}

    def find(self, model: str, missing: str, remote: str = "remote model is unavailable") -> StoredModel:
        """The model of a name. Raises NotFound in the words of `missing`, BadName, Forbidden in those of `remote` for Ollama's cloud."""
        if not model:
            raise NotFound("model '' not found")
        name = names.parse(model)
        if _in_cloud(name):
            raise Forbidden(f"ollama cloud is disabled: {remote}")
        return self.store.find(name, missing=missing)

    async def resolve(self, entry: StoredModel) -> ResolvedModel:
        """What every request needs to know of a model, worked out once for each content that a name has had."""
        key = (entry.name, entry.digest, self.store.generation)
        if key not in self._models:
            if len(self._models) >= MOST_MODELS:
                self._models.clear()
                self._files.clear()
            model, files = await asyncio.to_thread(lambda: (self._resolve(entry), _files(entry)))
            since, loaded = self._files.get(model.spec.key, (key[2], files))
            if since != key[2] and loaded != files:
                self._renewed(model.spec.key)
            self._files[model.spec.key] = key[2], files
            self._models[key] = model
        return self._models[key]

    def _resolve(self, entry: StoredModel) -> ResolvedModel:
        engine = engine_for(entry.config.model_format)
        if entry.projector and not engine.projectors:
            raise Unsupported("models with a projector are not in this version")
        if entry.adapter and not engine.adapters:
            raise Unsupported(f"models with an adapter are not in this version of the engine {engine.name}")
        listed, header = self.store.describe(entry), self.store.header(entry)
        embeds = "embedding" in listed.capabilities
        sees_all = embeds and header.keys.get(f"{header.architecture}.attention.causal") is False
        spec = RunnerSpec(
            key=runner_key(entry),
            name=str(entry.name),
            digest=entry.digest,
            details=listed.details,
            weights=entry.weights_path,
            size=entry.weights.size + (entry.adapter_layer.size if entry.adapter_layer else 0),
            adapter=entry.adapter,
            # A model that looks at a text as a whole keeps nothing of it for the next token.
            kv_bytes=0 if sees_all else header.kv_bytes_per_token(self.settings.kv_cache_type),
            trained_ctx=header.context_length,
            engine=engine.name,
            embedding=embeds,
        )
        native = engine.chat_template and header.chat_template is not None
        # With a renderer of Ollama's own its template is a stopgap that says nothing; the weights know better.
        template = read_template(None if native and entry.config.renderer else entry.template)
        if template.error:
            wrong = f"the model {entry.name} has a template that cannot be used ({template.error})"
            template = ChatTemplate(error=f"{wrong}; create it again with another one")
        return ResolvedModel(
            entry, engine, _own_options(entry), spec, template, native, tuple(entry.config.unobeyed), frozenset(listed.capabilities)
        )

    def spec(self, model: ResolvedModel, sampling: Sampling) -> RunnerSpec:
        """What a request needs of a runner: said by it, else by the model, else by the settings."""
        default = self.settings.context_length if self.settings.context_length > 0 else DEFAULT_CTX
        return replace(
            model.spec,
            num_ctx=sampling.num_ctx or default,
            # llama.cpp aborts with a batch smaller than its slots, and looks for a client that left only between two.
            num_batch=None
            if sampling.num_batch is None
            else max(min(sampling.num_batch, MOST_BATCH), self.settings.num_parallel, LEAST_BATCH),
            # Each waits for all others after every step: 512 on two processors took seconds for a token, from everybody else too.
            num_thread=min(sampling.num_thread, processors()) if sampling.num_thread and sampling.num_thread > 0 else None,
            num_gpu=None if sampling.num_gpu == -1 else sampling.num_gpu,
            main_gpu=sampling.main_gpu,
            use_mmap=sampling.use_mmap,
        )

    def spec_for_vectors(self, model: ResolvedModel, sampling: Sampling) -> RunnerSpec:
        """The same for vectors of texts. A model that speaks has a runner of its own for them. Raises Unsupported."""
        if not model.engine.embeddings:
            raise Unsupported(f'"{model.spec.name}" does not support embeddings')
        spec = self.spec(model, sampling)
        return spec if spec.embedding else replace(spec, key=spec.key + EMBEDDING_KEY_SUFFIX, embedding=True, pooling="last")

    def keep_alive(self, asked: float | None) -> float:
        """Seconds that a model stays after a request: what it said, else the settings; negative for ever."""
        seconds = self.settings.keep_alive if asked is None else asked
        return -1.0 if seconds > FOREVER else seconds


def require_local(name: names.Name) -> None:
    """Refuse a name that nobody could ask for: it stands for a model of Ollama's cloud. Raises BadName."""
    if _in_cloud(name):
        raise BadName(f"the name {name} is one of Ollama's cloud, and nobody could use it here; choose a tag that does not end in cloud")


def _in_cloud(name: names.Name) -> bool:
    return name.tag.lower() == "cloud" or name.tag.lower().endswith("-cloud")


def abilities(template: str) -> set[str]:
    """What a Go template makes a model capable of: any of tools, insert, thinking; nothing where it cannot be read."""
    return read_template(template).capabilities()


def _own_options(entry: StoredModel) -> Sampling:
    """A model's own options. Ollama stores wrong ones, too: that is the model's fault, and no request's. Raises BadRequest."""
    try:
        return parse_options(entry.params)[0]
    except BadRequest as error:
        raise BadRequest(f"the model {entry.name} has a PARAMETER that is wrong ({error}); create it again with a right one") from None


def _files(entry: StoredModel) -> tuple[tuple[int, int], ...]:
    """Which files a runner of this model has open: a damaged one that was replaced is another one now."""
    states = [path.stat() for path in (entry.weights_path, entry.adapter) if path and path.exists()]
    return tuple((state.st_ino, state.st_mtime_ns) for state in states)


def runner_key(entry: StoredModel) -> str:
    """Which models share a runner: those with the same weights and the same adapter over them, or none."""
    adapter = entry.adapter_layer
    return f"{entry.weights.digest}+{adapter.digest}" if adapter else entry.weights.digest
