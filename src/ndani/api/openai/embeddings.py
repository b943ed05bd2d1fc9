"""How /v1/embeddings writes vectors."""

from __future__ import annotations

import base64
import struct
from typing import cast

import msgspec

from ndani.api.edge.json_response import TimeSlice, encode
from ndani.api.edge.rounded import rounded
from ndani.api.openai.objects import EmbeddingList, EmbeddingObject, EmbeddingsUsage
from ndani.types import Vectors


async def format_embeddings(model: str, vectors: Vectors, as_base64: bool) -> bytes:
    """The JSON of the vectors, made in steps, with other work of the event loop in between."""
    time_slice, data = TimeSlice(), []
    for index, vector in enumerate(vectors.vectors):
        numbers = _base64(vector) if as_base64 else rounded(vector)
        data.append(msgspec.Raw(encode(EmbeddingObject("embedding", index, numbers))))
        await time_slice.yield_if_over()
    tokens = vectors.usage.prompt_tokens
    # `Raw` is JSON that is already written: the encoder copies it.
    return encode(EmbeddingList("list", cast(list[EmbeddingObject], data), model, EmbeddingsUsage(tokens, tokens)))


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
