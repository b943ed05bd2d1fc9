"""Run a command as an ordinary user (nobody), from tests that run as root. Shared by tests; holds no test.

The interpreter, the virtual environment and the repository often lie under a folder that only root may enter. In a
mount namespace of the command's own, each such folder is covered by an empty one that all may enter, with the needed
folders bound back in their places; nothing outside that namespace changes.
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534

# $1 scratch; then covers, "--", folders to bind back, "--", the command. `set -e`: a step that fails ends it with 97.
_SCRIPT = r"""
set -e
trap 'test $? = 0 || exit 97' EXIT
mount --make-rprivate /
scratch=$1; shift
mount -t tmpfs tmpfs "$scratch"
covers=; number=0
while [ "$1" != -- ]; do covers="$covers $1"; shift; done; shift
kept=
while [ "$1" != -- ]; do
  number=$((number + 1)); mkdir "$scratch/$number"; mount --bind "$1" "$scratch/$number"; kept="$kept $1"; shift
done; shift
for cover in $covers; do mount -t tmpfs -o mode=755 tmpfs "$cover"; done
number=0
for place in $kept; do number=$((number + 1)); mkdir -p "$place"; mount --bind "$scratch/$number" "$place"; done
umount -l "$scratch"
trap - EXIT
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


def run_as_ordinary_user(argv: list[str], env: dict[str, str] | None = None, *, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run `argv` as nobody and return what it said; skips, with the reason, where this machine cannot do that.

    Run by an ordinary user already, it is run as it is.
    """
    given = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"} | (env or {})
    if os.geteuid() != 0:
        return subprocess.run(argv, env=given, capture_output=True, text=True, timeout=timeout)
    reason = _why_not()
    if reason:
        pytest.skip(reason)
    return subprocess.run([*_prefix(), *argv], env=given, capture_output=True, text=True, timeout=timeout, cwd="/")


@functools.cache
def _why_not() -> str:
    missing = [tool for tool in ("unshare", "setpriv", "mount") if not shutil.which(tool)]
    if missing:
        return f"needs {', '.join(missing)} to become an ordinary user"
    tried = subprocess.run([*_prefix(), sys.executable, "-I", "-c", "import ndani"], capture_output=True, text=True, cwd="/")
    if tried.returncode:
        return f"an ordinary user cannot run the interpreter here: {tried.stderr.strip()[-200:]}"
    return ""


@functools.cache
def _prefix() -> tuple[str, ...]:
    import ndani

    needed = {Path(sys.prefix), Path(sys.base_prefix).resolve(), Path(ndani.__file__).parent.parent}
    covers = sorted({str(cover) for place in needed if (cover := _closed(place)) is not None})
    kept = sorted(str(place) for place in needed if _closed(place) is not None)
    scratch = "/mnt" if Path("/mnt").is_dir() else "/media"
    return ("unshare", "-m", "sh", "-c", _SCRIPT, "ordinary", scratch, *covers, "--", *kept, "--")


def _closed(place: Path) -> Path | None:
    """The topmost folder above `place` that others may not enter, if there is one."""
    for above in reversed(place.parents):
        if not above.stat().st_mode & stat.S_IXOTH:
            return above
    return None
