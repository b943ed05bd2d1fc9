"""What a child of ours imports and opens after its jail is shut: it is started by way of a program that keeps a list.

Inside, nothing can be opened any more, so whatever Python loads only when it is first needed (a codec, a module, the lines
of a source file) fails there, and only there.
"""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

#: Started as Python is (`-I -m MODULE …`; a path to a program will do as well). The list is open before the jail shuts;
#: the flag is set by the last thing that happens outside.
_PROGRAM = """#!{python} -I
import os, runpy, sys
notes, shut = os.open({notes!r}, os.O_WRONLY | os.O_APPEND), False
def hook(event, words):
    if shut and event in ("import", "open", "os.listdir", "os.scandir") and not isinstance(words[0], int):
        os.write(notes, (event + " " + str(words[0])[:200] + chr(10)).encode("utf-8", "replace"))
sys.addaudithook(hook)
from ndani import jail
real = jail.enter
def shutting(policy):
    global shut
    found = real(policy)
    shut = True
    return found
jail.enter = shutting
module, sys.argv = sys.argv[3], sys.argv[3:]
if module.endswith(".py"):
    runpy.run_path(module, run_name="__main__")
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@contextlib.contextmanager
def audited(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Path]:
    """While inside, every child of this process is watched; a file with a line for each thing that one reached for too late."""
    notes, program = folder / "reached", folder / "watched"
    notes.touch()
    program.write_text(_PROGRAM.format(python=sys.executable, notes=str(notes)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(program))
        yield notes
