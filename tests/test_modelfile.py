"""Modelfiles: the grammar, every wrong one its sentence, and printing that reads back as what was printed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from conftest import ROOT
from ndani import names
from ndani.api.ollama.show import ShowRequest, format_show
from ndani.errors import BadRequest
from ndani.service.models import ModelDescription
from ndani.store import Store
from ndani.store.modelfile import Modelfile, parse, print_modelfile
from ndani.store.parameters import TYPES, format_parameters
from ndani.types import Message
from stores import gguf, put_echo

SHARED = ROOT.parent / "shared"
SEEDS, GOLDEN = SHARED / "seed-examples", SHARED / "golden"

COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", '
    '"parameter", "message", or "requires"'
)
ROLE = 'message role must be one of "system", "user", or "assistant"'
OPEN = "unexpected EOF: the quote behind {} on line {} is not closed at the end of any line"
NO_VALUE = "{} has no value; write it on the same line, or between quotes"
VERSION = "requires must be a valid semver (e.g. 0.14.0)"
NO_FILE = "FILE is not in this version of ndani; take the line out, and put what the model has to know into SYSTEM"
NO_UTF8 = "the Modelfile is not text in UTF-8, nor in UTF-16 with a byte-order mark; save it as UTF-8"

UNSAYABLE = "{} cannot be written in a Modelfile: it holds the character U+{}, which a Modelfile cannot"
UNEQUAL = "this model cannot be written as a Modelfile: a parameter is empty or said twice"

MALFORMED: list[tuple[str | bytes, str]] = [
    ("", "no FROM line"),
    ("\n \t\n", "no FROM line"),
    ("# FROM smollm2\n", "no FROM line"),
    ("SYSTEM hi", "no FROM line"),
    ("PARAMETER temperature 1\n", "no FROM line"),
    ('SYSTEM """\nFROM smollm2\n"""', "no FROM line"),
    ("PARAMETER nonsense 1\n", "no FROM line"),
    ("FROM", f"(line 1): {NO_VALUE.format('FROM')}"),
    ("FROM ", f"(line 1): {NO_VALUE.format('FROM')}"),
    ("\nFROM\nsmollm2", f"(line 2): {NO_VALUE.format('FROM')}"),
    ('FROM ""', f"(line 1): {NO_VALUE.format('FROM')}"),
    ('FROM """"""', f"(line 1): {NO_VALUE.format('FROM')}"),
    ("FROM x\nSYSTEM\nYou are terse.", f"(line 2): {NO_VALUE.format('SYSTEM')}"),
    ("FROM x\nTEMPLATE", f"(line 2): {NO_VALUE.format('TEMPLATE')}"),
    ("FROM x\nLICENSE\n", f"(line 2): {NO_VALUE.format('LICENSE')}"),
    ("FROM x\nADAPTER ", f"(line 2): {NO_VALUE.format('ADAPTER')}"),
    ("FROM x\nadapter \n", f"(line 2): {NO_VALUE.format('ADAPTER')}"),
    ("FROM x\nDRAFT", f"(line 2): {NO_VALUE.format('DRAFT')}"),
    ("FROM x\nRENDERER ", f"(line 2): {NO_VALUE.format('RENDERER')}"),
    ("FROM x\nPARSER\n", f"(line 2): {NO_VALUE.format('PARSER')}"),
    ('FROM x\nREQUIRES ""', f"(line 2): {NO_VALUE.format('REQUIRES')}"),
    ("FROM x\nPARAMETRE num_ctx 5", f"(line 2): {COMMAND}"),
    ("FROM x\n\n\nBADCOMMAND", f"(line 4): {COMMAND}"),
    ("FROM: x", f"(line 1): {COMMAND}"),
    ("FROM\u3000x", f"(line 1): {COMMAND}"),
    ('FROM"x"', f"(line 1): {COMMAND}"),
    ("FROM=x", f"(line 1): {COMMAND}"),
    ("  你 x", f"(line 1): {COMMAND}"),
    ("// FROM x", f"(line 1): {COMMAND}"),
    ("FROM x\r\nRUN y\r\n", f"(line 2): {COMMAND}"),
    ("FROM x\rRUN y\r", f"(line 2): {COMMAND}"),
    ("FROM x \\\n y", f"(line 2): {COMMAND}"),
    ("FROM x\nSYSTEM 'a\nb'", f"(line 3): {COMMAND}"),
    ('FROM x\nSYSTEM """a\nb"""\nc', f"(line 4): {COMMAND}"),
    ('FROM x\nSYSTEM "a"\nb"', f"(line 3): {COMMAND}"),
    ('{"from": "x"}', f"(line 1): {COMMAND}"),
    ("GGUF\x03\x00\x00\x00", f"(line 1): {COMMAND}"),
    ('FROM x\nSYSTEM "', OPEN.format("SYSTEM", 2)),
    ('FROM x\nSYSTEM "a', OPEN.format("SYSTEM", 2)),
    ('FROM x\nSYSTEM """', OPEN.format("SYSTEM", 2)),
    ('FROM x\nSYSTEM """""', OPEN.format("SYSTEM", 2)),
    ('FROM x\n\nTEMPLATE """a\nb""', OPEN.format("TEMPLATE", 3)),
    ('FROM x\nSYSTEM "a" b\nPARAMETER seed 1', OPEN.format("SYSTEM", 2)),
    ('FROM x\nSYSTEM """a""" # done\n', OPEN.format("SYSTEM", 2)),
    ('FROM "x\nSYSTEM hi', OPEN.format("FROM", 1)),
    ('FROM x\nMESSAGE user "a\nMESSAGE user b', OPEN.format("MESSAGE user", 2)),
    ('FROM x\nPARAMETER stop "<|im_end|>\n', OPEN.format("PARAMETER stop", 2)),
    ('LICENSE """' + "a\n" * 50 + "FROM x", OPEN.format("LICENSE", 1)),
    ("FROM x\nPARAMETER", "unexpected EOF: PARAMETER on line 2 has no value"),
    ("FROM x\nPARAMETER \n", "unexpected EOF: PARAMETER on line 2 has no value"),
    ("FROM x\nPARAMETER stop", "unexpected EOF: PARAMETER stop on line 2 has no value"),
    ("FROM x\nPARAMETER stop \nSYSTEM a", "unexpected EOF: PARAMETER stop on line 2 has no value"),
    ("FROM x\nPARAMETER num_ctx\n", "unexpected EOF: PARAMETER num_ctx on line 2 has no value"),
    ("FROM x\nMESSAGE", "unexpected EOF: MESSAGE on line 2 has no value"),
    ("FROM x\nMESSAGE user", "unexpected EOF: MESSAGE user on line 2 has no value"),
    ("FROM x\nMESSAGE assistant\nhello", "unexpected EOF: MESSAGE assistant on line 2 has no value"),
    ("FROM x\nMESSAGE robot hi", f"(line 2): {ROLE}"),
    ("FROM x\nMESSAGE User hi", f"(line 2): {ROLE}"),
    ("FROM x\nMESSAGE user: hi", f"(line 2): {ROLE}"),
    ("FROM x\n\nMESSAGE hello", f"(line 3): {ROLE}"),
    ("FROM x\nMESSAGE tool 3", f"(line 2): {ROLE}"),
    ('FROM x\nMESSAGE "user" hi', f"(line 2): {ROLE}"),
    ("FROM x\nPARAMETER foo_bar 3", "unknown parameter 'foo_bar'"),
    ("FROM x\nPARAMETER Temperature 1", "unknown parameter 'Temperature'"),
    ("FROM x\nPARAMETER temperature=1 2", "unknown parameter 'temperature=1'"),
    ("FROM x\nPARAMETER tfs_z 1", "unknown parameter 'tfs_z'"),
    ("FROM x\nPARAMETER num_ctx many", "invalid int value [many]"),
    ("FROM x\nPARAMETER num_ctx 4k", "invalid int value [4k]"),
    ("FROM x\nPARAMETER num_ctx 2048.0", "invalid int value [2048.0]"),
    ("FROM x\nPARAMETER num_ctx 1_000", "invalid int value [1_000]"),
    ("FROM x\nPARAMETER num_ctx ٣", "invalid int value [٣]"),
    ('FROM x\nPARAMETER seed ""', "invalid int value []"),
    ("FROM x\nPARAMETER context_length long", "invalid int value [long]"),
    ("FROM x\nPARAMETER seed 9223372036854775808", "invalid int value [9223372036854775808]"),
    ("FROM x\nPARAMETER num_gpu 1 # all", "invalid int value [1 # all]"),
    ('FROM x\nPARAMETER num_ctx "1\n2"', "invalid int value [1\\n2]"),
    (f"FROM x\nPARAMETER num_ctx {'9' * 5000}", f"invalid int value [{'9' * 80}…]"),
    ("FROM x\nPARAMETER temperature hot", "invalid float value [hot]"),
    ("FROM x\nPARAMETER temperature 0,7", "invalid float value [0,7]"),
    ("FROM x\nPARAMETER top_p nan", "invalid float value [nan]"),
    ("FROM x\nPARAMETER top_p inf", "invalid float value [inf]"),
    ("FROM x\nPARAMETER min_p 1e39", "invalid float value [1e39]"),
    ("FROM x\nPARAMETER min_p .", "invalid float value [.]"),
    ("FROM x\nPARAMETER use_mmap yes", "invalid bool value [yes]"),
    ("FROM x\nPARAMETER use_mmap tRUE", "invalid bool value [tRUE]"),
    ("FROM x\nREQUIRES latest", VERSION),
    ("FROM x\nREQUIRES 1.2.x", VERSION),
    ("FROM x\nREQUIRES 01.2.3", VERSION),
    ("FROM x\nREQUIRES >=0.14", VERSION),
    ("FROM x\nREQUIRES 1.2-beta", VERSION),
    ("FROM x\nFILE ./guide.txt", f"(line 2): {NO_FILE}"),
    ("file", f"(line 1): {NO_FILE}"),
    (b"FROM caf\xe9", NO_UTF8),
    (b"FROM x\nSYSTEM \xff", NO_UTF8),
    (b"\xff\xfeF", NO_UTF8),
    (b"\x1f\x8b\x08\x00", NO_UTF8),
]


