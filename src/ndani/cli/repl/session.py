"""One chat session at a terminal: its model, messages and settings. It sends requests to the server and prints the answers.

`commands` and the loop in `__init__` call it for the lines that the user types.
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
from ndani.cli.image_paths import names_images, take_images
from ndani.cli.output import emit
from ndani.cli.suspend import restoring_cursor_on_suspend, restoring_on_suspend
from ndani.cli.thinking import ThinkingWriter
from ndani.cli.word_wrap import WordWrapper
from ndani.control_characters import replace_controls
from ndani.errors import Failed, NdaniError, NotFound
from ndani.settings import Settings

ChatMessage = dict[str, Any]


class Session:
    """`request_fields` are in every request (model, keep_alive, think, …); `messages` is the conversation so far.

    Every method raises the error that the server reports.
    """

    def __init__(
        self, settings: Settings, request_fields: Mapping[str, Any], *, verbose: bool, wordwrap: bool, hide_thinking: bool = False
    ) -> None:
        self._settings = settings
        self.request_fields = dict(request_fields)
        self.verbose, self.wordwrap = verbose, wordwrap
        self._hide_thinking = hide_thinking
        self.system = ""
        self.options: dict[str, Any] = {}
        self.messages: list[ChatMessage] = []
        self.preset_messages: list[ChatMessage] = []  # the messages that are part of the model
        self._sees = False  # whether the model takes images

    def client(self) -> ServerClient:
        """A client for one call. Starts the background server again when it has exited because it was idle."""
        return connect_or_start(self._settings, quiet=True)

    @property
    def model(self) -> str:
        """The model's name, as the user wrote it."""
        return str(self.request_fields["model"])

    def load_or_pull(self, model: str, *, insecure: bool) -> None:
        """Load a model and begin a conversation with it; a missing model is pulled first."""
        try:
            self._load(model)
        except NotFound:
            from ndani.cli.models import pull_with_progress

            pull_with_progress(self.client(), model, insecure=insecure)
            self._load(model)
        self._begin_conversation(model)

    def load(self, model: str) -> None:
        """Load a model and begin a conversation with it."""
        self._load(model)
        self._begin_conversation(model)

    def _load(self, model: str) -> None:
        with _spinner(f"loading {model}"):
            self.client().request_json("POST", "/api/chat", self._request([]) | {"model": model, "stream": False})

    def _begin_conversation(self, model: str) -> None:
        info = self.client().request_json("POST", "/api/show", {"model": model})
        self.request_fields["model"] = model
        self._sees = "vision" in (info.get("capabilities") or ())
        self.preset_messages = [{"role": message["role"], "content": message["content"]} for message in info.get("messages") or ()]
        self.messages = []

    def check_fields(self, **fields: Any) -> None:
        """Raise the error that the server reports for a request with these fields; nothing is generated."""
        self.client().request_json("POST", "/api/chat", self._request([]) | fields | {"stream": False})

    def show(self) -> dict[str, Any]:
        """The server's information about the model."""
        return dict(self.client().request_json("POST", "/api/show", {"model": self.model}))

    def send(self, text: str) -> None:
        """Send a message and stream the answer to the screen. Ctrl-C ends the answer; the part that arrived stays in the conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        message: ChatMessage = {"role": "user", "content": text}
        if self._sees and names_images(text):
            text, images = take_images(text)
            message = {"role": "user", "content": text} | ({"images": images} if images else {})
        messages = [*self.messages, message]
        writer = self.writer()
        output = ThinkingWriter(writer, hidden=self._hide_thinking)
        answer_chunks: list[str] = []
        final_event: Mapping[str, Any] | None = None
        try:
            with _without_echo(), contextlib.closing(self.client().stream("/api/chat", self._request([*system, *messages]))) as events:
                for event in events:
                    message_chunk = event.get("message") or {}
                    answer_chunks.append(message_chunk.get("content") or "")
                    output.write(message_chunk.get("thinking") or "", answer_chunks[-1])
                    final_event = event if event.get("done") else None
            if final_event is None:
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
            print_answer_summary(final_event, verbose=self.verbose)
        # A message without any answer is dropped: models expect the roles to alternate.
        if final_event or any(answer_chunks):
            self.messages = [*messages, {"role": "assistant", "content": "".join(answer_chunks)}]

    def save(self, name: str) -> None:
        """Create a model from this one, with the messages and settings of this session."""
        names.parse(name)
        body: dict[str, Any] = {"model": name, "from": self.model}
        if self.system:
            body["system"] = self.system
        if self.options:
            body["parameters"] = self.options
        conversation = self.preset_messages + self.messages
        if self.messages:
            body["messages"] = conversation
        status = ""
        with contextlib.closing(self.client().stream("/api/create", body)) as events:
            for event in events:
                status = str(event.get("status") or "")
        if status != "success":
            raise Failed(f"the server ended before {name} was made; save it again")
        if names.parse(name).key == names.parse(self.model).key:
            # The messages are now part of the model.
            self.preset_messages, self.messages = conversation, []

    def writer(self) -> WordWrapper:
        """A writer for text of the model, on the terminal."""
        return WordWrapper(sys.stdout, columns=shutil.get_terminal_size().columns if self.wordwrap else 0, terminal=True)

    def _request(self, messages: list[ChatMessage]) -> dict[str, Any]:
        options = {**self.request_fields.get("options", {}), **self.options}
        return {**self.request_fields, "messages": messages} | ({"options": options} if options else {})


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Inside the block the terminal does not echo keys; the next prompt reads them unchanged.

    Ctrl-C still works, and discards the keys before it, as in a shell.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    terminal = sys.stdin.fileno()
    try:
        saved_modes = termios.tcgetattr(terminal)
    except termios.error:  # the terminal is gone
        yield
        return
    silent_modes = list(saved_modes)
    # Also without line mode: the terminal would keep at most 4,095 bytes of a line, and handle editing keys itself.
    silent_modes[0] &= ~termios.ICRNL
    silent_modes[3] &= ~(termios.ECHO | termios.ICANON)

    def set_modes(modes: list[Any]) -> None:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(terminal, termios.TCSADRAIN, modes)

    with restoring_on_suspend(lambda: set_modes(saved_modes), lambda: set_modes(silent_modes)):
        set_modes(silent_modes)
        try:
            yield
        finally:
            set_modes(saved_modes)


@contextlib.contextmanager
def _spinner(text: str) -> Iterator[None]:
    """A spinner on the terminal while a request runs; removed at the end."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    with (
        console.status(Text(replace_controls(text))),
        restoring_cursor_on_suspend(lambda: 1) if console.is_terminal else contextlib.nullcontext(),
    ):
        yield
