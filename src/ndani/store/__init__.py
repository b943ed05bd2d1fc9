"""Models on this disk, in Ollama's layout, so that both programs can share one store. The entry point is `Store`.

`layout` has the paths, `disk` translates the system's errors, `locks` and `file_locking` coordinate processes, `blobs` has
files by their digests, `manifests` has names, `stored_model` reads one model, `store` puts them together; `gguf` and
`weights_info` read the header of a weights file. Nothing here opens a connection.
"""

from __future__ import annotations

from ndani.store.store import Store
from ndani.store.stored_model import Layer, Manifest, StoredModel

__all__ = ["Layer", "Manifest", "Store", "StoredModel"]
