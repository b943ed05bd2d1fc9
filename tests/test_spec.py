"""What fits a runner, and how one is started that does not: one rule, seen from both sides."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ndani.engines import LaunchOptions
from ndani.runtime.spec import RunnerSpec, default_options
from ndani.settings import Settings
from ndani.types import Details

DEFAULTS = LaunchOptions("", slots=3, num_ctx=4096, num_batch=64, num_thread=2)
LAUNCHES = [
    replace(DEFAULTS, engine="llama", num_ctx=num_ctx, num_batch=num_batch, num_thread=num_thread, num_gpu=num_gpu)
    for num_ctx, num_batch, num_thread, num_gpu in product([4, 1024, 8192], [1, 64, 8192], [1, 2], [-1, 0])
]
SPECS = [
    RunnerSpec("k", "m", "d", Details(), None, 1, 1, trained, engine="llama", num_ctx=num_ctx, num_batch=num_batch, num_thread=num_thread,
               num_gpu=num_gpu, use_mmap=use_mmap, embedding=embedding, pooling=pooling)
    for trained, num_ctx, num_batch, num_thread, num_gpu, use_mmap, (embedding, pooling) in product(
        [0, 700, 8192], [None, 0, 5, 1024, 10**6], [None, 0, 64], [None, 2], [None, 0], [None, False],
        [(False, ""), (True, ""), (True, "last")],
    )
]  # fmt: skip


def test_a_runner_fits_where_starting_it_again_would_change_nothing() -> None:
    """The batch of vectors aside, which changes none of them; and whoever is started for a request fits it."""
    fitting = 0
    for spec, launch in product(SPECS, LAUNCHES):
        old = replace(launch, embedding=spec.embedding, pooling=spec.pooling)
        again = spec.launch_options(old, DEFAULTS)
        if spec.embedding and not spec.pooling and old.num_batch < old.num_ctx:
            continue  # nobody starts one like that
        assert spec.can_use(old) is (replace(again, num_batch=old.num_batch) == old if spec.embedding else again == old), (spec, old)
        assert spec.can_use(again)
        assert spec.launch_options(again, DEFAULTS) == again
        assert again.num_ctx >= old.num_ctx
        assert not spec.trained_ctx or again.num_ctx <= max(spec.trained_ctx, old.num_ctx)
        fitting += spec.can_use(old)
    assert 1000 < fitting < len(SPECS) * len(LAUNCHES) / 2
    for spec in SPECS:
        assert spec.can_use(spec.launch_options(None, DEFAULTS))


@pytest.mark.parametrize(
    ("said", "num_batch"),
    [
        ({}, 64),
        ({"num_batch": 100}, 100),
        ({"num_batch": 0}, 1),
        ({"embedding": True}, 2000),
        ({"embedding": True, "num_batch": 4000}, 4000),
        ({"embedding": True, "pooling": "last"}, 64),
        ({"embedding": True, "pooling": "last", "num_batch": 100}, 100),
    ],
)
def test_a_text_for_vectors_is_read_in_one_go(said: dict[str, Any], num_batch: int) -> None:
    launch = replace(SPECS[0], num_ctx=2000, **said).launch_options(None, DEFAULTS)
    assert (launch.num_batch, launch.num_ctx, launch.slots, launch.engine) == (num_batch, 2000, 3, "llama")
    assert (launch.embedding, launch.pooling) == (said.get("embedding", False), said.get("pooling", ""))


def test_the_settings_say_what_nobody_else_says(tmp_path: Any) -> None:
    bare = default_options("llama", Settings(models=tmp_path), 6, 4)
    assert (bare.num_ctx, bare.num_thread, bare.num_batch, bare.slots) == (4096, 6, 192, 4)
    said = default_options("llama", Settings(models=tmp_path, context_length=1000, num_thread=3, num_gpu=0, kv_cache_type="q8_0"), 6, 4)
    assert (said.num_ctx, said.num_thread, said.num_gpu, said.kv_cache_type) == (1000, 3, 0, "q8_0")


def test_which_of_two_asks_for_more() -> None:
    none, little, much = (replace(SPECS[0], num_ctx=num_ctx) for num_ctx in (None, 10, 11))
    more = {(a.num_ctx, b.num_ctx) for a, b in product((none, little, much), repeat=2) if a.needs_more_context_than(b)}
    assert more == {(10, None), (11, None), (11, 10)}
