"""`ndani show`: the information about a model in sections, or one part of it unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ndani.cli import formatting, tables
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, exactly
from ndani.cli.models import print_json
from ndani.cli.output import emit
from ndani.control_characters import replace_controls
from ndani.errors import BadRequest
from ndani.settings import load

_PARTS = ("license", "modelfile", "parameters", "system", "template")
_MAX_TEXT_LINES = 2  # lines of a system message or a license
_MAX_ARRAY_COLUMNS = 10  # columns for the first items of a long list


@click.command("show", cls=Command, usage="show MODEL", arity=exactly(1), help="Show information for a model")
@click.option("--license", is_flag=True, help="Show license of a model")
@click.option("--modelfile", is_flag=True, help="Show Modelfile of a model")
@click.option("--parameters", is_flag=True, help="Show parameters of a model")
@click.option("--system", is_flag=True, help="Show system message of a model")
@click.option("--template", is_flag=True, help="Show template of a model")
@click.option("-v", "--verbose", is_flag=True, help="Show detailed model information")
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON")
def show(args: tuple[str, ...], verbose: bool, as_json: bool, **parts: bool) -> None:
    """Print the information about a model, or one part of it."""
    requested = [part for part in _PARTS if parts[part]]
    if len(requested) > 1:
        raise BadRequest("only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified")
    request = {"model": args[0]} | ({"verbose": True} if verbose else {})
    response = ServerClient(load()).request_json("POST", "/api/show", request, required_field="details")
    if as_json:
        return print_json(response)
    for warning in response.get("warnings") or ():
        emit(f"Warning: {warning}", err=True)
    if not requested:
        return emit(card(response, verbose=verbose), nl=False)
    # System and template are printed unchanged, without an added newline.
    text = response.get(requested[0]) or ""
    return emit(text, nl=requested[0] not in ("system", "template"))


def card(response: Mapping[str, Any], *, verbose: bool = False) -> str:
    """The sections of an answer of `/api/show`, as text."""
    info = response.get("model_info") or {}
    text = _section("Model", _model_rows(response, info))
    text += _section("Projector", _projector_rows(response.get("projector_info") or {}))
    text += _section("Capabilities", [(word,) for word in response.get("capabilities") or ()])
    lines = [line.split(None, 1) for line in (response.get("parameters") or "").split("\n")]
    text += _section("Parameters", [(words[0], words[1].strip()) for words in lines if len(words) == 2])
    if verbose:
        text += _section("Metadata", [(key, format_value(info[key])) for key in sorted(info)])
        tensors = response.get("tensors") or ()
        text += _section("Tensors", [(t["name"], t["type"], _array(t["shape"])) for t in tensors])
    text += _section("System", _first_lines(response.get("system") or ""))
    return text + _section("License", _first_lines(response.get("license") or ""))


def _section(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A table of untrusted text, which the publisher of the model wrote: each cell on one line, without control characters."""
    return tables.section(title, [[replace_controls(cell).replace("\n", " ") for cell in row] for row in rows])


def _model_rows(response: Mapping[str, Any], info: Mapping[str, Any]) -> list[tuple[str, str]]:
    details = response.get("details") or {}
    family = info.get("general.architecture") or details.get("family") or ""
    count = info.get("general.parameter_count")
    rows = [
        ("architecture", family),
        ("parameters", details.get("parameter_size") or (formatting.parameter_count(int(count)) if count else "")),
        ("context length", format_value(info.get(f"{family}.context_length", ""))),
        ("embedding length", format_value(info.get(f"{family}.embedding_length", ""))),
        ("quantization", details.get("quantization_level") or ""),
        ("requires", response.get("requires") or ""),
    ]
    return [row for row in rows if row[1]]


def _projector_rows(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    family, count = info.get("general.architecture") or "", info.get("general.parameter_count")
    rows = [
        ("architecture", family),
        ("parameters", formatting.parameter_count(int(count)) if count else ""),
        ("embedding length", format_value(info.get(f"{family}.vision.embedding_length", ""))),
        ("dimensions", format_value(info.get(f"{family}.vision.projection_dim", ""))),
    ]
    return [row for row in rows if row[1]]


def format_value(value: Any) -> str:
    """A value of a model's metadata for a narrow column: a long list shows its first items and the number of the others."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return formatting.number(float(value))
    if not isinstance(value, list):
        return "" if value is None else " ".join(str(value).split())
    columns, count = 1, 0
    for text in map(format_value, value):
        columns += formatting.width(text) + (2 if count else 0)
        if count and columns > _MAX_ARRAY_COLUMNS:
            break
        count += 1
    return _array(value) if count == len(value) else f"{_array(value[:count])[:-1]} ...+{len(value) - count} more]"


def _array(items: list[Any]) -> str:
    return f"[{' '.join(map(format_value, items))}]"


def _first_lines(text: str) -> list[tuple[str]]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return [(line,) for line in lines[:_MAX_TEXT_LINES]] + ([("...",)] if len(lines) > _MAX_TEXT_LINES else [])
