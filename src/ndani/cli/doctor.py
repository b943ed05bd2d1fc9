"""`ndani doctor`: what this machine has, and whether a running model can reach the network.

The checks in this module inspect the machine. The server tests the routes to the network, by a probe inside a real runner.
The exit code is 0 only when every route is blocked and nothing required is missing.
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
    """The result of one check. `passed` is None when something optional is missing."""

    name: str
    passed: bool | None
    detail: str


@click.command(
    "doctor",
    cls=Command,
    usage="doctor",
    arity=exactly(0),
    environment=(HOST_VARIABLE,),
    help="Check this machine, and that a running model cannot get out",
)
def doctor(args: tuple[str, ...]) -> int:
    """Print the checks and the routes; exit 0 only when every route out of a runner is blocked."""
    from ndani.cli.autostart import connect_or_start

    settings = load()
    checks = [*_check_software(), _check_store(settings), *_check_kernel()]
    emit("This machine")
    labels = {True: "ok", False: "MISSING", None: "note"}
    emit(tables.pairs([(labels[check.passed], check.name, check.detail) for check in checks]))
    client = connect_or_start(settings)
    report = client.request_json("POST", "/api/doctor", required_field="routes")
    emit(f"Server at {client.url}")
    emit(tables.pairs(_server_rows(report)))
    routes = report.get("routes") or []
    if routes:
        emit("Routes out of a running model, each tried by a probe inside its process")
        emit(tables.pairs([("ROUTE", "OUTSIDE", "INSIDE"), *map(_route_row, routes)]))
    for warning in report.get("warnings") or ():
        emit(f"Warning: {warning}")
    missing = [check.name for check in checks if check.passed is False]
    passed, conclusion = verdict(routes, missing)
    emit(conclusion)
    return 0 if passed else 1


def verdict(routes: list[Mapping[str, Any]], missing: list[str]) -> tuple[bool, str]:
    """Whether every route is blocked and nothing is missing, and the last line of the report."""
    open_routes = [route["name"] for route in routes if route.get("inside") != "blocked"]
    if open_routes:
        return False, f"NOT SEALED: {len(open_routes)} of {len(routes)} routes are open from inside a runner: {', '.join(open_routes)}"
    if not routes:
        return False, "NOT KNOWN: no route could be tried; the warnings say why"
    if missing:
        return False, f"All {len(routes)} routes are blocked, but something needed is missing: {', '.join(missing)}"
    return True, f"All {len(routes)} routes are blocked: a running model cannot open a connection"


def _route_row(route: Mapping[str, Any]) -> tuple[str, str, str]:
    reason = f" ({route['why']})" if route.get("why") else ""
    state = "blocked" if route.get("inside") == "blocked" else f"OPEN: {route.get('inside')}"
    return str(route["name"]), str(route.get("outside") or "-"), state + reason


def _server_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    jail = report.get("confinement") or {}
    parts = [part for part in ("seccomp", "landlock", "namespace") if jail.get(part)]
    detail = f"{jail.get('word') or 'not known'} ({', '.join(parts) or 'none of its parts'})"
    rows = [("engine", str(report.get("engine") or "-")), ("model", str(report.get("model") or "-")), ("confinement", detail)]
    return rows + [("", f"missing: {what}") for what in jail.get("missing") or ()]


def _check_software() -> list[Check]:
    checks = [Check("Python", sys.version_info >= (3, 11), platform.python_version())]
    if sys.platform == "linux":
        loadable = True
        try:
            ctypes.CDLL("libgomp.so.1")
        except OSError:
            loadable = False
        advice = "not found; install it with the system's packages (libgomp1, or libgomp)"
        checks.append(Check("libgomp.so.1", loadable, "found" if loadable else advice))
    return checks


def _check_store(settings: Settings) -> Check:
    folder = settings.models
    existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    with contextlib.suppress(OSError):
        free = f"{formatting.size(shutil.disk_usage(existing).free)} free"
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        return Check("store", writable, f"{folder}, {'writable' if writable else 'NOT writable'}, {free}")
    return Check("store", False, f"{folder} cannot be looked at")


def _check_kernel() -> list[Check]:
    if sys.platform != "linux":
        return [Check("confinement", False, f"this version confines runners on Linux only, and this is {sys.platform}")]
    seccomp = Path("/proc/sys/kernel/seccomp/actions_avail").exists()
    allowed, detail = _namespaces_allowed()
    return [
        Check("seccomp", seccomp, "filters available" if seccomp else "this kernel has no seccomp filters, and runners need them"),
        _check_landlock(),
        Check("namespaces", True if allowed else None, detail),
    ]


def _check_landlock() -> Check:
    from ndani.jail import landlock

    try:
        version = landlock.abi()
    except OSError as error:
        return Check("landlock", False, f"forbidden here ({error.strerror}), as containers do: runners are unconfined")
    detail = f"available, version {version}" if version else "not in this kernel, or turned off: runners are unconfined"
    return Check("landlock", version > 0, detail)


def _namespaces_allowed() -> tuple[bool, str]:
    if os.geteuid() == 0:
        return True, "running as root: allowed unless the container forbids it"
    forbidding_values = {"/proc/sys/user/max_user_namespaces": "0", "/proc/sys/kernel/unprivileged_userns_clone": "0"}
    forbidding_values["/proc/sys/kernel/apparmor_restrict_unprivileged_userns"] = "1"
    for file, value in forbidding_values.items():
        with contextlib.suppress(OSError):
            if Path(file).read_text().strip() == value:
                return False, f"not for ordinary users here ({file} is {value}): the filter alone blocks the network"
    return True, "allowed"
