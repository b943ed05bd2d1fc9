"""Every number of every body: whatever its size, sign or spelling, it is obeyed or refused in one sentence, and never a fault of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from conftest import Start
from ndani.api.ollama import requests
from ndani.api.ollama.create import parse_create
from ndani.api.ollama.embed import parse_embed, parse_embeddings
from ndani.api.ollama.show import parse_show
from ndani.engines.sampling import merge, parse_options, translate
from ndani.errors import BadRequest
from ndani.runtime.residence import FOREVER
from ndani.store.parameters import TYPES, check_parameters, format_parameters
from stores import put_echo

#: As they stand in a body; what no 64-bit float can hold (1e999) is refused before any field is looked at.
NUMBERS = (
    "0", "-0", "-0.0", "1", "-1", "1.5", "4096.0", "4.096e3", "1e-320", "-1e300", "1e300", "2147483647", "2147483648", "-2147483649",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "18446744073709551616", "9" * 400,
    "-" + "9" * 400, "1" + "0" * 400,
)  # fmt: skip

READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "generate": lambda body: requests.parse_generate(body),
    "chat": lambda body: requests.parse_chat({"model": "m"} | body),
    "embed": lambda body: parse_embed({"model": "m"} | body),
    "embeddings": lambda body: parse_embeddings({"model": "m"} | body),
    "create": lambda body: parse_create({"model": "m"} | body),
    "show": parse_show,
}
FIELDS = (
    "keep_alive", "context", "dimensions", "top_logprobs", "options", "parameters", "think", "input", "stream", "raw", "messages",
    "license",
)  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=[n[:24] for n in NUMBERS])
@pytest.mark.parametrize("route", READERS)
def test_a_number_in_any_field_is_read_or_refused(route: str, number: str) -> None:
    value = msgspec.json.decode(number.encode())
    for name in FIELDS:
        for given in (value, [value], {"num_ctx": value, "stop": [value]}, {"num_predict": value}):
            try:
                READERS[route]({name: given})
            except BadRequest as error:
                assert str(error)
                assert "\n" not in str(error)
                assert len(str(error)) < 200


@pytest.mark.parametrize("number", NUMBERS, ids=[n[:24] for n in NUMBERS])
def test_an_option_of_any_number_is_something_that_the_engine_can_read(number: str) -> None:
    value = msgspec.json.decode(number.encode())
    for name in TYPES:
        try:
            sent = translate(merge(parse_options({name: value})[0]), 4096)
        except BadRequest:
            continue
        assert all(abs(n) < 2**32 or isinstance(n, float) for n in sent.values() if isinstance(n, int | float))
        msgspec.json.encode(sent)
    for name in TYPES:
        try:
            kept = check_parameters({name: value})[0]
        except BadRequest:
            continue
        assert json.loads(json.dumps(kept)) == kept
        assert format_parameters(kept)


@pytest.mark.parametrize("seconds", [10**400, 10**18, "9" * 400, 1e300])
def test_a_keep_alive_longer_than_any_calendar_is_for_ever_and_a_negative_one_too(seconds: Any) -> None:
    for read_one in list(READERS)[:4]:
        body = READERS[read_one]({"keep_alive": seconds})
        assert body[0].keep_alive >= min(FOREVER, 1e12)
        if not isinstance(seconds, str):
            assert READERS[read_one]({"keep_alive": -seconds})[0].keep_alive < 0


def test_numbers_of_four_hundred_digits_over_http(start: Start, tmp_path: Path) -> None:
    put_echo(tmp_path / "models", "echo")
    server = start(tmp_path / "models")
    for sign, expires in (("", "2318"), ("-", "2318")):
        body = f'{{"model":"echo","prompt":"","messages":[],"keep_alive":{sign}{"9" * 400}}}'
        for path in ("/api/generate", "/api/chat"):
            answer = server.http.post(path, content=body)
            assert answer.status_code == 200, answer.text
            assert answer.json()["done_reason"] == "load", answer.text
        assert server.resident()["echo:latest"]["expires_at"] >= expires
    shown = server.http.post("/api/show", content=f'{{"model":"echo","options":{{"num_ctx":{"9" * 400},"top_k":7}}}}')
    assert shown.status_code == 200, shown.text
    assert "PARAMETER top_k 7" in shown.json()["modelfile"], shown.text
    made = server.http.post("/api/create", content=f'{{"model":"x","from":"echo","parameters":{{"num_ctx":{"9" * 400}}}}}')
    assert made.status_code == 400
    assert made.json() == {"error": 'option "num_ctx" must be of type integer'}
    for number in ("1e999", "-1e999", "1" + "0" * 400 + ".5"):
        answer = server.http.post("/api/generate", content=f'{{"model":"echo","keep_alive":{number}}}')
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith("invalid JSON: "), answer.text
    assert "fault of its own" not in server.log
