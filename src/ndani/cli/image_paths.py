"""Paths of images in a prompt that is typed at a terminal: the files are sent with it, and the paths left out, as in Ollama.

A path begins with `/`, `./`, `../`, `~/` or a drive, so that a bare word is never taken for one; it may be in quotes, with a
backslash before each blank. What no file has stays text.
"""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

from ndani.cli.output import emit
from ndani.control_characters import replace_controls
from ndani.errors import BadRequest

#: The largest file that is sent: as much as a request may hold of it as base64.
MAX_FILE_SIZE = 100 * 2**20

_BEGIN, _END = r"(?:[A-Za-z]:[\\/]|~/|\.{0,2}/|\.{1,2}\\)", r"\.(?:jpe?g|png|gif|bmp|webp)\b"
_PATH = re.compile(
    rf"'(?P<single>{_BEGIN}[^']*?{_END})'|\"(?P<double>{_BEGIN}[^\"]*?{_END})\"|(?<!\S)(?P<bare>{_BEGIN}(?:\\.|\S)*?{_END})(?!\S*/)",
    re.IGNORECASE,
)


def names_images(prompt: str) -> bool:
    """Whether a prompt holds what looks like the path of an image."""
    return bool(_PATH.search(prompt))


def take_images(prompt: str) -> tuple[str, list[str]]:
    """The prompt without the paths of images that exist, and these images as base64.

    Raises BadRequest for a file that cannot be read or is too large.
    """
    images: list[str] = []

    def take(match: re.Match[str]) -> str:
        text = match["single"] or match["double"] or match["bare"]
        literal, unescaped = Path(text).expanduser(), Path(re.sub(r"\\(.)", r"\1", text)).expanduser()
        path = literal if literal.is_file() or sys.platform == "win32" else unescaped
        if not path.is_file():
            return match[0]
        images.append(_encoded(path))
        emit(f"Added image '{replace_controls(text)}'", err=True)
        return ""

    return _PATH.sub(take, prompt).strip() if names_images(prompt) else prompt, images


def _encoded(path: Path) -> str:
    name = replace_controls(path.name)
    try:
        if path.stat().st_size > MAX_FILE_SIZE:
            raise BadRequest(f"the image {name} is larger than {MAX_FILE_SIZE // 2**20} MB; make it smaller")
        return base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise BadRequest(f"the image {name} cannot be read ({error.strerror}); check its rights") from None
