"""Commands that look after the store: verify, prune."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ndani import names
from ndani.cli import progress
from ndani.cli.autostart import connect_or_start
from ndani.cli.client import ServerClient
from ndani.cli.command import Command, at_most, exactly
from ndani.cli.formatting import size
from ndani.cli.output import emit
from ndani.errors import Failed
from ndani.settings import load


@click.command("verify", cls=Command, usage="verify [MODEL]", arity=at_most(1), help="Check that the files of models are whole")
@click.option("--repair", is_flag=True, help="Pull again what is damaged, without asking")
@click.option("--insecure", is_flag=True, help="Use an insecure registry for repairs")
def verify(args: tuple[str, ...], repair: bool, insecure: bool) -> int:
    """Hash every file of a model, or of all models; exit 1 when a damaged file is not repaired."""
    request: dict[str, Any] = {"model": args[0]} if args else {}
    for name in args:
        names.parse(name)
    client = connect_or_start(load())
    result = _run_verify(client, request)
    damaged = result["damaged"]
    if not damaged:
        emit(f"{_file_count(result['files'])} checked ({size(result['size'])}), all whole")
        return 0
    damaged_files = _file_count(len(damaged))
    if not repair and not _confirm(f"Pull {damaged_files} again?"):
        raise Failed(f"{damaged_files} of {result['files']} damaged; `ndani verify --repair` pulls them again")
    digests = [damage["digest"] for damage in damaged if "digest" in damage]
    after_repair = _run_verify(client, request | {"repair": True, "insecure": insecure, "digests": digests})
    if after_repair["damaged"]:
        raise Failed(f"{_file_count(len(after_repair['damaged']))} could not be repaired; remove the model, or create it again")
    emit(f"{damaged_files} repaired")
    return 0


def _run_verify(client: ServerClient, request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Run one verification with its progress and return its last event. Damaged files are reported on stderr."""
    try:
        result, _ = _follow(client, "/api/verify", request, "the server ended before everything was checked; run it again")
    except KeyboardInterrupt:
        emit("stopped; nothing was changed" if not request.get("repair") else "stopped; run it again to go on", err=True)
        raise
    for damage in result["damaged"]:
        file = f"{damage['digest'].replace(':', '-')}: " if "digest" in damage else ""
        users = f" (needed by {', '.join(damage['models'])})" if "models" in damage else ""
        emit(f"damaged: {file}{damage['problem']}{users}", err=True)
    return result


def _confirm(question: str) -> bool:
    """Whether the user confirms at the terminal; False for Ctrl-D, and without a terminal. Raises KeyboardInterrupt."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    # Not click.confirm, which treats Ctrl-C and Ctrl-D alike: only Ctrl-C stops the command.
    emit(f"{question} [y/N]: ", nl=False, err=True)
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        emit(err=True)
        raise
    if not answer:
        emit(err=True)
    return answer.strip().lower() in ("y", "yes")


@click.command("prune", cls=Command, usage="prune", arity=exactly(0), help="Remove files that no model needs")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed")
def prune(args: tuple[str, ...], dry_run: bool) -> None:
    """Remove blobs that no manifest needs, and unfinished pulls that are more than a week old.

    When a manifest cannot be read, no blob is removed, and this is reported on stderr.
    """
    client = connect_or_start(load())
    try:
        result, reported = _follow(client, "/api/prune", {"dry_run": dry_run}, "the server ended before it was done; run it again")
    except KeyboardInterrupt:
        emit("stopped; what was removed stays removed", err=True)
        raise
    for damage in reported["damaged"]:
        emit(f"damaged: {damage['problem']}", err=True)
    if reported["damaged"]:
        emit("files of models stay until that is mended: what it needs cannot be known", err=True)
    if dry_run:
        for file in reported["unused"]:
            emit(f"{file['file']}  {size(file['size'])}")
    count = result["files"] + result["unfinished"]
    if not count:
        emit("nothing to remove")
    else:
        removed, freed = ("would be removed", "to free") if dry_run else ("removed", "freed")
        emit(f"{_file_count(count)} {removed}, {size(result['freed'])} {freed}")


def _follow(
    client: ServerClient, path: str, body: Mapping[str, Any], incomplete: str
) -> tuple[Mapping[str, Any], dict[str, list[Mapping[str, Any]]]]:
    """Show the progress of long work. Returns its last event, and the events about single files by status (unused, damaged)."""
    result: Mapping[str, Any] = {}
    reported: dict[str, list[Mapping[str, Any]]] = {"unused": [], "damaged": []}

    def progress_events(events: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        nonlocal result
        for event in events:
            result, status = event, str(event.get("status") or "")
            if status in reported:
                reported[status].append(event)
            elif status != "success":
                yield event
        if result.get("status") == "success":
            yield result

    with contextlib.closing(client.stream(path, body)) as events:
        progress.follow(progress_events(events), incomplete, hide_success=True)
    return result, reported


def _file_count(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"
