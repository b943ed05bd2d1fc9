"""The whole store: list, find, copy, delete, prune, commit. Only this module writes names and removes blobs.

Safe with several processes: it does both under the store lock (`locks`). Adding a blob needs no store lock. Until it has a
name it is kept by the claim of the pull that brings it, or for MIN_UNUSED_AGE if a client has sent it. Reading takes no lock,
so a store may be read-only.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ndani.errors import NotFound, StoreFailed
from ndani.names import Name
from ndani.store.blobs import Blobs, PartialBlob
from ndani.store.damage_notes import forget_damage, last_change
from ndani.store.disk import make_folder, translate_disk_errors
from ndani.store.header_cache import HeaderCache
from ndani.store.layout import Layout
from ndani.store.locks import Lock, Locks
from ndani.store.manifests import Manifests
from ndani.store.stored_model import Config, Manifest, StoredModel, decode
from ndani.store.weights_info import WeightsInfo
from ndani.types import Details, Model

#: Seconds for which a blob that nothing refers to is kept, because a client may upload it first and name it afterwards.
MIN_UNUSED_AGE = 3600.0


class Store:
    """One folder of models. Every disk error is StoreFailed, one sentence that says what to do.

    After `list_models`, `damaged` has a sentence for each manifest, or folder of manifests, that cannot be read.
    `template_capabilities` returns what a Go template makes a model capable of; a caller that only pulls and removes models
    needs none. `generation` changes whenever a blob is found damaged or is replaced; caches made from blobs are then invalid.
    """

    def __init__(self, root: Path, template_capabilities: Callable[[str], Collection[str]] = lambda _: ()) -> None:
        self.layout = Layout(root)
        self._template_capabilities = template_capabilities
        self.blobs = Blobs(self.layout)
        self.damaged: list[str] = []
        self.generation = 0
        self._manifests = Manifests(self.layout, self.blobs)
        self._locks = Locks(self.layout)
        self._headers = HeaderCache(self.layout)
        # Blobs never change, so caches made from them are valid until a damaged one is replaced. A manifest is read again when
        # its file has changed.
        self._changed = last_change(self.layout)
        self._listing = threading.Lock()
        self._models: dict[str, tuple[tuple[int, int, int], Model]] = {}
        self._entries: dict[str, tuple[tuple[int, int, int], StoredModel]] = {}

    def close(self) -> None:
        """End every wait for a lock of another process, so that the server can stop."""
        self._locks.close()

    def list_models(self) -> list[Model]:
        """Every model, the newest first. A damaged manifest is left out and reported in `damaged`."""
        models: dict[str, tuple[tuple[int, int, int], Model]] = {}
        damaged, unreadable = [], dict[str, str]()
        # One listing at a time: a parallel one would only repeat the same work.
        with self._listing, translate_disk_errors(self.layout.root):
            generation = self._refresh()
            for name, path, status in self._manifests.walk(unreadable):
                stamp = _stamp(status)
                cached = self._models.get(name.full)
                try:
                    models[name.full] = cached if cached and cached[0] == stamp else (stamp, self.describe(self._read(name, path, stamp)))
                except FileNotFoundError:
                    continue
                except StoreFailed as error:
                    damaged.append(str(error))
            self._models, self.damaged = models if generation == self.generation else {}, [*damaged, *unreadable.values()]
        return sorted((model for _, model in models.values()), key=lambda model: (-model.modified, model.name))

    def stored_models(self, repository: str = "") -> list[StoredModel]:
        """Every model, or those of one `namespace/model`, in any case; damaged ones are left out. Raises StoreFailed."""
        models = []
        with translate_disk_errors(self.layout.root):
            for name, path, status in self._manifests.walk({}):
                if repository and f"{name.namespace}/{name.model}".lower() != repository.lower():
                    continue
                with contextlib.suppress(StoreFailed, FileNotFoundError):
                    models.append(self._read(name, path, _stamp(status)))
        return models

    def find(self, name: Name, not_found: str | None = None) -> StoredModel:
        """The entry of a name, however its letters are cased. Raises NotFound with the sentence `not_found`, StoreFailed."""
        with translate_disk_errors(self.layout.root), contextlib.suppress(FileNotFoundError):
            self._refresh()
            located = self._manifests.locate(name)
            if located:
                return self._read(*located, _stamp(_status(located[1])))
        self._entries.pop(name.full, None)
        raise NotFound(not_found or f"model '{name}' not found")

    def _refresh(self) -> int:
        """Clear the caches if any process found a blob damaged or replaced one; returns the current generation."""
        now = last_change(self.layout)
        if now != self._changed:
            self._changed = now
            self.generation += 1
            self._models, self._entries = {}, {}
            self._headers.clear()
        return self.generation

    def _read(self, name: Name, path: Path, stamp: tuple[int, int, int]) -> StoredModel:
        """The model of a name, cached while its manifest file does not change. Raises StoreFailed, FileNotFoundError."""
        cached = self._entries.get(name.full)
        if not cached or cached[0] != stamp:
            cached = self._entries[name.full] = (stamp, self._manifests.read(name, path))
        return cached[1]

    def header(self, entry: StoredModel) -> WeightsInfo:
        """The header of a model's weights. Raises StoreFailed when they are missing or not a GGUF file."""
        return self._headers.header(entry.weights.digest)

    def projector_header(self, entry: StoredModel) -> WeightsInfo | None:
        """The header of a model's projector, where there is one. Raises StoreFailed when that is missing or not a GGUF file."""
        return self._headers.header(entry.projector_layer.digest) if entry.projector_layer else None

    def inspect(self, digest: str) -> WeightsInfo:
        """The header of any GGUF file in the store. Raises ValueError with a short reason if it is not one, OSError."""
        return self._headers.inspect(digest)

    def header_summary(self, entry: StoredModel) -> WeightsInfo:
        """As `header`, without the tensors; fast if any process has read these weights before."""
        return self._headers.summary(entry.weights.digest)

    def describe(self, entry: StoredModel) -> Model:
        """A model's entry in a listing. Raises StoreFailed when its config is damaged."""
        config = entry.config
        header = None
        # A listing must not fail because weights are missing or damaged; loading them reports that.
        with contextlib.suppress(StoreFailed):
            header = self.header_summary(entry)
        return Model(
            str(entry.name),
            entry.digest,
            entry.size,
            entry.modified,
            _details(config, header, entry.weights_source),
            self._capabilities(entry, config, header),
        )

    def copy(self, source: Name, target: Name, not_found: str | None = None) -> None:
        """Give a model one more name; blobs that only its old one needed are removed. Raises NotFound with `not_found`, StoreFailed."""
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            located = self._manifests.locate(source)
            if not located:
                raise NotFound(not_found or f'model "{source}" not found')
            digests = self._manifests.read(*located).digests  # fails for a damaged manifest, which should not get a second name
            old = self._digests_of(target)
            self._manifests.write(target, located[1].read_bytes())
            self._sweep(old - digests)

    def delete(self, name: Name, not_found: str | None = None) -> None:
        """Remove a name, and the blobs that no other name and no running pull needs. Raises NotFound, StoreFailed."""
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            located = self._manifests.locate(name)
            if not located:
                raise NotFound(not_found or f"model '{name}' not found")
            orphans: set[str] = set()
            with contextlib.suppress(StoreFailed):
                orphans = self._manifests.read(*located).digests
            self._manifests.remove(located[1])
            self._sweep(orphans)

    def commit(self, name: Name, manifest: bytes) -> None:
        """Write the manifest of a name; blobs that only its old manifest needed are removed. Raises StoreFailed.

        A name must have all its blobs in the store. That is checked again under the lock, because another program, which knows
        no claims, may have removed one.
        """
        with translate_disk_errors(self.layout.root, len(manifest)), self._locks.lock_store():
            self._require_blobs(name, manifest)
            old = self._digests_of(name)
            make_folder(self.layout.manifests)
            self._manifests.write(name, manifest)
            self._sweep(old)

    def _digests_of(self, name: Name) -> set[str]:
        """The digests of a name's present manifest; none if it is missing or damaged. Raises OSError, StoreFailed."""
        located = self._manifests.locate(name)
        if located:
            with contextlib.suppress(StoreFailed, FileNotFoundError):
                return self._manifests.read(*located).digests
        return set()

    def _require_blobs(self, name: Name, manifest: bytes) -> None:
        parsed = decode(manifest, Manifest, f"the manifest of {name}")
        if any(not self.blobs.has(layer.digest, layer.size) for layer in (parsed.config, *parsed.layers)):
            raise StoreFailed(f"another program has removed a file of {name} from the model store meanwhile; pull or create it again")

    def remove_unused(self, digests: set[str]) -> None:
        """Remove those of these blobs that no name and no running pull needs. Raises StoreFailed."""
        if digests:
            with translate_disk_errors(self.layout.root), self._locks.lock_store():
                self._sweep(digests)

    def remove_damaged(self, digests: Collection[str]) -> None:
        """Read these blobs, and remove those whose bytes are not theirs, so that the next pull fetches them again. Raises StoreFailed."""
        with translate_disk_errors(self.layout.root):
            for digest in digests:
                if self.blobs.compute_digest(digest) != digest:
                    with self._locks.lock_store():
                        self._remove_blobs({digest})

    def prune(self) -> tuple[str, ...]:
        """Remove blobs that nothing refers to and old unfinished pulls; returns the digests removed. Raises StoreFailed.

        While a manifest is damaged no blob is removed, because its references are unknown. `maintenance` does the same in steps.
        """
        if not self.layout.blobs.is_dir():
            return ()
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            old = {digest for digest, status in self.blobs.scan() if _is_old(status)}
            self.blobs.remove_stale(self._locks.claimed_digests())
            return self._sweep(old)

    def names(self) -> tuple[Name, ...]:
        """Every name in the store, in no order; no manifest is read. Raises StoreFailed."""
        return self._names({})

    def _names(self, unreadable: dict[str, str]) -> tuple[Name, ...]:
        with translate_disk_errors(self.layout.root):
            return tuple(name for name, _, _ in self._manifests.walk(unreadable))

    def survey(self) -> tuple[tuple[StoredModel, ...], dict[str, str]]:
        """Every model; and a sentence for each name whose manifest is damaged. Raises StoreFailed.

        A folder of manifests that cannot be read is among the damaged by its path, which ends in a slash, as no name does.
        """
        models, unreadable = [], dict[str, str]()
        names = self._names(unreadable)
        damaged = {f"{folder}/": sentence for folder, sentence in unreadable.items()}
        for name in names:
            try:
                models.append(self.find(name))
            except NotFound:
                continue  # removed in the meantime
            except StoreFailed as error:
                damaged[str(name)] = str(error)
        return tuple(models), damaged

    def removable(self) -> tuple[dict[str, os.stat_result], dict[Path, os.stat_result]]:
        """The blobs, by digest, and files of unfinished transfers, by path, that may be removed. Raises StoreFailed.

        While a manifest is damaged no blob may be removed, because its references are unknown.
        """
        if not self.layout.blobs.is_dir():
            return {}, {}
        with translate_disk_errors(self.layout.root):
            # Listed before the names are read, so that a blob that gets a name in between is not removed.
            candidates = {digest: status for digest, status in self.blobs.scan() if _is_old(status)}
            unfinished = dict(self.blobs.stale_files(self._locks.claimed_digests() if self.layout.locks.is_dir() else set()))
            needed = self._needed()
        return {} if needed is None else {digest: status for digest, status in candidates.items() if digest not in needed}, unfinished

    def remove(self, digests: set[str], unfinished: set[Path]) -> tuple[str, ...]:
        """Remove those of these files that may still be removed; returns the digests removed. Raises StoreFailed, as `removable`."""
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            needed = self._needed()
            removed = () if needed is None else self._remove_blobs(digests - needed)
            self.blobs.remove_stale(self._locks.claimed_digests(), unfinished)
        return removed

    def _needed(self) -> set[str] | None:
        """Every digest that a name or a running pull needs; None when a manifest is damaged. Raises StoreFailed."""
        entries, damaged = self.survey()
        if damaged:
            return None
        claimed = self._locks.claimed_digests() if self.layout.locks.is_dir() else set()
        return claimed.union(*(entry.digests for entry in entries))

    @contextmanager
    def claim(self, digests: set[str]) -> Iterator[None]:
        """Protect these blobs, present or expected, from removal by any process inside the block. Raises StoreFailed."""
        with contextlib.ExitStack() as stack:
            with translate_disk_errors(self.layout.root):
                stack.enter_context(self._locks.claim(digests))
            yield

    def lock_blob(self, digest: str) -> Lock | None:
        """The lock for writing a blob, or None while another process holds it. Raises StoreFailed."""
        with translate_disk_errors(self.layout.root):
            return self._locks.lock_blob(digest)

    def open_partial(self, digest: str, size: int, keep: int | None = 0) -> PartialBlob:
        """The file of an unfinished pull of this blob, cut to `keep` bytes (None: see `PartialBlob`). The blob lock must be held."""
        return PartialBlob(self.layout, digest, size, keep)

    def open_upload(self, digest: str, size: int) -> PartialBlob:
        """A separate file that becomes this blob: for an upload by a client, which may be slow and must not delay a pull."""
        return PartialBlob(self.layout, digest, size, path=self.layout.blobs / f".{uuid.uuid4().hex}")

    def _capabilities(self, entry: StoredModel, config: Config, header: WeightsInfo | None) -> tuple[str, ...]:
        if header is None:
            return config.capabilities or ("completion",)
        template_capabilities: Collection[str] | None = None
        with contextlib.suppress(StoreFailed):
            if entry.template is not None and not (header.chat_template and entry.prefers_chat_template):
                template_capabilities = self._template_capabilities(entry.template)
        return header.capabilities(template_capabilities, self._projector_senses(entry))

    def _projector_senses(self, entry: StoredModel) -> tuple[str, ...]:
        """What a model's projector lets it take; images, for one that does not say it."""
        layer = entry.projector_layer
        if layer is None:
            return ()
        with contextlib.suppress(StoreFailed):
            return self._headers.summary(layer.digest).senses() or ("vision",)
        return ("vision",)

    def _sweep(self, candidates: set[str]) -> tuple[str, ...]:
        """Remove those blobs that no name and no claim needs. Called under the store lock."""
        if not candidates:
            return ()
        needed, unreadable = self._locks.claimed_digests(), dict[str, str]()
        for name, path, status in self._manifests.walk(unreadable):
            try:
                needed |= self._read(name, path, _stamp(status)).digests
            except FileNotFoundError:
                continue
            except StoreFailed:
                return ()
        return () if unreadable else self._remove_blobs(candidates - needed)

    def _remove_blobs(self, digests: set[str]) -> tuple[str, ...]:
        removed = tuple(sorted(digests))
        for digest in removed:
            self.blobs.remove(digest)
            self._headers.remove(digest)
            forget_damage(self.layout, digest)
        return removed


def _is_old(status: os.stat_result) -> bool:
    """Whether a blob is so old that no client is about to name it."""
    oldest = time.time() - MIN_UNUSED_AGE
    # A linked file keeps its modification time. The time when it was linked into the store is its change time.
    return status.st_mtime < oldest and (status.st_nlink < 2 or status.st_ctime < oldest)


def _status(path: Path) -> os.stat_result:
    """The stat result of a manifest's file, or of a broken link. Raises OSError."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Values that change when a file's content changes."""
    return status.st_mtime_ns, status.st_size, status.st_ino


def _details(config: Config, header: WeightsInfo | None, parent: str) -> Details:
    return Details(
        format=config.model_format or "gguf",
        family=config.model_family or (header.architecture if header else ""),
        families=config.model_families or ((config.model_family,) if config.model_family else ()),
        parameter_size=config.model_type or (header.parameter_size if header else ""),
        quantization_level=config.file_type or (header.file_type if header else ""),
        context_length=config.context_length or (header.context_length if header else 0),
        embedding_length=config.embedding_length or (header.embedding_length if header else 0),
        parent=parent,
    )
