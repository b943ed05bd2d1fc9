"""The interactive prompt of `ndani run`, at a real terminal: every command, keys in mid-answer, what is kept and what is not."""

from __future__ import annotations

import json
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli_server import NDANI, end_server_on, free_port, listeners, serving, surroundings
from golden_cli import run
from golden_repl import DIFFERS, OF_A_MODEL, brought, sections
from ndani.cli.repl import line_reader
from ndani.cli.repl.commands import read_multiline
from server import until
from stores import put_echo
from terminal import KINDS, Prompt, Pty, drawn, terminal

pytestmark = pytest.mark.slow

SECTIONS = sections()
BOTH = [pytest.param(kind, marks=pytest.mark.skipif(kind == "tmux" and not shutil.which("tmux"), reason="no tmux here")) for kind in KINDS]

Home = dict[str, str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A server with echo models, and the environment in which `ndani` finds it."""
    folder = tmp_path_factory.mktemp("repl")
    params = {"num_ctx": 2048, "stop": ["<|im_start|>", "<|im_end|>"]}
    put_echo(folder / "models", "smollm2", params=params, license="Apache-2.0")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    put_echo(folder / "models", "parrot", params={"num_predict": 6}, messages=turns, system="You are a parrot.")
    with serving(folder, free_port()) as environment:
        yield environment


def talk(home: Home, model: str = "parrot", *flags: str, kind: str = "", **more: str):
    return terminal([*NDANI, "run", model, *flags], {**home, **more}, kind)


@pytest.mark.parametrize("kind", BOTH)
def test_agrees_with_the_recorded_prompt(home: Home, kind: str) -> None:
    """Every recorded command in the recorded order, but for those that `DIFFERS` names and those that show a model."""
    with talk(home, "smollm2", kind=kind) as screen:
        prompt = Prompt(screen)
        for command, wanted in SECTIONS.items():
            if command in DIFFERS or command in OF_A_MODEL[::2]:
                continue
            assert brought(prompt.say(command)) == brought(wanted), command
    assert len(SECTIONS) - len(DIFFERS) - 2 >= 20


def test_a_conversation(home: Home) -> None:
    """Messages of one line and of several, what the model brings with it, and leaving."""
    with talk(home) as screen:
        prompt = Prompt(screen)
        assert screen.lines()[:2] == [">>> Hi", "Yes?"]
        assert prompt.say("one two") == ["one two one two one two"]
        assert prompt.say('"""three', 'four"""')[-1] == "three four three four three four"
        assert prompt.say('"""five"""') == ["five five five five five five"]
        assert prompt.say("/show system") == ["You are a parrot."]
        assert prompt.say('/set system """Be', 'kind."""')[-1] == "Set system message."
        assert prompt.say("/show system") == ["Be", "kind."]
        assert prompt.say("/list")[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
        assert prompt.say("   ") == []
        screen.press("C-d")
        assert screen.exit() == 0


def test_what_was_said_and_set_is_saved_and_loaded(home: Home) -> None:
    with talk(home) as screen:
        prompt = Prompt(screen)
        prompt.say("one two")
        prompt.say("/set system Be brief.")
        prompt.say("/set parameter num_predict 2")
        prompt.say("/set parameter stop xx yy")
        assert prompt.say("/show parameters")[-4:] == [
            "User defined parameters:",
            "  num_predict                    2",
            '  stop                           "xx"',
            '  stop                           "yy"',
        ]
        modelfile = prompt.say("/show modelfile")
        assert {"SYSTEM Be brief.", "PARAMETER num_predict 2", "PARAMETER stop yy"} <= set(modelfile)
        assert prompt.say("/save saved") == ["Created new model 'saved'"]
        assert prompt.say("/save ../saved") == ["error: The model name '../saved' is invalid"]
        assert prompt.say("/save") == ["Usage:", "  /save <modelname>"]
        assert prompt.say("three four") == ["three four"]
        assert prompt.say("/load saved") == ["Loading model 'saved'"]
        assert prompt.say("/load nobody") == ["Loading model 'nobody'", "Couldn't find model 'nobody'"]
        assert prompt.say("five six") == ["five six"], "the model that was loaded before stays"
        # Saved under its own name, the conversation is the model's from then on, and is not said twice.
        assert prompt.say("/save saved") == ["Created new model 'saved'"]
        assert prompt.say("/save again") == ["Created new model 'again'"]
        screen.type("/bye")
        screen.press("Enter")
        assert screen.exit() == 0
    saved = json.loads(run(("show", "saved", "--json"), home).stdout)
    said = [(turn["role"], turn["content"]) for turn in saved["messages"]]
    assert said == [
        ("user", "Hi"),
        ("assistant", "Yes?"),
        ("user", "one two"),
        ("assistant", "one two one two one two"),
        ("user", "five six"),
        ("assistant", "five six"),
    ]
    assert saved["system"] == "Be brief."
    assert re.findall(r"(?m)^(\w+) +(\S+)$", saved["parameters"]) == [("num_predict", "2"), ("stop", '"xx"'), ("stop", '"yy"')]
    assert json.loads(run(("show", "again", "--json"), home).stdout)["messages"] == saved["messages"]


@pytest.mark.parametrize("kind", BOTH)
def test_ctrl_c_ends_an_answer_and_not_the_conversation(home: Home, kind: str) -> None:
    with talk(home, kind=kind) as screen:
        prompt = Prompt(screen)
        prompt.say("/set parameter num_predict 100000")
        before = len(screen.lines())
        screen.type("mango @delay=0.05")
        screen.press("Enter")
        prompt.until_shown("mango mango")
        screen.press("C-c")
        shown = prompt.wait(3)[before:]
        assert not any("error" in text for text in shown), shown
        prompt.say("/set parameter num_predict 3")
        assert prompt.say("kiwi") == ["kiwi kiwi kiwi"]
        prompt.say("/save stopped")
        screen.press("C-d")
        assert screen.exit() == 0
    turns = json.loads(run(("show", "stopped", "--json"), home).stdout)["messages"][2:]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "assistant"]
    assert turns[1]["content"].startswith("mango mango")
    assert turns[1]["content"].split().count("mango") < 5000


@pytest.mark.parametrize("kind", BOTH)
def test_what_is_typed_in_an_answer_waits_for_the_prompt(home: Home, kind: str) -> None:
    with talk(home, kind=kind) as screen:
        prompt = Prompt(screen)
        prompt.say("/set parameter num_predict 60")
        screen.type("mango @delay=0.05")
        screen.press("Enter")
        prompt.until_shown("mango mango")
        screen.type("kiwi")
        screen.press("Enter")
        screen.type("/set parameter num_predict 3")
        screen.press("Enter")
        screen.type("fig and half a li")
        until(lambda: screen.lines()[-1] == ">>> fig and half a li", "what was typed stands at the prompt", pause=0.05)
        assert screen.lines()[-2] == "Set parameter 'num_predict' to '3'"
        answers = [line for line in screen.lines() if "mango mango" in line or "kiwi kiwi" in line]
        assert not any(word in line for line in answers for word in ("/set", "fig", ">>>")), "it shows among no answer"
        assert sum(line.startswith(">>> kiwi") for line in screen.lines()) == 1


@pytest.mark.parametrize("kind", BOTH)
def test_ctrl_c_in_an_answer_shows_no_letter_of_its_own(home: Home, kind: str) -> None:
    with talk(home, kind=kind) as screen:
        prompt = Prompt(screen)
        prompt.say("/set parameter num_predict 100000")
        screen.type("mango @delay=0.05")
        screen.press("Enter")
        prompt.until_shown("mango mango")
        screen.press("C-c")
        assert not any("^C" in line for line in prompt.wait(2))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("where", ["in an answer", "at the prompt"])
def test_a_signal_leaves_the_terminal_as_it_was(home: Home, number: signal.Signals, where: str) -> None:
    with terminal([*NDANI, "run", "parrot"], home, "pty") as screen:
        assert isinstance(screen, Pty)
        before = screen.modes()
        prompt = Prompt(screen)
        if where == "in an answer":
            prompt.say("/set parameter num_predict 100000")
            screen.type("mango @delay=0.05\r")
            prompt.until_shown("mango mango")
        assert screen.modes() != before
        screen.kill(number)
        assert screen.exit() == 128 + number
        assert screen.modes() == before
        assert not any("Traceback" in line or "Error" in line for line in screen.lines())


def test_two_names_of_one_option_are_one(home: Home) -> None:
    with talk(home) as screen:
        prompt = Prompt(screen)
        assert prompt.say("/set parameter num_ctx 1024") == ["Set parameter 'num_ctx' to '1024'"]
        assert prompt.say("/set parameter context_length 512") == ["Set parameter 'context_length' to '512'"]
        assert prompt.say("/show parameters")[-1].split() == ["num_ctx", "512"]


def test_a_conversation_outlives_a_server_that_left(tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo", params={"num_predict": 3})
    port = free_port()
    environment = surroundings(tmp_path, port, NDANI_IDLE_EXIT="1s")
    try:
        with talk(environment, "echo") as screen:
            prompt = Prompt(screen)
            for said, answer in (("word", "word word word"), ("/list", "NAME"), ("more", "more more more")):
                until(lambda: not listeners(port), "the server leaves", pause=0.1)
                assert prompt.say(said)[0].startswith(answer)
    finally:
        end_server_on(port)


def test_ctrl_c_at_the_prompt_says_how_to_leave(home: Home) -> None:
    with talk(home) as screen:
        prompt = Prompt(screen)
        screen.press("C-c")
        assert [text for text in prompt.wait(2) if text][-2:] == [*SECTIONS["Ctrl-C at the prompt"], Prompt.READY]
        screen.type('"""begun')
        screen.press("Enter")
        prompt.until_shown("... Press Enter to send")
        screen.press("C-c")  # gives the message up, and nothing of it is sent
        prompt.wait(4)
        assert prompt.say("kiwi") == ["kiwi kiwi kiwi kiwi kiwi kiwi"]


def test_wrong_words_are_one_sentence_each_and_the_prompt_stays(home: Home) -> None:
    with talk(home) as screen:
        prompt = Prompt(screen)
        for said, sentence in {
            "/set parameter temperature hot": 'Couldn\'t set parameter: "invalid float value [hot]"',
            "/set parameter top_p 7": 'Couldn\'t set parameter: "option \\"top_p\\" must be between 0 and 1"',
            "/set parameter seed 1 2": 'Couldn\'t set parameter: "seed takes one value"',
            "/set format yaml": "Invalid or missing format. For 'json' mode use '/set format json'",
            "/set think": 'error: "parrot" does not support thinking',
            "/set think hard": "error: invalid think value",
            "/show nothing": "Unknown command '/show nothing'. Type /? for help",
            "/sett": "Unknown command '/sett'. Type /? for help",
            "/load a b": "Usage:",
        }.items():
            shown = prompt.say(said)
            assert shown[0].startswith(sentence), shown
        assert prompt.say("still") == ["still still still still still still"]


def test_a_format_that_the_server_refuses_is_refused_where_it_is_set(home: Home) -> None:
    with talk(home) as screen:
        prompt = Prompt(screen)
        said = prompt.say("/set format json")
        # When the server knows formats, it is set; until then one sentence says so, and messages are answered as before.
        assert len(said) == 1
        assert said[0].startswith(("error: format", "Set format to 'json' mode."))
        assert prompt.say("/set noformat") == ["Disabled format."]
        assert prompt.say("word") == ["word word word word word word"]


def test_a_server_that_goes_away_is_an_error_and_no_end(tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo", params={"num_predict": 3})
    with serving(tmp_path, free_port()) as environment, talk(environment, "echo") as screen:
        prompt = Prompt(screen)
        assert prompt.say("@crash word")[-1].startswith("error: ")
        assert prompt.say("word") == ["word word word"], "the next message starts the model again"


def test_verbose_and_wordwrap(home: Home) -> None:
    with talk(home, "parrot", "--verbose", "--nowordwrap", "--keepalive", "10m") as screen:
        prompt = Prompt(screen)
        shown = prompt.say("one")
        names = [line.partition(":")[0] for line in shown[1:]]
        wanted = [line.partition(":")[0] for line in SECTIONS["Say hi again"] if ":" in line]
        assert [name for name in wanted if name in names] == names
        assert "eval rate" in names
        assert "10 minutes" in run(("ps", "parrot"), home).stdout or "9 minutes" in run(("ps", "parrot"), home).stdout
        prompt.say("/set quiet")
        assert prompt.say("one") == ["one one one one one one"]
        prompt.say("/set parameter num_predict 30")
        word = "abcdefghi"
        assert prompt.say(word)[0].startswith((word + " ") * 12), "not wrapped: the line runs over the edge"
        prompt.say("/set wordwrap")
        assert all(set(text.split()) == {word} for text in prompt.say(word)), "wrapped: no word is broken"


def test_the_editor(home: Home, tmp_path: Path) -> None:
    editor = tmp_path / "my editor"
    editor.write_text(
        f'#!{sys.executable}\nimport sys\npath = sys.argv[-1]\ntext = open(path).read()\nopen(path, "w").write(text + " edited\\n")\n'
    )
    editor.chmod(0o755)
    bad = tmp_path / "bad"
    bad.write_bytes(b"\x7fELF, and no more")
    bad.chmod(0o755)
    with talk(home, NDANI_EDITOR=str(editor)) as screen:
        prompt = Prompt(screen)
        screen.type("word")
        screen.press("C-g")
        prompt.until_shown(">>> word edited")
        screen.press("Enter")
        prompt.until_shown("word edited word edited word edited")
    with talk(home, OLLAMA_EDITOR="/nowhere/vim") as screen:
        prompt = Prompt(screen)
        screen.press("C-g")
        prompt.until_shown('error: editor "/nowhere/vim" not found, set NDANI_EDITOR to the path of your preferred editor')
        assert prompt.say("word") == ["word word word word word word"]
    for command, sentence in (
        ("false", 'error: editor "false" ended with exit code 1; the line is as it was before'),
        (str(bad), "error: "),
    ):
        with talk(home, NDANI_EDITOR=command) as screen:
            prompt = Prompt(screen)
            screen.type("word")
            screen.press("C-g")
            prompt.until_shown(sentence)
            until(lambda screen=screen: screen.lines()[-1] == ">>> word", "the line stays", pause=0.05)
            screen.press("Enter")
            prompt.until_shown("word word word")


def test_what_is_typed_is_kept_for_its_owner_alone(home: Home, tmp_path: Path) -> None:
    history = tmp_path / ".ndani" / "history"
    with talk(home, HOME=str(tmp_path)) as screen:
        prompt = Prompt(screen)
        prompt.say("remember this")
        prompt.say("/set nohistory")
        prompt.say("forget this")
        prompt.say("/set history")
        prompt.say("and this")
    kept = history.read_text()
    assert "+remember this" in kept
    assert "+and this" in kept
    assert "forget" not in kept
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    for name in ("OLLAMA_NOHISTORY", "NDANI_NOHISTORY"):
        with talk(home, HOME=str(tmp_path), **{name: "1"}) as screen:
            prompt = Prompt(screen)
            screen.press("Up")
            prompt.until_shown(">>> and this")
            screen.press("C-u")
            prompt.say("not kept")
    assert history.read_text() == kept


def test_a_history_that_cannot_be_kept_costs_the_history_only(home: Home, tmp_path: Path) -> None:
    (tmp_path / ".ndani").mkdir()
    (tmp_path / ".ndani" / "history").mkdir()
    with talk(home, HOME=str(tmp_path)) as screen:
        prompt = Prompt(screen)
        assert any(text.startswith("Warning: what you type is not kept") for text in screen.lines())
        assert prompt.say("word") == ["word word word word word word"]


def test_a_long_history_loses_its_older_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_reader, "MAX_HISTORY_BYTES", 2000)
    path = tmp_path / "history"
    history = line_reader.History(path, enabled=True)
    for number in range(100):
        history.store_string(f"entry {number}\nof two lines")
    entries = list(line_reader.History(path, enabled=True).load_history_strings())
    assert entries[0] == "entry 99\nof two lines"
    assert 10 < len(entries) < 60
    assert all(entry.startswith("entry") and entry.endswith("lines") for entry in entries)


def test_a_model_that_is_not_here_is_pulled_or_says_why(home: Home) -> None:
    with talk(home, "127.0.0.1:9/x/y") as screen:
        assert screen.exit() == 1
        assert any(text.startswith("Error: ") for text in screen.lines())


def test_three_quotes_end_a_message(home: Home) -> None:
    class Lines:
        def __init__(self, *lines: str) -> None:
            self.left = list(lines)

        def read(self, *, continuation: bool = False) -> str:
            assert continuation
            return self.left.pop(0)

    read: Callable[..., str] = read_multiline  # type: ignore[assignment]
    assert read(Lines(), '"""a"""') == "a"
    assert read(Lines("b", 'c"""'), '"""a') == "a\nb\nc"
    assert read(Lines('"""'), '"""') == "\n"


def test_a_screen_is_drawn_as_a_terminal_draws_it() -> None:
    assert drawn("ab\x1b[1Dc\r\n\x1b[0;1mx\x1b[K") == ["ac", "x"]
    assert drawn("one\r\ntwo\x1b[1A\r\x1b[J!") == ["!"]
    assert drawn("\x1b[?2004h>>> \x1b[4Cz\r\x1b[2Cq") == [">>q     z"]
