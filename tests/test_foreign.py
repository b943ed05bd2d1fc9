"""JSON of somebody else: bounds on depth and on values, whatever stands inside texts; marks and NaN."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import pytest

from ndani.untrusted_json import InvalidJson, decode, loads, require_bounds
from server import slowness


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize("levels", [201, 5000, 1_000_000])
def test_too_deep_is_a_clause(levels: int) -> None:
    for read in (loads, lambda content: decode(content, Any)):
        with pytest.raises(InvalidJson, match="nested more than 200 levels deep"):
            read(nested(levels))
        with pytest.raises(InvalidJson, match="nested more than 200 levels deep"):
            read(b'{"a":' * levels + b"1" + b"}" * levels)


def test_as_deep_as_may_be_is_read() -> None:
    assert decode(nested(200), Any) == loads(nested(200))


def test_brackets_in_texts_do_not_count() -> None:
    content = b'{"a":"' + b"[{" * 5000 + rb"\"[[[" + b'"}'
    assert decode(content, dict[str, str])["a"] == "[{" * 5000 + '"[[['
    assert decode(b'{"a":"' + b"x," * 100 + b'"}', dict[str, str], values=10)


def test_too_many_values_are_refused_before_they_are_made() -> None:
    content = b"[" + b"[],[]," * 5_000_000 + b"1]"
    began = time.perf_counter()
    with pytest.raises(InvalidJson, match="holds more than 4000000 values"):
        decode(content, Any)
    assert time.perf_counter() - began < 0.5 * slowness()


def test_what_is_counted_in_pieces_is_counted_whole() -> None:
    """Texts, escapes and levels that lie across the pieces a text is looked at in."""
    texts = [b'"' + bytes([byte]) * long + b'"' for byte in b"a[," for long in (65_535, 65_536, 200_000)]
    texts += [b'"' + rb"\\" * 65_537 + b'"', b'"' + rb"\"" * 65_536 + b'"', b'"x' + rb"\"[" * 65_536 + b'"']
    for first in texts:
        content = b"[" + b",".join([first, b"[[]]", first, b"[1,{}]"]) + b"]"
        require_bounds(content, depth=3, values=9, containers=5)
        for less in ({"depth": 2}, {"values": 8}, {"containers": 4}):
            with pytest.raises(InvalidJson):
                require_bounds(content, **{"depth": 3, "values": 9, "containers": 5} | less)
    for cut in (b'["' + b"a," * 10**5, b'["' + b"[" * 10**5 + b"\\", b'"'):
        require_bounds(cut, depth=1, values=1)


def test_a_byte_order_mark_is_passed_over() -> None:
    assert decode(b'\xef\xbb\xbf{"a":1}', dict[str, int]) == loads(b'\xef\xbb\xbf{"a":1}') == {"a": 1}


def test_what_is_no_json_is_a_clause_that_quotes_nothing() -> None:
    for content in (b'{"secret', '{"a":"secret"}'.encode("utf-16"), b'"secret\xff"', b'{"a":secret}'):
        for read in (loads, lambda content: decode(content, Any)):
            with pytest.raises(InvalidJson) as met:
                read(content)
            assert "secret" not in str(met.value)
    with pytest.raises(InvalidJson, match="Expected `int`"):
        decode(b'{"a":"secret"}', dict[str, int])


def test_numbers_as_python_writes_them() -> None:
    assert math.isnan(loads(b"[NaN]")[0])
    with pytest.raises(InvalidJson):
        decode(b"[NaN]", Any)


class _Inner(msgspec.Struct):
    name: str = "none"


class _Outer(msgspec.Struct):
    token: str = ""
    inner: _Inner = msgspec.field(default_factory=_Inner)
    many: tuple[_Inner, ...] = ()
    size: int | None = None


def test_null_is_a_member_that_is_not_there() -> None:
    found = decode(b'{"token":null,"inner":{"name":null},"many":[{"name":null},{"name":"x"}],"size":null}', _Outer)
    assert found == _Outer(many=(_Inner(), _Inner("x")))
    assert decode(b'{"a":null}', dict[str, Any]) == {"a": None}
    for content in (b'{"many":[null]}', b'{"token":5,"inner":null}', b"null"):
        with pytest.raises(InvalidJson):
            decode(content, _Outer)


def test_a_text_without_an_end_is_counted_in_one_pass() -> None:
    content = b"[" * 201 + b'"' + b'\\"' * 40_000
    began = time.perf_counter()
    for read in (loads, lambda text: decode(text, Any)):
        with pytest.raises(InvalidJson, match="200 levels"):
            read(content)
    assert time.perf_counter() - began < 0.5 * slowness()
    with pytest.raises(InvalidJson, match="not JSON"):
        loads(b'["' + b"[" * 300)  # brackets inside a text count for nothing, whether it ends or not
