"""Compare ndani's interactive prompt with the recorded one of Ollama's, command by command.

`sections()` are the recording's; `comparable` says which can agree on any model, and which only on the recorded one.
Empty lines do not count (the recording has none), nor does where a terminal of 90 columns broke a line.
"""

from __future__ import annotations

import re
from pathlib import Path

from golden_cli import ours

RECORDED = Path(__file__).parent / "golden" / "ollama-repl.txt"
PROMPT = ">>> Send a message (/? for help)"

#: What cannot agree, and why.
DIFFERS = {
    "start": "the first prompt; there is nothing before it",
    "/set format json": "format is not in this version; it is refused where it is set",
    "Say hi": "a generated answer",
    "Say hi again": "a generated answer; its timings are compared in test_repl.py",
    "/set think": "Ollama warns, sets it all the same, and every message after it fails; ndani refuses it here",
    'multi-line """': "the recording shows that failure",
    "/load mine": "and so does this one",
    "Ctrl-C in an answer": "and this one; see test_repl.py",
    "Ctrl-C at the prompt": "a key, and no command; see test_repl.py",
}
#: What shows a model: they agree where the model is the recorded one.
OF_A_MODEL = ("/show info", "/show parameters", "/show modelfile")


def sections() -> dict[str, list[str]]:
    """What was shown after each command: its lines, without the echo of the command and without the next prompt."""
    text = ours(RECORDED.read_text(encoding="utf-8"))
    found = {}
    for block in re.split(r"(?m)^=== after: ", text)[1:]:
        command, *lines = block.rstrip("\n").split("\n")
        if lines and lines[0] == command:
            lines = lines[1:]
        found[command] = [line for line in lines if line != PROMPT]
    return found


def brought(lines: list[str]) -> list[str]:
    """Lines in the form that is compared: the place of the store masked, parameters of a Modelfile in order."""
    text = "\n".join(line.rstrip() for line in lines if line.strip())
    text = re.sub(r"(?m)sha256-[0-9a-f]+(?:\n[0-9a-f]+$)?", "sha256-<hex>", text)
    text = re.sub(r"FROM \S*/blobs", "FROM <models>/blobs", text)
    if text.startswith("# Modelfile"):
        return sorted(text.splitlines())
    return text.splitlines()
