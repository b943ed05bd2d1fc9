"""The store as a whole: list, find, copy, delete, prune, commit. The one writer of names and the one remover of blobs.

Safe under several processes: whatever adds or removes a name or a blob does so under the store's lock, and a pull
claims its blobs first (`locks`). Reading takes no lock, so that a store may also be read-only.
"""

from __future__ import annotations

import builtins
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

#: A blob that nobody refers to is left alone while it is younger than this: an upload may be about to name it.
MIN_UNUSED_AGE = 3600.0


class Store:
    """One folder of models. Every failure of the disk is StoreFailed, one sentence that says what to do.

    `damaged` holds, after `list`, a sentence for each manifest and each folder of them that cannot be used. `able` tells what
    a Go template makes a model capable of; who only brings and removes models needs none. `generation` is another number
    whenever a file has taken the place of a damaged one: what was made of blobs before that is to be made again.
    """

    def __init__(self, root: Path, able: Callable[[str], Collection[str]] = lambda _: ()) -> None:
        self.layout = Layout(root)
        self._able = able
        self.blobs = Blobs(self.layout)
        self.damaged: list[str] = []
        self.generation = 0
        self._manifests = Manifests(self.layout, self.blobs)
        self._locks = Locks(self.layout)
        self._heads = HeaderCache(self.layout)
        # Blobs never change, so what was read of one is right until a damaged one is replaced; a manifest is read again
        # when its file changed.
        self._changed = last_change(self.layout)
        self._listing = threading.Lock()
        self._models: dict[str, tuple[tuple[int, int, int], Model]] = {}
        self._entries: dict[str, tuple[tuple[int, int, int], StoredModel]] = {}

    def close(self) -> None:
        """Let nobody of this process wait for another's lock any more: a server that stops must not."""
        self._locks.close()

    def list_models(self) -> list[Model]:
        """Every model, the newest first. A damaged manifest is left out and noted in `damaged`."""
        known: dict[str, tuple[tuple[int, int, int], Model]] = {}
        damaged, closed = [], dict[str, str]()
        # One at a time: a second listing beside the first would only do the same work again.
        with self._listing, translate_disk_errors(self.layout.root):
            generation = self._look()
            for name, path, status in self._manifests.walk(closed):
                stamp = _stamp(status)
                kept = self._models.get(name.full)
                try:
                    known[name.full] = kept if kept and kept[0] == stamp else (stamp, self.describe(self._read(name, path, stamp)))
                except FileNotFoundError:
                    continue
                except StoreFailed as error:
                    damaged.append(str(error))
            self._models, self.damaged = known if generation == self.generation else {}, [*damaged, *closed.values()]
        return sorted((model for _, model in known.values()), key=lambda model: (-model.modified, model.name))

    def stored_models(self, repository: str = "") -> builtins.list[StoredModel]:
        """Every entry, or those of one `namespace/model`, however its letters are cased; damaged ones are left out. Raises StoreFailed."""
        found = []
        with translate_disk_errors(self.layout.root):
            for name, path, status in self._manifests.walk({}):
                if repository and f"{name.namespace}/{name.model}".lower() != repository.lower():
                    continue
                with contextlib.suppress(StoreFailed, FileNotFoundError):
                    found.append(self._read(name, path, _stamp(status)))
        return found

    def find(self, name: Name, not_found: str | None = None) -> StoredModel:
        """The entry of a name, however its letters are cased. Raises NotFound with the sentence `missing`, StoreFailed."""
        with translate_disk_errors(self.layout.root), contextlib.suppress(FileNotFoundError):
            self._look()
            found = self._manifests.locate(name)
            if found:
                return self._read(*found, _stamp(_status(found[1])))
        self._entries.pop(name.full, None)
        raise NotFound(not_found or f"model '{name}' not found")

    def _look(self) -> int:
        """Forget what was read of blobs when one was found damaged, or replaced, by whatever process; the generation now."""
        now = last_change(self.layout)
        if now != self._changed:
            self._changed = now
            self.generation += 1
            self._models, self._entries = {}, {}
            self._heads.clear()
        return self.generation

    def _read(self, name: Name, path: Path, stamp: tuple[int, int, int]) -> StoredModel:
        """The entry of a name, read once for each state that its file has had. Raises StoreFailed, FileNotFoundError."""
        kept = self._entries.get(name.full)
        if not kept or kept[0] != stamp:
            kept = self._entries[name.full] = (stamp, self._manifests.read(name, path))
        return kept[1]

    def header(self, entry: StoredModel) -> WeightsInfo:
        """What the weights of a model say of themselves. Raises StoreFailed when they are missing or are no GGUF file."""
        return self._heads.header(entry.weights.digest)

    def inspect(self, digest: str) -> WeightsInfo:
        """What any GGUF file here says of itself. Raises ValueError with a few words where it is none, OSError."""
        return self._heads.inspect(digest)

    def header_summary(self, entry: StoredModel) -> WeightsInfo:
        """As `header`, but without the tensors; quick where the weights were looked at before, by whatever process."""
        return self._heads.summary(entry.weights.digest)

    def describe(self, entry: StoredModel) -> Model:
        """A model as a listing shows it. Raises StoreFailed when its config is damaged."""
        config = entry.config
        header = None
        # A listing must not fail for weights that are gone or odd; loading them will say so.
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
        """Give a model one more name; blobs that only its old one needed are removed. Raises NotFound with `missing`, StoreFailed."""
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            found = self._manifests.locate(source)
            if not found:
                raise NotFound(not_found or f'model "{source}" not found')
            kept = self._manifests.read(*found).digests  # a damaged one is not worth a second name
            old = self._needs(target)
            self._manifests.write(target, found[1].read_bytes())
            self._sweep(old - kept)

    def delete(self, name: Name, not_found: str | None = None) -> None:
        """Remove a name, and the blobs that no other name and no running pull needs. Raises NotFound, StoreFailed."""
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            found = self._manifests.locate(name)
            if not found:
                raise NotFound(not_found or f"model '{name}' not found")
            orphans: set[str] = set()
            with contextlib.suppress(StoreFailed):
                orphans = self._manifests.read(*found).digests
            self._manifests.remove(found[1])
            self._sweep(orphans)

    def commit(self, name: Name, manifest: bytes) -> None:
        """Make `name` stand for this manifest; blobs that only its old one needed are removed. Raises StoreFailed.

        The name appears here and nowhere earlier: its blobs must all be in place. That is looked at once more, under the
        lock: another program that knows no claims may have removed one.
        """
        with translate_disk_errors(self.layout.root, len(manifest)), self._locks.lock_store():
            self._require_whole(name, manifest)
            old = self._needs(name)
            make_folder(self.layout.manifests)
            self._manifests.write(name, manifest)
            self._sweep(old)

    def _needs(self, name: Name) -> set[str]:
        """The blobs of what a name stands for now, as far as that can be read. Raises OSError, StoreFailed."""
        found = self._manifests.locate(name)
        if found:
            with contextlib.suppress(StoreFailed, FileNotFoundError):
                return self._manifests.read(*found).digests
        return set()

    def _require_whole(self, name: Name, manifest: bytes) -> None:
        said = decode(manifest, Manifest, f"the manifest of {name}")
        if any(not self.blobs.has(layer.digest, layer.size) for layer in (said.config, *said.layers)):
            raise StoreFailed(f"another program has removed a file of {name} from the model store meanwhile; pull or create it again")

    def remove_unused(self, digests: set[str]) -> None:
        """Remove these blobs where no name and no running pull needs them. Raises StoreFailed."""
        if digests:
            with translate_disk_errors(self.layout.root), self._locks.lock_store():
                self._sweep(digests)

    def prune(self) -> tuple[str, ...]:
        """Remove blobs that nothing refers to and unfinished pulls of long ago; digests removed. Raises StoreFailed.

        No blob is removed while a manifest is damaged: what it refers to cannot be known. (`upkeep` does it step by step.)
        """
        if not self.layout.blobs.is_dir():
            return ()
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            old = {digest for digest, status in self.blobs.scan() if _settled(status)}
            self.blobs.remove_stale(self._locks.claimed_digests())
            return self._sweep(old)

    def names(self) -> tuple[Name, ...]:
        """Every name here, in no order, without a look at what it stands for. Raises StoreFailed."""
        return self._names({})

    def _names(self, closed: dict[str, str]) -> tuple[Name, ...]:
        with translate_disk_errors(self.layout.root):
            return tuple(name for name, _, _ in self._manifests.walk(closed))

    def survey(self) -> tuple[tuple[StoredModel, ...], dict[str, str]]:
        """Every model's entry; and for each name whose manifest is damaged a sentence. Raises StoreFailed.

        A folder of manifests that cannot be read is among the damaged, by its path, which ends in a stroke as no name does.
        """
        found, closed = [], dict[str, str]()
        names = self._names(closed)
        damaged = {f"{folder}/": sentence for folder, sentence in closed.items()}
        for name in names:
            try:
                found.append(self.find(name))
            except NotFound:
                continue  # removed in the meantime
            except StoreFailed as error:
                damaged[str(name)] = str(error)
        return tuple(found), damaged

    def removable(self) -> tuple[dict[str, os.stat_result], dict[Path, os.stat_result]]:
        """What may go: blobs by their digests, files of unfinished transfers by their paths. Raises StoreFailed.

        While a manifest is damaged no blob may: what it refers to cannot be known.
        """
        if not self.layout.blobs.is_dir():
            return {}, {}
        with translate_disk_errors(self.layout.root):
            # Listed before the names are read: what is named in between is known by its name.
            found = {digest: status for digest, status in self.blobs.scan() if _settled(status)}
            unfinished = dict(self.blobs.stale_files(self._locks.claimed_digests() if self.layout.locks.is_dir() else set()))
            needed = self._needed()
        return {} if needed is None else {digest: status for digest, status in found.items() if digest not in needed}, unfinished

    def remove(self, digests: set[str], unfinished: set[Path]) -> tuple[str, ...]:
        """Remove those of these that may still go; the digests that went. Raises StoreFailed, as `removable`."""
        with translate_disk_errors(self.layout.root), self._locks.lock_store():
            needed = self._needed()
            gone = () if needed is None else self._drop(digests - needed)
            self.blobs.remove_stale(self._locks.claimed_digests(), unfinished)
        return gone

    def _needed(self) -> set[str] | None:
        """Every digest that a name or a running pull needs; None when a manifest is damaged. Raises StoreFailed."""
        entries, damaged = self.survey()
        if damaged:
            return None
        claimed = self._locks.claimed_digests() if self.layout.locks.is_dir() else set()
        return claimed.union(*(entry.digests for entry in entries))

    @contextmanager
    def claim(self, digests: set[str]) -> Iterator[None]:
        """Keep these blobs, here or yet to come, from being removed by any process while inside. Raises StoreFailed."""
        with contextlib.ExitStack() as stack:
            with translate_disk_errors(self.layout.root):
                stack.enter_context(self._locks.claim(digests))
            yield

    def lock_blob(self, digest: str) -> Lock | None:
        """The right to bring a blob, or None while another process is bringing it. Raises StoreFailed."""
        with translate_disk_errors(self.layout.root):
            return self._locks.lock_blob(digest)

    def open_partial(self, digest: str, size: int, keep: int | None = 0) -> PartialBlob:
        """The file that becomes this blob, with the first `keep` bytes it already has (None: see `Partial`). Its lock must be held."""
        return PartialBlob(self.layout, digest, size, keep)

    def open_upload(self, digest: str, size: int) -> PartialBlob:
        """A file of its own that becomes this blob: for bytes from a client, who may be slow and must keep nobody waiting."""
        return PartialBlob(self.layout, digest, size, path=self.layout.blobs / f".{uuid.uuid4().hex}")

    def _capabilities(self, entry: StoredModel, config: Config, header: WeightsInfo | None) -> tuple[str, ...]:
        if header is None:
            return config.capabilities or ("completion",)
        able: Collection[str] | None = None
        with contextlib.suppress(StoreFailed):
            able = None if entry.template is None else self._able(entry.template)
        return header.capabilities(able, projector=entry.projector is not None)

    def _sweep(self, candidates: set[str]) -> tuple[str, ...]:
        """Remove those blobs that nobody needs. Called under the store's lock."""
        if not candidates:
            return ()
        needed, closed = self._locks.claimed_digests(), dict[str, str]()
        for name, path, status in self._manifests.walk(closed):
            try:
                needed |= self._read(name, path, _stamp(status)).digests
            except FileNotFoundError:
                continue
            except StoreFailed:
                return ()
        return () if closed else self._drop(candidates - needed)

    def _drop(self, digests: set[str]) -> tuple[str, ...]:
        gone = tuple(sorted(digests))
        for digest in gone:
            self.blobs.remove(digest)
            self._heads.remove(digest)
            forget_damage(self.layout, digest)
        return gone


def _settled(status: os.stat_result) -> bool:
    """Whether a blob has been here for long enough that nobody is about to name it."""
    oldest = time.time() - MIN_UNUSED_AGE
    # A file that was linked keeps the time of its making; when it came here, its last change of a name tells.
    return status.st_mtime < oldest and (status.st_nlink < 2 or status.st_ctime < oldest)


def _status(path: Path) -> os.stat_result:
    """What the disk says of a manifest's file, or of a link whose file is not there. Raises OSError."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What changes with a file's content."""
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
