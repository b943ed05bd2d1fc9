"""Files on this disk: models in Ollama's layout, so that one store serves both. The door is `Store`.

`layout` names files, `disk` renames the system's errors, `locks` keeps processes apart, `blobs` holds content by its
digest, `manifests` holds names, `entry` reads one model, `library` is the whole, `inspect` and `gguf` say what a
weights file says of itself. Nothing here opens a connection.
"""

from __future__ import annotations

from ndani.store.library import Store
from ndani.store.stored_model import Layer, Manifest, StoredModel

__all__ = ["Layer", "Manifest", "Store", "StoredModel"]
