"""A tiny vision model for tests: a Llama of random numbers, and a projector (mmproj) that gives it four tokens for an image.

The engine runs both like real ones, in milliseconds. Also images, as small files of each format.
"""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np

from checkpoints import byte_level, made_of, tiny_llama
from ndani.convert.gguf_writer import GgufValue, TargetTensor, encode_head, write

#: The numbers of an embedding of the model, and how many tokens the projector makes of an image.
WIDTH, IMAGE_TOKENS = 64, 4
_SIDE, _PATCH, _INNER = 28, 14, 32

#: A chat template in the weights, for models whose engine renders them.
JINJA = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def vision_llama(folder: Path, *, template: str = "", context: int = 4096) -> bytes:
    """The language model; with `template`, its weights hold that chat template."""
    made = tiny_llama(folder, byte_level(), width=WIDTH, max_position_embeddings=context)
    if template:
        (made / "chat_template.jinja").write_text(template)
    return made_of(made)


def projector(width: int = WIDTH, **more: GgufValue) -> bytes:
    """The projector for a model whose embeddings have `width` numbers: LLaVA's kind, with one block."""
    random = np.random.default_rng(3)
    keys: dict[str, GgufValue] = {
        "general.architecture": "clip", "general.type": "mmproj", "general.name": "tiny eye", "general.file_type": 0,
        "clip.has_vision_encoder": True, "clip.projector_type": "mlp", "clip.use_gelu": True,
        "clip.vision.image_size": _SIDE, "clip.vision.patch_size": _PATCH, "clip.vision.embedding_length": _INNER,
        "clip.vision.feed_forward_length": 2 * _INNER, "clip.vision.block_count": 2, "clip.vision.projection_dim": width,
        "clip.vision.attention.head_count": 4, "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.image_mean": [0.5, 0.5, 0.5], "clip.vision.image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    keys |= {key.replace("__", "."): value for key, value in more.items()}
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (_INNER, 3, _PATCH, _PATCH), "v.position_embd.weight": ((_SIDE // _PATCH) ** 2, _INNER),
        "mm.0.weight": (width, _INNER), "mm.0.bias": (width,), "mm.2.weight": (width, width), "mm.2.bias": (width,),
    }  # fmt: skip
    for block in range(2):
        for part, shape in {
            "attn_q": (_INNER, _INNER), "attn_k": (_INNER, _INNER), "attn_v": (_INNER, _INNER), "attn_out": (_INNER, _INNER),
            "ln1": (_INNER,), "ln2": (_INNER,), "ffn_up": (2 * _INNER, _INNER), "ffn_down": (_INNER, 2 * _INNER),
        }.items():  # fmt: skip
            shapes[f"v.blk.{block}.{part}.weight"] = shape
            shapes[f"v.blk.{block}.{part}.bias"] = shape[:1]
    tensors = [TargetTensor(name, "F32", random.standard_normal(shape, dtype=np.float32)) for name, shape in shapes.items()]
    out = io.BytesIO()
    list(write(out, encode_head(keys, tensors), tensors))
    return out.getvalue()


def png(colour: tuple[int, int, int] = (200, 30, 30), width: int = 16, height: int = 12) -> bytes:
    """A PNG of one colour."""
    rows = (b"\0" + bytes(colour) * width) * height
    parts = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    chunks = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp(width: int = 4, height: int = 4) -> bytes:
    """A green BMP; a negative height means that its first row is the top one."""
    rows = (b"\x1e\xc8\x1e" * width + bytes(-3 * width % 4)) * abs(height)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + head + rows


#: 8 x 8 pixels each, as usual programs write them.
JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBkeFxl"
    "Z2P/wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AP//Z"
)
GIF = base64.b64decode("R0lGODdhCAAIAIEAAMgeHgAAAAAAAAAAACwAAAAACAAIAAAIDwABCBxIsKDBgwgTKkwYEAA7")
WEBP = base64.b64decode("UklGRh4AAABXRUJQVlA4TBEAAAAvB8ABAAdQjyLXo/+BiOh/AAA=")
