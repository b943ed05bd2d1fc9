"""From a model's name to what requests need: its files (StoredModel), its properties (ResolvedModel), its runner (RunnerSpec)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ndani import names
from ndani.engines import EngineSpec, engine_for
from ndani.engines.sampling import parse_options
from ndani.errors import BadName, BadRequest, Forbidden, NotFound, Unsupported
from ndani.prompts import ChatTemplate, read_template
from ndani.runtime.hardware import processors
from ndani.runtime.residence import without_end_of_time
from ndani.runtime.spec import EMBEDDING_KEY_SUFFIX, MIN_IMAGE_CTX, RunnerSpec, default_num_ctx
from ndani.service import model_ids
from ndani.settings import Settings
from ndani.store import Store, StoredModel
from ndani.store.answer_formats import PARSERS, AnswerFormat, format_of_chat_template, unserved
from ndani.types import Sampling

#: Bounds of a batch, in prompt tokens. Between two batches the engine checks whether the client left.
MAX_BATCH = 512
MIN_BATCH = 32

#: Resolved models in the cache.
MAX_CACHED_MODELS = 1000


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """What every request needs to know of a model. `spec` holds what is the same for all its requests."""

    entry: StoredModel
    engine: EngineSpec
    options: Sampling
    spec: RunnerSpec
    template: ChatTemplate
    has_rank_head: bool  # it scores documents for a query
    has_chat_template: bool  # its weights hold a chat template, and the engine applies it
    ignored_config: tuple[str, ...]  # fields of its config that have no effect after a template of the request: parser, or none
    answer_format: AnswerFormat  # how answers are read that the chat template in its weights leads to
    parser_format: AnswerFormat | None  # how answers are read after its TEMPLATE, where its config names one of Ollama's parsers
    unserved: str  # why it cannot be answered as its config asks, as a clause, or an empty text
    capabilities: frozenset[str]  # Ollama's words: completion, embedding, tools, insert, vision, thinking, …


class ModelResolver:
    """Finds the models of a store, and caches what requests need to know of them.

    `on_weights_replaced` is called with the key of a runner whose weights files were repaired after it had loaded them.
    """

    def __init__(self, settings: Settings, store: Store, on_weights_replaced: Callable[[str], None] = lambda _: None) -> None:
        self.settings = settings
        self.store = store
        self._on_weights_replaced = on_weights_replaced
        self._models: dict[tuple[names.Name, str, int], ResolvedModel] = {}
        self._names_by_id: dict[str, names.Name] = {}
        self._file_states: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {}

    def find(self, model: str, missing: str, remote: str = "remote model is unavailable") -> StoredModel:
        """The model of a name; where there is none, the one of an alias or an id (`model_ids`).

        Raises NotFound with the sentence `missing`, BadName, or Forbidden with `remote` for a cloud model.
        """
        try:
            return self.find_exactly(model, missing, remote)
        except (BadName, NotFound):
            if not model or not (entry := self._find_by_id(model)):
                raise
        return entry

    def _find_by_id(self, text: str) -> StoredModel | None:
        """The model of an alias or an id. Which one it was last time is remembered: with many models, looking at all takes a while."""
        if name := self._names_by_id.get(text):
            with contextlib.suppress(NotFound):
                return self.store.find(name)
        if not (name := model_ids.match(text, self.store.names())):
            return None
        if len(self._names_by_id) >= MAX_CACHED_MODELS:
            self._names_by_id.clear()
        self._names_by_id[text] = name
        return self.store.find(name)

    def find_exactly(self, model: str, missing: str, remote: str = "remote model is unavailable") -> StoredModel:
        """As `find`, but no alias: for what is made of the model, which could as well come from its source by that name."""
        if not model:
            raise NotFound("model '' not found")
        name = names.parse(model)
        if _in_cloud(name):
            raise Forbidden(f"ollama cloud is disabled: {remote}")
        return self.store.find(name, not_found=missing)

    async def resolve(self, entry: StoredModel) -> ResolvedModel:
        """What every request needs to know of a model; cached for each content that a name has had."""
        generation = self.store.generation
        key = (entry.name, entry.digest, generation)
        if key not in self._models:
            if len(self._models) >= MAX_CACHED_MODELS:
                self._models.clear()
                self._file_states.clear()
            model, files = await asyncio.to_thread(lambda: (self._resolve(entry), _file_states(entry)))
            known_generation, known_files = self._file_states.get(model.spec.key, (generation, files))
            if known_generation != generation and known_files != files:
                self._on_weights_replaced(model.spec.key)
            self._file_states[model.spec.key] = generation, files
            self._models[key] = model
        return self._models[key]

    def _resolve(self, entry: StoredModel) -> ResolvedModel:
        engine = engine_for(entry.config.model_format)
        if entry.projector and not engine.projectors:
            raise Unsupported(f"models with a projector are not in this version of the engine {engine.name}")
        if entry.adapter and not engine.adapters:
            raise Unsupported(f"models with an adapter are not in this version of the engine {engine.name}")
        listing, header = self.store.describe(entry), self.store.header(entry)
        is_embedder = "embedding" in listing.capabilities
        bidirectional = is_embedder and header.metadata.get(f"{header.architecture}.attention.causal") is False
        spec = RunnerSpec(
            key=runner_key(entry),
            name=str(entry.name),
            digest=entry.digest,
            details=listing.details,
            weights=entry.weights_path,
            size=sum(layer.size for layer in entry.loaded_layers),
            adapter=entry.adapter,
            projector=None if is_embedder else entry.projector,
            # A model without causal attention reads a text as a whole, and needs no key/value cache.
            kv_bytes=0 if bidirectional else header.kv_bytes_per_token(self.settings.kv_cache_type),
            trained_ctx=header.context_length,
            engine=engine.name,
            embedding=is_embedder,
            pooling="rank" if header.has_rank_head else "",
        )
        has_chat_template = engine.chat_template and header.chat_template is not None
        # A model with a renderer built into Ollama has only a placeholder as its template; the weights hold the real one.
        template = read_template(None if has_chat_template and entry.prefers_chat_template else entry.template)
        if template.error:
            problem = f"the model {entry.name} has a template that cannot be used ({template.error})"
            template = ChatTemplate(error=f"{problem}; create it again with another one")
        return ResolvedModel(
            entry,
            engine,
            _own_options(entry),
            spec,
            template,
            header.has_rank_head,
            has_chat_template,
            ("parser",) if entry.parser and PARSERS.get(entry.parser) is None else (),
            format_of_chat_template(header.chat_template or ""),
            PARSERS.get(entry.parser),
            unserved(entry.config.renderer, entry.parser, has_chat_template=has_chat_template),
            frozenset(listing.capabilities),
        )

    def spec(self, model: ResolvedModel, sampling: Sampling) -> RunnerSpec:
        """What a request needs of a runner; `sampling` is already merged, and the settings fill what it leaves open."""
        num_ctx = sampling.num_ctx or default_num_ctx(self.settings)
        return replace(
            model.spec,
            num_ctx=max(num_ctx, MIN_IMAGE_CTX) if model.spec.projector else num_ctx,
            # llama.cpp aborts if a batch is smaller than the number of slots, and notices a disconnect only between batches.
            num_batch=None
            if sampling.num_batch is None
            else max(min(sampling.num_batch, MAX_BATCH), self.settings.num_parallel, MIN_BATCH),
            # Threads synchronise after every step: 512 on two processors took seconds per token, and slowed down all others.
            num_thread=min(sampling.num_thread, processors()) if sampling.num_thread and sampling.num_thread > 0 else None,
            num_gpu=None if sampling.num_gpu == -1 else sampling.num_gpu,
            main_gpu=sampling.main_gpu,
            use_mmap=sampling.use_mmap,
        )

    def spec_for_vectors(self, model: ResolvedModel, sampling: Sampling) -> RunnerSpec:
        """As `spec`, for embeddings. A model that generates text has a second runner for them. Raises Unsupported."""
        if not model.engine.embeddings or model.has_rank_head:
            raise Unsupported(f'"{model.spec.name}" does not support embeddings')
        spec = self.spec(model, sampling)
        if spec.embedding:
            return spec
        return replace(spec, key=spec.key + EMBEDDING_KEY_SUFFIX, embedding=True, pooling="last", projector=None)

    def keep_alive(self, requested: float | None) -> float | None:
        """Seconds that a model stays loaded after a request, negative: for ever. None, where the request does not say it, leaves them
        as they are: a model that was loaded for an hour is not sent away by the next question. A new one has those of the settings.
        """
        return None if requested is None else without_end_of_time(requested)


def require_local(name: names.Name) -> None:
    """Refuse a name that no request could use, since it means a model of Ollama's cloud. Raises BadName."""
    if _in_cloud(name):
        raise BadName(f"the name {name} is one of Ollama's cloud, and nobody could use it here; choose a tag that does not end in cloud")


def _in_cloud(name: names.Name) -> bool:
    return name.tag.lower() == "cloud" or name.tag.lower().endswith("-cloud")


def template_capabilities(template: str) -> set[str]:
    """The capabilities that a Go template gives a model: any of tools, insert, thinking; none for an invalid template."""
    return read_template(template).capabilities()


def _own_options(entry: StoredModel) -> Sampling:
    """A model's own options. Raises BadRequest that names the model, since Ollama also stores invalid options."""
    try:
        return parse_options(entry.params)[0]
    except BadRequest as error:
        raise BadRequest(f"the model {entry.name} has a PARAMETER that is wrong ({error}); create it again with a right one") from None


def _file_states(entry: StoredModel) -> tuple[tuple[int, int], ...]:
    """Inode and modification time of the files that a runner of this model opens: they change when a damaged file is replaced."""
    states = [path.stat() for path in entry.loaded_paths if path.exists()]
    return tuple((state.st_ino, state.st_mtime_ns) for state in states)


def runner_key(entry: StoredModel) -> str:
    """The key of a model's runner. Models with the same weights and the same adapter and projector (or none) share a runner."""
    return "+".join(layer.digest for layer in entry.loaded_layers)