@pytest.mark.parametrize(("text", "sentence"), MALFORMED, ids=[str(number) for number in range(len(MALFORMED))])
def test_a_wrong_modelfile_has_its_sentence(text: str | bytes, sentence: str) -> None:
    with pytest.raises(BadRequest) as found:
        parse(text)
    assert str(found.value) == sentence


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("plain", "plain"),
        ("   spaces   inside   ", "spaces   inside"),
        ("a # is no comment here", "a # is no comment here"),
        ("it's 'single'", "it's 'single'"),
        ("'a b'", "'a b'"),
        (r"no \n escapes \" here", r"no \n escapes \" here"),
        ('"  edges  "', "  edges  "),
        ('""', ""),
        ('""""""', ""),
        ('"a"b"', 'a"b'),
        ('"a\nb"', "a\nb"),
        ('"""\na\n"""', "\na\n"),
        ('"""say "hi" and ""bye"".\n"""', 'say "hi" and ""bye"".\n'),
        ('"""a""""', 'a"'),
        ('""""a"""', '"a'),
        ('"""\'\'"\'""\'""\'"\'\'\'\'\'""\'""\'"""', "''\"'\"\"'\"\"'\"'''''\"\"'\"\"'"),
        ('"""a\n# kept\n\n  b\t"""   ', "a\n# kept\n\n  b\t"),
        ('"""a\r\nb"""', "a\r\nb"),
        ("你好👋", "你好👋"),
    ],
)
def test_values_are_taken_as_the_real_one_takes_them(said: str, value: str) -> None:
    for command in ("SYSTEM", "system", "\tSyStEm\t"):
        found = parse(f"FROM x\n{command} {said}\nLICENSE after")
        assert (found.system, found.licenses, found.warnings) == (value, ("after",), ())


