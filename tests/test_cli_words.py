"""What the command line writes, by itself: figures, tables, cards, wrapped answers, progress, verdicts, addresses."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from golden_cli import plan
from ndani.cli import answer_summary, doctor, formatting, show, tables
from ndani.cli.autostart import connect_or_start
from ndani.cli.client import ServerClient
from ndani.cli.config import format_value
from ndani.cli.progress import PlainLines
from ndani.cli.word_wrap import WordWrapper
from ndani.errors import NoServer
from ndani.settings import load

GOLDEN = {row.argv: row.want for row in plan()}


# ---------------------------------------------------------------- figures and tables


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (98_362_770, "98 MB"),
        (144_811_385, "144 MB"),
        (1_249_999_999, "1.2 GB"),
        (2 * 10**9, "2 GB"),
        (3_500_000_000_000, "3.5 TB"),
    ],
)
def test_sizes_are_cut_not_rounded(count: int, words: str) -> None:
    assert formatting.size(count) == words


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [
        (0, "0s"),
        (12, "12ns"),
        (1500, "1.5µs"),
        (37_923_883, "37.923883ms"),
        (14_627_000, "14.627ms"),
        (1_200_000_000, "1.2s"),
        (61_000_000_000, "1m1s"),
        (3_600_000_000_000, "1h0m0s"),
        (-5_000_000, "-5ms"),
    ],
)
def test_durations_as_go_prints_them(nanoseconds: int, words: str) -> None:
    assert formatting.duration(nanoseconds) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "0"),
        (8192.0, "8192"),
        (100000.0, "100000"),
        (1e6, "1e+06"),
        (134515008.0, "1.34515008e+08"),
        (1e-5, "1e-05"),
        (0.0001, "0.0001"),
        (0.5, "0.5"),
        (-2.25, "-2.25"),
        (1e21, "1e+21"),
    ],
)
def test_numbers_as_go_prints_them(value: float, words: str) -> None:
    assert formatting.number(value) == words


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (-0.4, "Less than a second ago"),
        (-1, "1 second ago"),
        (-42, "42 seconds ago"),
        (-80, "About a minute ago"),
        (299, "4 minutes from now"),
        (-3600, "About an hour ago"),
        (-7200, "2 hours ago"),
        (-86400 * 3, "3 days ago"),
        (-86400 * 21, "3 weeks ago"),
        (-86400 * 90, "3 months ago"),
        (-86400 * 800, "2 years ago"),
        (86400 * 365 * 30, "Forever"),
    ],
)
def test_times_seen_from_now(ahead: float, words: str) -> None:
    assert formatting.relative_time(1e9 + ahead, 1e9) == words


def test_moments_of_go_and_of_python() -> None:
    assert formatting.parse_time("2026-11-22T15:40:06.227393105Z") == formatting.parse_time("2026-11-22T16:40:06.227393+01:00")
    assert formatting.parse_time("0001-01-01T00:00:00Z") is None
    assert formatting.parse_time("soon") is None


def test_a_listing_is_drawn_letter_for_letter() -> None:
    rows = [("smollm2:q8_0", "38dfc5e11ed8", "144 MB", "42 seconds ago"), ("smollm2:latest", "cb2ae438f8cc", "98 MB", "44 seconds ago")]
    assert tables.columns(("NAME", "ID", "SIZE", "MODIFIED"), rows) == GOLDEN[("list", "smol")].stdout


LLAMA = {"general.architecture": "llama", "llama.context_length": 8192, "llama.embedding_length": 576}
SMOLLM2 = {
    "details": {"parameter_size": "134.52M", "quantization_level": "Q4_1", "family": "llama"},
    "model_info": LLAMA,
    "capabilities": ["completion"],
    "license": "Apache-2.0",
}


def test_cards_of_created_models_are_drawn_letter_for_letter() -> None:
    parameters = GOLDEN[("show", "terse", "--parameters")].stdout.rstrip("\n")  # as the API gives them
    terse = {**SMOLLM2, "system": "You are terse.", "parameters": parameters}
    assert show.card(terse) == GOLDEN[("show", "terse")].stdout
    minilm = {
        "details": {"parameter_size": "22.57M", "quantization_level": "F16"},
        "model_info": {"general.architecture": "bert", "bert.context_length": 512, "bert.embedding_length": 384},
        "capabilities": ["embedding"],
    }
    assert show.card(minilm) == GOLDEN[("show", "all-minilm")].stdout


def test_long_lists_of_metadata_are_cut() -> None:
    assert show.format_value(["Ġ t", "Ġ a"] + ["x"] * 48898) == "[Ġ t Ġ a ...+48898 more]"
    assert show.format_value([3] * 49152) == "[3 3 3 ...+49149 more]"
    assert show.format_value(["<|endoftext|>"] * 49152) == "[<|endoftext|> ...+49151 more]"
    assert show.format_value(["en"]) == "[en]"
    assert show.format_value(True) == "true"
    assert show.format_value(None) == ""


def test_a_card_holds_nothing_that_a_terminal_would_obey() -> None:
    red = "\x1b[31mred\x9b2J"
    info = {"general.architecture": red, f"{red}.context_length": 5, "odd\nkey": red, "list": [red]}
    tensor = {"name": "blk.0\x1b]0;x\x07\n.w", "type": red, "shape": [1]}
    answer = {"model_info": info, "capabilities": [red], "system": red, "license": red, "requires": red, "parameters": f"stop {red}"}
    text = show.card({**answer, "details": {"parameter_size": red, "quantization_level": red}, "tensors": [tensor]}, verbose=True)
    assert text.replace("\n", "").isprintable()
    assert "    blk.0\ufffd]0;x\ufffd .w" in text


def test_a_long_license_shows_its_head() -> None:
    text = show.card({**SMOLLM2, "license": "Apache License\n\n   Version 2.0\nJanuary 2004\n"})
    assert text.endswith("  License\n    Apache License    \n    Version 2.0       \n    ...               \n\n")


def test_timings_are_those_recorded() -> None:
    done = {"total_duration": 37923883, "load_duration": 1079249, "prompt_eval_count": 34, "prompt_eval_duration": 14627000}
    done |= {"eval_count": 3, "eval_duration": 16398000}
    # The recorded rates were made of durations that had not been rounded to microseconds.
    assert answer_summary.timings(done).splitlines()[:6] == GOLDEN[("run", "terse", "Hello", "--verbose")].stderr.splitlines()[:6]


def test_settings_are_written_as_users_write_them() -> None:
    assert [format_value(v) for v in (300.0, None, True, (), ("a", "b"), Path("/x"), 0)] == ["5m0s", "-", "true", "-", "a,b", "/x", "0"]


# ---------------------------------------------------------------- answers and progress


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_words_are_wrapped_whole_however_they_arrive(cut: int) -> None:
    text = "The quick brown fox jumps over the lazy dog.\n\n    indented code\nthat is all of it"
    out = io.StringIO()
    writer = WordWrapper(out, columns=20)
    for at in range(0, len(text), cut):
        writer.write(text[at : at + cut])
    assert writer.close()
    lines = out.getvalue().split("\n")
    assert all(len(line) <= 20 for line in lines)
    assert out.getvalue().split() == text.split()
    assert "    indented code" in lines


def test_wide_letters_wrap_by_their_width() -> None:
    out = io.StringIO()
    writer = WordWrapper(out, columns=8)
    writer.write("空は何故青いのですか")
    writer.close()
    assert [formatting.width(line) for line in out.getvalue().split("\n")] == [8, 8, 4]


@pytest.mark.parametrize("unit", ["\u0301", "\u200d", "\U0001f469\u200d"], ids=["marks", "joiners", "one picture"])
def test_marks_without_a_width_are_not_collected_for_ever(unit: str) -> None:
    out = io.StringIO()
    writer = WordWrapper(out, columns=80, terminal=True)
    writer.write("a" + unit * 10_000)
    assert len(out.getvalue()) > 9_000, "a terminal gets them while they come"
    writer.close()
    assert out.getvalue().replace("\n", "") == "a" + unit * 10_000


def test_a_model_cannot_steer_a_terminal() -> None:
    screen, pipe = io.StringIO(), io.StringIO()
    WordWrapper(screen, terminal=True).write("a\x1b[2Jb\x9bc\n")
    WordWrapper(pipe).write("a\x1b[2Jb")
    assert screen.getvalue() == "a\ufffd[2Jb\ufffdc\n"
    assert pipe.getvalue() == "a\x1b[2Jb"


def test_progress_in_a_pipe_is_few_plain_lines() -> None:
    out = io.StringIO()
    lines = PlainLines(out)
    lines.show({"status": "pulling manifest"})
    for done in range(0, 98_000_001, 98_000):
        lines.show({"status": "pulling 941f309b54ca", "digest": "sha256:941f", "total": 98_000_000, "completed": done})
    for _ in range(3):
        lines.show({"status": "success"})
    said = out.getvalue().splitlines()
    assert said == ["pulling manifest", "pulling 941f309b54ca:   0% of 98 MB", "pulling 941f309b54ca: 100% of 98 MB", "success"]


def test_doctor_is_content_only_when_every_route_is_blocked() -> None:
    blocked = {"name": "UDP", "outside": "reaches", "inside": "blocked", "why": "EPERM"}
    assert doctor.verdict([blocked, blocked], []) == (True, "All 2 routes are blocked: a running model cannot open a connection")
    sealed, words = doctor.verdict([blocked, {**blocked, "name": "TCP", "inside": "reaches"}], [])
    assert not sealed
    assert "TCP" in words
    assert "UDP" not in words
    assert not doctor.verdict([], [])[0]
    assert not doctor.verdict([blocked], ["libgomp.so.1"])[0]


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("host", "url", "local"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("0.0.0.0", "http://127.0.0.1:11434", True),
        ("localhost", "http://localhost:11434", True),
        ("[::1]:9", "http://[::1]:9", True),
        ("https://models.example", "https://models.example:443", False),
        ("http://127.0.0.1:80/deep/", "http://127.0.0.1:80", False),
        ("10.1.2.3", "http://10.1.2.3:11434", False),
    ],
)
def test_addresses(host: str, url: str, local: bool) -> None:
    client = ServerClient(load({"OLLAMA_HOST": host}))
    assert (client.url, client.is_local) == (url, local)


def test_no_server_is_started_for_another_machine() -> None:
    # Port 1 of a loopback address behind a path counts as someone else's: it is refused at once, and nothing is started.
    with pytest.raises(NoServer, match="is it running there"):
        connect_or_start(load({"NDANI_HOST": "http://127.0.0.1:1/gateway"}))
