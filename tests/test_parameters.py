"""Parameters of a model and options of a request: how they are printed, which there are, and every wrong one its sentence."""

from __future__ import annotations

import pytest

from ndani.engines.sampling import OPTIONS
from ndani.errors import BadRequest
from ndani.store.parameters import TYPES, check_parameters, format_parameters


def test_parameters_in_go_syntax() -> None:
    params = {"seed": 1234567890, "temperature": 0.7, "top_p": 1.0, "min_p": 1e-05, "use_mmap": True}
    params["stop"] = ['a"b\n', "\u200b\x01é👋", "<x>"]
    assert format_parameters(params).split("\n") == [
        "min_p                          1e-05",
        "seed                           1234567890",
        r'stop                           "a\"b\n"',
        r'stop                           "\u200b\x01é👋"',
        'stop                           "<x>"',
        "temperature                    0.7",
        "top_p                          1",
        "use_mmap                       true",
    ]


def test_the_options_are_those_that_the_sampler_knows() -> None:
    assert set(TYPES) == OPTIONS | {"draft_num_predict"}


def test_parameters_of_a_request() -> None:
    said = {"num_ctx": 2048.0, "temperature": 1, "top_p": 0.5, "stop": ["a"], "use_mmap": False, "mirostat": 1, "seed": None}
    found, warnings = check_parameters(said)
    assert found == {"num_ctx": 2048, "temperature": 1, "top_p": 0.5, "stop": ["a"], "use_mmap": False}
    assert warnings == ("parameter mirostat is deprecated: nothing obeys it, and it is left out",)
    for bad, sentence in [
        ({"num_ctx": "many"}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": 1.5}, 'option "num_ctx" must be of type integer'),
        ({"num_ctx": True}, 'option "num_ctx" must be of type integer'),
        ({"seed": 2**64}, 'option "seed" must be of type integer'),
        ({"temperature": "hot"}, 'option "temperature" must be of type float32'),
        ({"temperature": 1e300}, 'option "temperature" must be of type float32'),
        ({"temperature": float("inf")}, 'option "temperature" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "a"}, 'option "stop" must be of type array'),
        ({"stop": ["a", 1]}, 'option "stop" must be of an array of strings'),
        ({"foo_bar": 3}, "unknown parameter 'foo_bar'"),
    ]:
        with pytest.raises(BadRequest) as refused:
            check_parameters(bad)
        assert str(refused.value) == sentence
