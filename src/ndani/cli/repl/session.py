"""One conversation at a terminal: with which model, what was said and set. It asks the server, and prints answers.

What is typed becomes calls of this in `commands` and in the loop (`__init__`).
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ndani import names
from ndani.cli.answer_summary import print_answer_summary
from ndani.cli.autostart import connect_or_start
from ndani.cli.client import ServerClient
from ndani.cli.output import emit
from ndani.cli.suspend import restoring_cursor_on_suspend, restoring_on_suspend
from ndani.cli.word_wrap import WordWrapper
from ndani.control_characters import without_controls
from ndani.errors import Failed, NdaniError, NotFound
from ndani.settings import Settings

ChatTurn = dict[str, str]


class Session:
    """`said` is what every request says (model, keep_alive, think, …); `turns` the conversation so far.

    Every method raises what the server answers.
    """

    def __init__(self, settings: Settings, said: Mapping[str, Any], *, verbose: bool, wordwrap: bool) -> None:
        self._settings = settings
        self.said = dict(said)
        self.verbose, self.wordwrap = verbose, wordwrap
        self.system = ""
        self.options: dict[str, Any] = {}
        self.turns: list[ChatTurn] = []
        self.before: list[ChatTurn] = []  # what every conversation with this model begins with

    def reach(self) -> ServerClient:
        """The way to the server, for one call: one in the background that has left while nobody spoke is started again."""
        return connect_or_start(self._settings, quiet=True)

    @property
    def model(self) -> str:
        """The model's name as the user wrote it."""
        return str(self.said["model"])

    def open(self, model: str, *, insecure: bool | None = None) -> None:
        """Load a model and begin a conversation with it; with `insecure` said, one that is not here is pulled first."""
        try:
            self._load(model)
        except NotFound:
            if insecure is None:
                raise
            from ndani.cli.models import fetch

            fetch(self.reach(), model, insecure=insecure)
            self._load(model)
        shown = self.reach().request_json("POST", "/api/show", {"model": model})
        self.said["model"] = model
        self.before = [{"role": turn["role"], "content": turn["content"]} for turn in shown.get("messages") or ()]
        self.turns = []

    def _load(self, model: str) -> None:
        with _waiting(f"loading {model}"):
            self.reach().request_json("POST", "/api/chat", self._request([]) | {"model": model, "stream": False})

    def require(self, **fields: Any) -> None:
        """Raise what the server says of a request with these fields; nothing is generated."""
        self.reach().request_json("POST", "/api/chat", self._request([]) | fields | {"stream": False})

    def show(self) -> dict[str, Any]:
        """What the server knows of the model."""
        return dict(self.reach().request_json("POST", "/api/show", {"model": self.model}))

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes. Ctrl-C ends the answer: what came of it stays in the conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*self.turns, {"role": "user", "content": text}]
        writer = self.writer()
        answer: list[str] = []
        done: Mapping[str, Any] | None = None
        try:
            with _unechoed(), contextlib.closing(self.reach().stream("/api/chat", self._request([*system, *turns]))) as events:
                for event in events:
                    piece = (event.get("message") or {}).get("content") or ""
                    answer.append(piece)
                    writer.write(piece)
                    done = event if event.get("done") else None
            if done is None:
                raise Failed("the server ended the answer in the middle; ask again, and look at its log if it stays so")
        except KeyboardInterrupt:
            writer.close()
            emit("\n")
        except NdaniError:
            if writer.close():
                emit("\n")
            raise
        else:
            writer.close()
            emit("\n")
            print_answer_summary(done, verbose=self.verbose)
        # A question without any answer is not part of a conversation: models expect the turns to alternate.
        if done or any(answer):
            self.turns = [*turns, {"role": "assistant", "content": "".join(answer)}]

    def save(self, name: str) -> None:
        """Make a model of this one, with what was said and set in this conversation."""
        names.parse(name)
        body: dict[str, Any] = {"model": name, "from": self.model}
        if self.system:
            body["system"] = self.system
        if self.options:
            body["parameters"] = self.options
        talk = self.before + self.turns
        if self.turns:
            body["messages"] = talk
        status = ""
        with contextlib.closing(self.reach().stream("/api/create", body)) as events:
            for event in events:
                status = str(event.get("status") or "")
        if status != "success":
            raise Failed(f"the server ended before {name} was made; save it again")
        if names.parse(name).key == names.parse(self.model).key:
            # From now on the model itself begins with all this.
            self.before, self.turns = talk, []

    def writer(self) -> WordWrapper:
        """What puts a model's words on the screen."""
        return WordWrapper(sys.stdout, columns=shutil.get_terminal_size().columns if self.wordwrap else 0, terminal=True)

    def _request(self, messages: list[ChatTurn]) -> dict[str, Any]:
        return {**self.said, "messages": messages} | ({"options": self.options} if self.options else {})


@contextlib.contextmanager
def _unechoed() -> Iterator[None]:
    """While an answer is written nothing that is typed shows among it; it waits for the next prompt, letter for letter.

    Ctrl-C is still obeyed, and discards what was typed before it, as in a shell.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    terminal = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(terminal)
    except termios.error:  # the terminal is gone
        yield
        return
    silent = list(before)
    # Not by lines either: the terminal would keep no more than 4,095 bytes of one, and take keys for its own editing.
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)

    def become(modes: list[Any]) -> None:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, modes)

    with restoring_on_suspend(lambda: become(before), lambda: become(silent)):
        become(silent)
        try:
            yield
        finally:
            become(before)


@contextlib.contextmanager
def _waiting(words: str) -> Any:
    """A sign of life on a terminal while nothing else can be shown; gone when it is over."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with (
        console.status(Text(without_controls(words))),
        restoring_cursor_on_suspend(lambda: 1) if console.is_terminal else contextlib.nullcontext(),
    ):
        yield
