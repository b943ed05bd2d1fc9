"""`typical_p` with real weights: the engine leaves out what the definition leaves out, where the peer's order has it."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from ndani.engines.sampling import merge, translate
from ndani.types import Sampling
from server import Server, UnixHTTP

PROMPT = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"


def complete(server: Server, prompt: list[int] | str, typical_p: float, **more: Any) -> dict[str, Any]:
    """One token of the runner itself, asked as the front asks it."""
    (path,) = server.sockets.glob("ndani-*/*/*.sock")
    options = translate(merge(Sampling(temperature=0.0, typical_p=typical_p, num_predict=1, seed=1)), 4096)
    with contextlib.closing(UnixHTTP(str(path))) as line:
        line.request("POST", "/completion", json.dumps(options | {"prompt": prompt, "return_tokens": True} | more))
        return dict(json.loads(line.getresponse().read()))


def typical(likely: list[tuple[int, float]], most: float) -> int:
    """The likeliest token of the locally typical set: those whose surprise is nearest to what is to be expected, until `most`."""
    whole = sum(one for _, one in likely)
    shares = [(token, one / whole) for token, one in likely]
    expected = -sum(share * math.log(share) for _, share in shares)
    kept: list[tuple[float, int]] = []
    for token, share in sorted(shares, key=lambda one: abs(-math.log(one[1]) - expected)):
        kept.append((share, token))
        if sum(one for one, _ in kept) > most:
            break
    return max(kept)[1]


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("typical_p", [0.3, 0.45])
def test_the_set_is_taken_of_the_top_k_and_before_top_p(start: Start, real_store: Path, typical_p: float) -> None:
    real = start(real_store)
    real.ask("/api/generate", {"model": "smollm2", "prompt": "a", "options": {"num_predict": 1}})
    (path,) = real.sockets.glob("ndani-*/*/*.sock")
    with contextlib.closing(UnixHTTP(str(path))) as line:
        line.request("POST", "/tokenize", json.dumps({"content": PROMPT, "parse_special": True}))
        prompt = json.loads(line.getresponse().read())["tokens"]
    left_out = 0
    for _ in range(6):
        likely = complete(real, prompt, 1.0, n_probs=40)["completion_probabilities"][0]["top_logprobs"]
        (token,) = complete(real, prompt, typical_p)["tokens"]
        assert token == typical([(one["id"], math.exp(one["logprob"])) for one in likely], typical_p)
        left_out += token != likely[0]["id"]
        prompt.append(token)
    assert left_out, "even without chance it is not the likeliest token that is said"