def test_every_instruction_and_its_order() -> None:
    found = parse(
        "# a model\r\nFROM ./a b.gguf\r\nfrom ./mmproj.gguf\nTemplate {{ .Prompt }}\nSYSTEM a\nADAPTER ./lora.gguf\nLICENSE one\n"
        "  # more\nLICENSE two\nMESSAGE user Hi: there\nMESSAGE assistant \nMESSAGE  system  be brief\nREQUIRES v0.14.0\n"
        "RENDERER qwen3-coder\nPARSER qwen3\nDRAFT ./small\nPARAMETER stop a\nPARAMETER temperature 1\nPARAMETER stop b\n"
        "PARAMETER context_length 4096\nPARAMETER  use_mmap f\nPARAMETER num_ctx +8\nPARAMETER top_p .5e0"
    )
    assert found == Modelfile(
        froms=("./a b.gguf", "./mmproj.gguf"),
        template="{{ .Prompt }}",
        system="a",
        parameters=(("stop", ("a", "b")), ("temperature", 1.0), ("num_ctx", 8), ("use_mmap", False), ("top_p", 0.5)),
        adapters=("./lora.gguf",),
        licenses=("one", "two"),
        messages=(Message("user", "Hi: there"), Message("assistant", ""), Message("system", "be brief")),
        requires="0.14.0",
        renderer="qwen3-coder",
        parser="qwen3",
        drafts=("./small",),
    )
    assert found.warnings == ("line 22: num_ctx was said before; this one counts",)
    assert parse(print_modelfile(found)) == found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert parse("FROM x\nSYSTEM 你好 é".encode(encoding)).system == "你好 é"


