"""Reading lines at the prompt: line editing, history, Tab completion, and an external editor."""

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

#: A larger history file is cut to its newer half when a prompt begins.
MAX_HISTORY_BYTES = 1 << 20


class _EditorRequested(Exception):
    """Ctrl-G was pressed; `text` is the current line."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class History(FileHistory):
    """The history in a file that only its owner can read; new lines are written while `enabled`.

    When the file cannot be read or written, the prompt works without a history and `failure` has the reason.
    """

    def __init__(self, path: Path, *, enabled: bool) -> None:
        super().__init__(str(path))
        self._path = path
        self.set_enabled(enabled)

    def set_enabled(self, enabled: bool) -> None:
        """Turn the writing of new lines on or off. Creates the file first, readable by its owner only."""
        self.enabled, self.failure = enabled, ""
        if enabled or self._path.exists():
            with self._recording_failure():
                _prepare_file(self._path)

    def load_history_strings(self) -> Iterable[str]:
        """The earlier lines, newest first."""
        entries: list[str] = []
        with self._recording_failure():
            entries += super().load_history_strings()
        return entries

    def store_string(self, string: str) -> None:
        """Write a line to the file, when enabled."""
        if self.enabled and not self.failure:
            with self._recording_failure():
                super().store_string(string)

    @contextlib.contextmanager
    def _recording_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = f"what you type is not kept: {self._path}: {error.strerror}"


def _prepare_file(path: Path) -> None:
    """Create the file and its folder, accessible by their owner only; cut a large file to its newer half. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        os.fchmod(file.fileno(), 0o600)
        size = file.seek(0, os.SEEK_END)
        if size <= MAX_HISTORY_BYTES:
            return
        file.seek(size // 2)
        newer_half = file.read().partition(b"\n\n")[2]  # empty lines separate the entries
        file.seek(0)
        file.truncate()
        file.write(newer_half)


class LineReader:
    """The prompt: reads one line after another."""

    def __init__(self, settings: Settings) -> None:
        self.history = History(home() / "history", enabled=not settings.nohistory)
        self._editor = settings.editor
        output = create_output()
        # prompt_toolkit would print a warning in the middle of a conversation when a terminal does not report its cursor position.
        if isinstance(output, Vt100_Output):
            output.enable_cpr = False
        self._prompt: PromptSession[str] = PromptSession(
            history=self.history,
            completer=NestedCompleter.from_nested_dict(help_texts.COMPLETIONS),
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            prompt_continuation="... ",
            enable_suspend=True,
            output=output,
        )

    def read(self, *, continuation: bool = False) -> str:
        """Read the next line; `continuation` for a later line of a message. Raises EOFError for Ctrl-D, KeyboardInterrupt."""
        text = ""
        while True:
            try:
                return self._prompt.prompt(
                    "... " if continuation else ">>> ",
                    placeholder=lambda: _placeholder(continuation),
                    default=text,
                    complete_in_thread=False,
                )
            except _EditorRequested as request:
                text = request.text
                try:
                    text = edit(text, self._editor)
                except NdaniError as error:  # the line keeps its text
                    emit(f"error: {error}")


def _placeholder(continuation: bool) -> StyleAndTextTuples:
    # The placeholder must not stay on the screen after the line is entered.
    if get_app().is_done:
        return []
    return [("fg:ansibrightblack", help_texts.CONTINUATION_PLACEHOLDER if continuation else help_texts.PLACEHOLDER)]


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("c-g", filter=~is_searching)
    def _(event: KeyPressEvent) -> None:
        event.app.exit(exception=_EditorRequested(event.current_buffer.text))

    return bindings


def _split_command(text: str) -> list[str]:
    """Split a command into the program and its arguments; a bare path may contain spaces without quotes."""
    if shutil.which(text):
        return [text]
    try:
        return shlex.split(text) or ["vi"]
    except ValueError:  # an unclosed quote
        return text.split()


def edit(text: str, editor: str = "") -> str:
    """Let the user edit `text` in an editor, and return the new text: `editor`, else VISUAL, EDITOR, vi.

    Raises NotFound when the program does not exist, Failed when it fails.
    """
    command = _split_command(editor or os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    if not shutil.which(command[0]):
        raise NotFound(f'editor "{command[0]}" not found, set NDANI_EDITOR to the path of your preferred editor')
    try:
        # In a temporary folder: backup and swap files of the editor (`~`, `.swp`) also contain the prompt, and are removed with it.
        with tempfile.TemporaryDirectory(prefix="ndani-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "prompt.txt"
            path.write_text(text, encoding="utf-8", errors="surrogateescape")
            with _ignoring(signal.SIGINT):
                code = subprocess.run([*command, str(path)], check=False).returncode
            if code:
                raise Failed(f'editor "{command[0]}" ended with exit code {code}; the line is as it was before')
            return path.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    except OSError as error:  # not a program, or a full disk
        raise Failed(f'editor "{command[0]}" could not be used ({error.strerror}); set NDANI_EDITOR to another') from None


@contextlib.contextmanager
def _ignoring(number: signal.Signals) -> Iterator[None]:
    """Ignore a signal in this process while the editor runs, so that Ctrl-C reaches the editor alone and its text is not lost."""
    previous_handler = signal.signal(number, lambda *_: None)  # not SIG_IGN, which the editor would inherit
    try:
        yield
    finally:
        signal.signal(number, previous_handler)
