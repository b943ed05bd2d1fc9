"""Checks from the headers of both files whether a LoRA adapter fits a model, before a model is created from them.

The rules are llama.cpp's, which would refuse the pair only when it is loaded, and with a message that does not help users.
"""

from __future__ import annotations

from ndani.errors import BadRequest
from ndani.store.parameters import excerpt
from ndani.store.weights_info import WeightsInfo

_DOWN, _UP = ".lora_a", ".lora_b"
_EMBEDDING = "token_embd.weight"


def check_lora(path: str, adapter: WeightsInfo, model: WeightsInfo | None) -> None:
    """Refuse a file that is not a LoRA, or does not fit the model; `path` is the client's name for it.

    `model` is None if it is unknown. Raises BadRequest.
    """
    if adapter.metadata.get("general.type") != "adapter":
        raise BadRequest(f"{path} is not an adapter; ADAPTER takes a LoRA in GGUF format")
    kind = adapter.metadata.get("adapter.type")
    if kind != "lora":
        stated = kind if isinstance(kind, str) and kind.isidentifier() else "unknown"
        raise BadRequest(f"{path} is an adapter of the kind {stated}; ADAPTER takes a LoRA in GGUF format")
    if model is None:
        return
    if adapter.architecture != model.architecture:
        raise BadRequest(
            f"{path} was made for a model of the kind {excerpt(adapter.architecture)}, and this one is {excerpt(model.architecture)}"
        )
    shapes = {tensor.name: tensor.shape for tensor in adapter.tensors}
    model_shapes = {tensor.name: tensor.shape for tensor in model.tensors}
    for name, shape in shapes.items():
        if name.endswith("_norm.weight"):
            continue  # llama.cpp ignores these
        base = name.removesuffix(_DOWN).removesuffix(_UP)
        if base == name or base + _DOWN not in shapes or base + _UP not in shapes:
            raise BadRequest(f"{path} is not a whole LoRA: it lacks the other half of one of its tensors; convert or fetch it again")
        if base not in model_shapes:
            raise BadRequest(f"{path} was made for another model: this one has no tensor of the name that it changes; use its own base")
        if name.endswith(_DOWN) and not _fits(base, model_shapes[base], shape, shapes[base + _UP]):
            raise BadRequest(f"{path} was made for a model of another size: its tensors do not fit this one; use its own base")


def _fits(name: str, base: tuple[int, ...], down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Whether the product of the two matrices has the shape of the base tensor (fastest dimension first)."""
    if not len(base) == len(down) == len(up) == 2:
        return len(base) == len(down) == len(up)
    if name == _EMBEDDING:  # its first matrix is stored transposed
        return base == (up[1], down[1]) and down[0] == up[0]
    return base == (down[0], up[1]) and down[1] == up[0]