def test_utf_16_of_the_other_end_and_text_with_a_mark() -> None:
    assert parse("\ufeffFROM x".encode("utf-16-be")).froms == ("x",) == parse("\ufeffFROM x").froms


def test_what_does_nothing_is_said() -> None:
    found = parse("FROM x\nPARAMETER mirostat 2\nSYSTEM a\nSYSTEM c\nPARAMETER draft_num_predict 4\u200b\nPARAMETER low_vram maybe")
    assert (found.froms, found.system, found.parameters) == (("x",), "c", (("draft_num_predict", 4),))
    assert found.warnings == (
        "line 2: parameter mirostat is deprecated: nothing obeys it, and it is left out",
        "line 5: draft_num_predict is read without U+200B, which no number holds",
        "line 5: draft_num_predict is kept, but nothing in this version obeys it",
        "line 6: parameter low_vram is deprecated: nothing obeys it, and it is left out",
        "line 4: SYSTEM was said before; this one counts",
    )


@pytest.mark.skipif(not SEEDS.exists(), reason="the seed's examples are not beside this repository")
def test_the_seeds_examples() -> None:
    text = (SEEDS / "02-Modelfile").read_text()
    with pytest.raises(BadRequest, match=r"^\(line 16\): FILE is not in this version"):
        parse(text)
    found = parse("\n".join(line for line in text.splitlines() if not line.startswith("FILE")))
    assert dict(found.parameters) == {"temperature": 0.7, "top_p": 0.9, "num_ctx": 4096, "num_gpu": 1, "num_thread": 8}
    assert found.system
    assert found.system.startswith("\nYou are an enterprise assistant")
    assert found.system.endswith("authentication.\n")
    other = parse("FROM x\n" + (SEEDS / "08-Modelfile-template").read_text())
    assert other.template == "{{ .System }}\nUser: {{ .Prompt }}\nAssistant: "


@pytest.mark.skipif(not GOLDEN.exists(), reason="the recordings of the real Ollama are not beside this repository")
def test_what_the_real_one_printed_is_printed_the_same() -> None:
    shown = [e["response"]["body"] for e in json.loads((GOLDEN / "ollama.json").read_text())["exchanges"] if e["name"].startswith("show")]
    texts = [body["modelfile"] for body in shown if isinstance(body, dict) and "modelfile" in body]
    runs = json.loads((GOLDEN / "ollama-cli.json").read_text())["runs"]
    texts += [run["stdout"].removesuffix("\n") for run in runs if "--modelfile" in run["argv"] and run["exit"] == 0]
    assert len(texts) >= 6
    for text in texts:
        assert print_modelfile(parse(text)) == "".join(line for line in text.split("\n\n", 1)[1])
    for body in (body for body in shown if isinstance(body, dict) and "parameters" in body):
        wanted = dict(parse(body["modelfile"]).parameters)
        assert format_parameters(wanted) == body["parameters"]


WORDS = [
    '"', '""', '"""', "\n", "\n", "\r\n", "\r", " ", "\t", "a", "é", "你", "#", "'", "\\", "FROM x", "b c", '"x"',
    "{{ .P }}", "\u200d", "\x00",
]  # fmt: skip


@pytest.mark.slow
def test_what_is_printed_reads_back_and_the_rest_is_refused() -> None:
    draw = random.Random(4)  # the same texts each time
    refused = 0
    for _ in range(4000):
        text = "".join(draw.choice(WORDS) for _ in range(draw.randint(0, 9)))
        more = {"licenses": ("l", text), "messages": (Message("user", text),), "parameters": (("stop", ("s", text)),)}
        model = Modelfile(("x",), template=text, **more)
        # There are no escapes: what would close every kind of quote cannot be said.
        sayable = not re.search(r'"""[ \t]*[\r\n]', text)
        if sayable:
            assert parse(print_modelfile(model)) == model, repr(text)
            continue
        refused += 1
        with pytest.raises(BadRequest, match=r"^TEMPLATE cannot be written in a Modelfile: one of its lines"):
            print_modelfile(model)
    assert 100 < refused < 2000


