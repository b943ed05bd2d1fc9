"""Reading a line at the prompt: editing, history, Tab, and an editor of the user's. What a line means is not known here."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import NestedCompleter
from prompt_toolkit.filters import is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output

from ndani.cli.output import emit
from ndani.cli.repl import help_texts
from ndani.errors import Failed, NdaniError, NotFound
from ndani.settings import Settings, home

#: A history file above this many bytes is cut to its newer half when a prompt begins.
MOST_HISTORY = 1 << 20


class _EditorAsked(Exception):
    """Ctrl-G; `text` is what stood on the line."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class History(FileHistory):
    """What was typed, in a file that only its owner reads; `keeping` says whether more is written there.

    A file that cannot be read or written costs the history, never the prompt: `lost` then says why.
    """

    def __init__(self, path: Path, *, keeping: bool) -> None:
        super().__init__(str(path))
        self._path = path
        self.keep(keeping)

    def keep(self, keeping: bool) -> None:
        """Whether what is typed from now on is written; the file is there before, for its owner alone."""
        self.keeping, self.lost = keeping, ""
        if keeping or self._path.exists():
            with self._losing():
                _prepare(self._path)

    def load_history_strings(self) -> Iterable[str]:
        """What was typed before, the newest first."""
        found: list[str] = []
        with self._losing():
            found += super().load_history_strings()
        return found

    def store_string(self, string: str) -> None:
        """Write one entry, or not."""
        if self.keeping and not self.lost:
            with self._losing():
                super().store_string(string)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = f"what you type is not kept: {self._path}: {error.strerror}"


def _prepare(path: Path) -> None:
    """Make the file and its folder for their owner alone, and cut a long one to its newer half. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        size = file.seek(0, os.SEEK_END)
        if size <= MOST_HISTORY:
            return
        file.seek(size // 2)
        newer = file.read().partition(b"\n\n")[2]  # entries are parted by empty lines
        file.seek(0)
        file.truncate()
        file.write(newer)


class LineReader:
    """One prompt after another."""

    def __init__(self, settings: Settings) -> None:
        self.history = History(home() / "history", keeping=not settings.nohistory)
        self._editor = settings.editor
        output = create_output()
        # A terminal that does not say where its cursor is would be complained about in the middle of a conversation.
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False
        self._prompt: PromptSession[str] = PromptSession(
            history=self.history,
            completer=NestedCompleter.from_nested_dict(help_texts.FOLLOWING),
            complete_while_typing=False,
            key_bindings=_keys(),
            prompt_continuation="... ",
            enable_suspend=True,
            output=output,
        )

    def read(self, *, more: bool = False) -> str:
        """The next line; `more` asks for the rest of a message. Raises EOFError for Ctrl-D, KeyboardInterrupt."""
        text = ""
        while True:
            try:
                return self._prompt.prompt(
                    "... " if more else ">>> ", placeholder=lambda: _placeholder(more), default=text, complete_in_thread=False
                )
            except _EditorAsked as asked:
                text = asked.text
                try:
                    text = edit(text, self._editor)
                except NdaniError as error:  # what stood on the line stays there
                    emit(f"error: {error}")


def _placeholder(more: bool) -> StyleAndTextTuples:
    # It must not stay on the screen behind a line that is over.
    if get_app().is_done:
        return []
    return [("fg:ansibrightblack", help_texts.MORE_PLACEHOLDER if more else help_texts.PLACEHOLDER)]


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("c-g", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(exception=_EditorAsked(event.current_buffer.text))

    return keys


def _command(said: str) -> list[str]:
    """A program and its words; a path with spaces may stand alone, without quotes."""
    if shutil.which(said):
        return [said]
    try:
        return shlex.split(said) or ["vi"]
    except ValueError:  # an odd number of quotes
        return said.split()


def edit(text: str, editor: str = "") -> str:
    """What the user makes of `text` in an editor: `editor`, else VISUAL, EDITOR, vi.

    Raises NotFound when there is no such program, Failed when it failed.
    """
    command = _command(editor or os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    if not shutil.which(command[0]):
        raise NotFound(f'editor "{command[0]}" not found, set NDANI_EDITOR to the path of your preferred editor')
    try:
        # A folder of its own: what an editor leaves beside the file (`~`, `.swp`) holds the prompt too, and goes with it.
        with tempfile.TemporaryDirectory(prefix="ndani-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "prompt.txt"
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            with _left_to_the_editor(signal.SIGINT):
                code = subprocess.run([*command, str(path)], check=False).returncode
            if code:
                raise Failed(f'editor "{command[0]}" ended with exit code {code}; the line is as it was before')
            return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError as error:  # no program after all, or a disk that is full
        raise Failed(f'editor "{command[0]}" could not be used ({error.strerror}); set NDANI_EDITOR to another') from None


@contextlib.contextmanager
def _left_to_the_editor(number: signal.Signals) -> Iterator[None]:
    """Ctrl-C is for the editor: one that obeys it ends and says so, and one that does not is not killed with the text in it."""
    before = signal.signal(number, lambda number, frame: None)  # not ignored: that, an editor would inherit
    try:
        yield
    finally:
        signal.signal(number, before)
