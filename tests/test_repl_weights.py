"""The interactive prompt of `ndani run` with a real model, at a real terminal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli_server import free_port, serving, weights_store
from golden_cli import MODELFILES, run
from golden_repl import OF_A_MODEL, brought
from terminal import PATIENCE, Prompt
from test_repl import SECTIONS, Home, talk

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A server with the recorded model, made as the recorded one was."""
    folder = tmp_path_factory.mktemp("repl-real")
    with serving(folder, free_port(), store=weights_store()) as environment:
        shown = run(("show", "smollm2:135m", "--modelfile"), environment)
        weights = next(text for text in shown.stdout.splitlines() if text.startswith("FROM "))
        (folder / "Modelfile").write_text(MODELFILES["Modelfile.smollm2"].replace("FROM smollm2:135m", weights))
        done = run(("create", "smollm2", "-f", "Modelfile"), environment, folder=folder, timeout=PATIENCE)
        assert done.exit == 0, done.stderr
        yield environment


@pytest.mark.weights
def test_a_real_model_at_the_prompt(real: Home) -> None:
    with talk(real, "smollm2") as screen:
        prompt = Prompt(screen)
        for command in OF_A_MODEL:
            assert brought(prompt.say(command)) == brought(SECTIONS[command]), command
        for setting in ("num_predict 12", "temperature 0", "seed 1"):
            prompt.say(f"/set parameter {setting}")
        answer = prompt.say("Say hi.")
        assert answer
        assert not answer[0].startswith("error")
        prompt.say("/set parameter num_predict 400")
        before = len(screen.lines())
        screen.type("Tell a very long story about the sea.")
        screen.press("Enter")
        until_answer = len(prompt.until_shown("story about the sea."))
        prompt.until_more(until_answer)
        screen.press("C-c")
        prompt.wait(len(OF_A_MODEL) + 6)
        assert not any(text.startswith("error") for text in screen.lines()[before:])
        prompt.say("/set parameter num_predict 4")
        assert prompt.say("Say hi.")
        screen.press("C-d")
        assert screen.exit() == 0