@pytest.mark.slow
def test_whole_modelfiles_of_random_parts_read_back() -> None:
    draw = random.Random(5)

    def text(empty: bool = True) -> str:
        while True:
            found = "".join(draw.choice(WORDS[:-2]) for _ in range(draw.randint(0, 5)))
            if (found or empty) and not re.search(r'"""[ \t]*[\r\n]', found):
                return found

    def several(**more: bool) -> tuple[str, ...]:
        return tuple(text(**more) for _ in range(draw.randint(0, 2)))

    values = {
        "int": lambda: draw.randint(-(2**63), 2**63 - 1),
        "float": lambda: draw.choice([0.0, 1.0, -0.5, 0.1, 1e-9, 3.5e20, draw.random(), draw.uniform(-1e38, 1e38)]),
        "bool": lambda: draw.random() < 0.5,
        "list": lambda: (text(), *several()),
    }
    for _ in range(1500):
        chosen = draw.sample(sorted(TYPES), draw.randint(0, 5))
        model = Modelfile(
            (text(False), *several(empty=False)), draw.choice([None, text()]), draw.choice([None, text()]),
            tuple((name, values[TYPES[name]]()) for name in chosen), several(empty=False), several(),
            tuple(Message(draw.choice(["user", "system", "assistant"]), one) for one in several()),
            draw.choice([None, "0.14.0", "1", "2.1", "1.2.3-rc.1+b.5"]), draw.choice([None, text(False)]), None, several(empty=False),
        )  # fmt: skip
        assert parse(print_modelfile(model)) == model


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Modelfile(()), "no FROM line"),
        (Modelfile(("",)), "FROM cannot be written in a Modelfile: it is empty"),
        (Modelfile(("x",), messages=(Message("tool", "3"),)), f"MESSAGE tool cannot be written in a Modelfile: the {ROLE[8:]}"),
        (Modelfile(("x",), system="\ud800"), UNSAYABLE.format("SYSTEM", "D800")),
        (Modelfile(("x",), parameters=(("foo bar", 3),)), "unknown parameter 'foo bar'"),
        (Modelfile(("x",), parameters=(("num_ctx", 0.5),)), "invalid int value [0.5]"),
        (Modelfile(("x",), parameters=(("top_p", float("nan")),)), "invalid float value [NaN]"),
        (Modelfile(("x",), parameters=(("use_mmap", 3),)), "invalid bool value [3]"),
        (Modelfile(("x",), parameters=(("stop", ()),)), UNEQUAL),
        (Modelfile(("x",), parameters=(("seed", 1), ("seed", 2))), UNEQUAL),
        (Modelfile(("x",), parameters=(("mirostat", 2),)), "parameter mirostat is deprecated: nothing obeys it, and it is left out"),
        (Modelfile(("x",), requires="soon"), VERSION),
    ],
)  # fmt: skip
def test_what_no_modelfile_says_is_refused(model: Modelfile, sentence: str) -> None:
    with pytest.raises(BadRequest) as found:
        print_modelfile(model)
    assert str(found.value) == sentence


def test_show_prints_what_a_modelfile_can_say_and_names_the_rest(tmp_path: Path) -> None:
    put_echo(
        tmp_path, "odd", gguf("odd"), template='{{ "a" }}\n', system="\u200dfamily\x1b", license='"""\n"""\n',
        params={"num_ctx": "many", "foo\nbar": 3, "stop": ["<e>", " "], "temperature": 0, "mirostat": 1},
        messages=[{"role": "tool", "content": "3"}, {"role": "user", "content": '"hi" she said'}],
    )  # fmt: skip
    store = Store(tmp_path)
    entry = store.find(names.parse("odd"))
    said = format_show(
        ModelDescription(store.describe(entry), entry, store.header(entry), entry.weights_path), ShowRequest(options={"top_k": 3})
    )
    assert said["modelfile"].split("\n\n", 1)[1].splitlines() == [
        f"FROM {entry.weights_path}",
        'TEMPLATE """{{ "a" }}',
        '"""',
        "SYSTEM \u200dfamily\x1b",
        "# left out: unknown parameter 'foo\\nbar'",
        "# left out: parameter mirostat is deprecated: nothing obeys it, and it is left out",
        "# left out: invalid int value [many]",
        "PARAMETER stop <e>",
        'PARAMETER stop " "',
        "PARAMETER temperature 0",
        "PARAMETER top_k 3",
        "# left out: LICENSE cannot be written in a Modelfile: one of its lines ends in quotes, which would end it there",
        f"# left out: MESSAGE tool cannot be written in a Modelfile: the {ROLE[8:]}",
        'MESSAGE user """"hi" she said"""',
    ]
    again = parse(said["modelfile"])
    assert again.parameters == (("stop", ("<e>", " ")), ("temperature", 0.0), ("top_k", 3))
    assert again.messages == (Message("user", '"hi" she said'),)
    assert said["parameters"].splitlines()[:3] == [
        "foo\\nbar                       3",
        "mirostat                       1",
        'num_ctx                        "many"',
    ]
