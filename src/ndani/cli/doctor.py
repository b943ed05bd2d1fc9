"""`ndani doctor`: what this machine has, and whether a running model can get out of it.

The checks here look at the machine from outside; that each route is blocked is found out by the server, which lets a
probe inside a real runner try them. Exit 0 only when all are blocked and nothing that is needed is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ndani.cli import formatting, tables
from ndani.cli.command import HOST_VARIABLE, Command, exactly
from ndani.cli.output import emit
from ndani.settings import Settings, load


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `good` is None for what would be nice and is not needed."""

    name: str
    good: bool | None
    words: str


@click.command(
    "doctor",
    cls=Command,
    usage="doctor",
    arity=exactly(0),
    environment=(HOST_VARIABLE,),
    help="Check this machine, and that a running model cannot get out",
)
def doctor(args: tuple[str, ...]) -> int:
    """Print what was found; exit 0 only when every route out of a runner is blocked."""
    from ndani.cli.autostart import connect_or_start

    settings = load()
    checks = [*_software(), _store(settings), *_kernel()]
    emit("This machine")
    mark = {True: "ok", False: "MISSING", None: "note"}
    emit(tables.pairs([(mark[check.good], check.name, check.words) for check in checks]))
    client = connect_or_start(settings)
    report = client.request_json("POST", "/api/doctor", required_field="routes")
    emit(f"Server at {client.url}")
    emit(tables.pairs(_server(report)))
    routes = report.get("routes") or []
    if routes:
        emit("Routes out of a running model, each tried by a probe inside its process")
        emit(tables.pairs([("ROUTE", "OUTSIDE", "INSIDE"), *map(_route, routes)]))
    for sentence in report.get("warnings") or ():
        emit(f"Warning: {sentence}")
    missing = [check.name for check in checks if check.good is False]
    sealed, sentence = verdict(routes, missing)
    emit(sentence)
    return 0 if sealed else 1


def verdict(routes: list[Mapping[str, Any]], missing: list[str]) -> tuple[bool, str]:
    """Whether all is well, and the last line that says so."""
    open_ = [route["name"] for route in routes if route.get("inside") != "blocked"]
    if open_:
        return False, f"NOT SEALED: {len(open_)} of {len(routes)} routes are open from inside a runner: {', '.join(open_)}"
    if not routes:
        return False, "NOT KNOWN: no route could be tried; the warnings say why"
    if missing:
        return False, f"All {len(routes)} routes are blocked, but something needed is missing: {', '.join(missing)}"
    return True, f"All {len(routes)} routes are blocked: a running model cannot open a connection"


def _route(route: Mapping[str, Any]) -> tuple[str, str, str]:
    why = f" ({route['why']})" if route.get("why") else ""
    word = "blocked" if route.get("inside") == "blocked" else f"OPEN: {route.get('inside')}"
    return str(route["name"]), str(route.get("outside") or "-"), word + why


def _server(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    jail = report.get("confinement") or {}
    parts = [part for part in ("seccomp", "landlock", "namespace") if jail.get(part)]
    words = f"{jail.get('word') or 'not known'} ({', '.join(parts) or 'none of its parts'})"
    rows = [("engine", str(report.get("engine") or "-")), ("model", str(report.get("model") or "-")), ("confinement", words)]
    return rows + [("", f"missing: {what}") for what in jail.get("missing") or ()]


def _software() -> list[Check]:
    checks = [Check("Python", sys.version_info >= (3, 11), platform.python_version())]
    if sys.platform == "linux":
        found = True
        try:
            ctypes.CDLL("libgomp.so.1")
        except OSError:
            found = False
        advice = "not found; install it with the system's packages (libgomp1, or libgomp)"
        checks.append(Check("libgomp.so.1", found, "found" if found else advice))
    return checks


def _store(settings: Settings) -> Check:
    folder = settings.models
    near = next((place for place in (folder, *folder.parents) if place.exists()), Path("/"))
    with contextlib.suppress(OSError):
        free = f"{formatting.size(shutil.disk_usage(near).free)} free"
        writable = near.is_dir() and os.access(near, os.W_OK | os.X_OK)
        return Check("store", writable, f"{folder}, {'writable' if writable else 'NOT writable'}, {free}")
    return Check("store", False, f"{folder} cannot be looked at")


def _kernel() -> list[Check]:
    if sys.platform != "linux":
        return [Check("confinement", False, f"this version confines runners on Linux only, and this is {sys.platform}")]
    seccomp = Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    spaces, words = _namespaces()
    return [
        Check("seccomp", seccomp, "filters available" if seccomp else "this kernel has no seccomp filters, and runners need them"),
        _landlock(),
        Check("namespaces", True if spaces else None, words),
    ]


def _landlock() -> Check:
    from ndani.jail import landlock

    try:
        version = landlock.abi()
    except OSError as error:
        return Check("landlock", False, f"forbidden here ({error.strerror}), as containers do: runners are unconfined")
    words = f"available, version {version}" if version else "not in this kernel, or turned off: runners are unconfined"
    return Check("landlock", version > 0, words)


def _namespaces() -> tuple[bool, str]:
    if os.geteuid() == 0:
        return True, "running as root: allowed unless the container forbids it"
    refused = {"/proc/sys/user/max_user_namespaces": "0", "/proc/sys/kernel/unprivileged_userns_clone": "0"}
    refused["/proc/sys/kernel/apparmor_restrict_unprivileged_userns"] = "1"
    for path, word in refused.items():
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == word:
                return False, f"not for ordinary users here ({path} is {word}): the filter alone blocks the network"
    return True, "allowed"
