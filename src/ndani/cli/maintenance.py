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
    """Hash every file of a model, or of all; exit 1 when something is damaged and stays so."""
    ask: dict[str, Any] = {"model": args[0]} if args else {}
    for name in args:
        names.parse(name)
    client = connect_or_start(load())
    last = _verified(client, ask)
    damaged = last["damaged"]
    if not damaged:
        emit(f"{_files(last['files'])} checked ({size(last['size'])}), all whole")
        return 0
    bad = _files(len(damaged))
    if not repair and not _agreed(f"Pull {bad} again?"):
        raise Failed(f"{bad} of {last['files']} damaged; `ndani verify --repair` pulls them again")
    digests = [damage["digest"] for damage in damaged if "digest" in damage]
    again = _verified(client, ask | {"repair": True, "insecure": insecure, "digests": digests})
    if again["damaged"]:
        raise Failed(f"{_files(len(again['damaged']))} could not be repaired; remove the model, or create it again")
    emit(f"{bad} repaired")
    return 0


def _verified(client: ServerClient, ask: Mapping[str, Any]) -> Mapping[str, Any]:
    """One verification to its end, shown as it goes; its last line. What is damaged is said on stderr."""
    try:
        last = _follow(client, "/api/verify", ask, "the server ended before everything was checked; run it again")
    except KeyboardInterrupt:
        emit("stopped; nothing was changed" if not ask.get("repair") else "stopped; run it again to go on", err=True)
        raise
    for damage in last["damaged"]:
        file = f"{damage['digest'].replace(':', '-')}: " if "digest" in damage else ""
        users = f" (needed by {', '.join(damage['models'])})" if "models" in damage else ""
        emit(f"damaged: {file}{damage['problem']}{users}", err=True)
    return last


def _agreed(question: str) -> bool:
    """Whether a person at a terminal says yes; False for Ctrl-D, and where nobody can be asked. Raises KeyboardInterrupt."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    # Not click's: it makes one of Ctrl-C and Ctrl-D, and only the first is a user who wants to stop.
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
    """Remove blobs that no name needs, and unfinished pulls of more than a week ago.

    While a manifest cannot be read no blob is removed, which is said on stderr.
    """
    unused: list[Mapping[str, Any]] = []
    unread: list[Mapping[str, Any]] = []
    client = connect_or_start(load())
    try:
        last = _follow(client, "/api/prune", {"dry_run": dry_run}, "the server ended before it was done; run it again", unused, unread)
    except KeyboardInterrupt:
        emit("stopped; what was removed stays removed", err=True)
        raise
    for damage in unread:
        emit(f"damaged: {damage['problem']}", err=True)
    if unread:
        emit("files of models stay until that is mended: what it needs cannot be known", err=True)
    if dry_run:
        for file in unused:
            emit(f"{file['file']}  {size(file['size'])}")
    count = last["files"] + last["unfinished"]
    if not count:
        emit("nothing to remove")
    else:
        emit(f"{_files(count)} {'would be removed' if dry_run else 'removed'}, {size(last['freed'])} {'to free' if dry_run else 'freed'}")


def _follow(
    client: ServerClient,
    path: str,
    body: Mapping[str, Any],
    incomplete: str,
    unused: list[Mapping[str, Any]] | None = None,
    unread: list[Mapping[str, Any]] | None = None,
) -> Mapping[str, Any]:
    """Show long work to its end; its last line. Files that are reported on the way go to `unused`, what is damaged to `unread`."""
    last: dict[str, Any] = {}

    def shown(events: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for event in events:
            last.clear()
            last.update(event)
            if event.get("status") == "unused" and unused is not None:
                unused.append(dict(event))
            elif event.get("status") == "damaged" and unread is not None:
                unread.append(dict(event))
            elif event.get("status") not in ("unused", "damaged", "success"):
                yield event
        if last.get("status") == "success":
            yield {"status": "success"}

    with contextlib.closing(client.stream(path, dict(body))) as events:
        progress.follow(shown(events), incomplete, quiet_end=True)
    return last


def _files(count: int) -> str:
    return f"{count} file" if count == 1 else f"{count} files"
