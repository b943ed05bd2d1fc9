"""Which type each tensor gets: held against what llama.cpp's own tool chose, and where nothing was recorded, against its rules."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from ndani.convert.quant_types import KINDS, ModelFacts, choose_types, file_type, in_order, parse_kind, read_facts
from ndani.errors import BadRequest
from ndani.store.extents import BLOCKS
from ndani.store.gguf import Tensor
from ndani.store.weights_info import FILE_TYPES
from weights import SMOLLM2, recorded_types, traits

GOLDEN = Path(__file__).parent / "golden"
RECORDED = json.loads((GOLDEN / "quantised.json").read_text())["kinds"]
FAMILIES = json.loads((GOLDEN / "quantised-families.json").read_text())["models"]
MODEL = ModelFacts("llama", 30, 0, 9, 3)


@pytest.mark.parametrize("kind", RECORDED)
def test_every_tensor_gets_the_type_that_was_recorded(kind: str) -> None:
    assert choose_types(kind, MODEL, SMOLLM2) == recorded_types(RECORDED[kind], SMOLLM2)
    assert file_type(kind) == RECORDED[kind]["general.file_type"]


def test_the_kinds_are_those_that_were_recorded_and_the_one_that_they_were_made_from() -> None:
    assert set(KINDS) == {*RECORDED, "F16"}
    assert choose_types("F16", MODEL, SMOLLM2) == {tensor.name: tensor.type for tensor in SMOLLM2}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_other_families_gets_the_type_that_was_recorded(family: str) -> None:
    """Experts, falcon's and phi's joined matrices, outputs of their own, heads that share, rows that fill no block, 80 blocks."""
    said = FAMILIES[family]
    tensors = [Tensor(name, "F16" if len(shape) > 1 else "F32", tuple(shape)) for name, shape in said["tensors"].items()]
    for block, (part, shape) in itertools.product(range(said["blocks"]), said["parts"].items()):
        kept = len(shape) < 2 or "gate_inp" in part
        tensors.append(Tensor(f"blk.{block}.{part}", "F32" if kept else "F16", tuple(shape)))
    keys = {"general.architecture": said["architecture"]} | {f"{said['architecture']}.{key}": value for key, value in said["keys"].items()}
    for kind, types in said["kinds"].items():
        assert choose_types(kind, read_facts(keys), tensors) == _spread(types, tensors), kind


def _spread(types: dict[str, str], tensors: list[Tensor]) -> dict[str, str]:
    """The type of every tensor, out of the short way in which they are recorded."""
    runs = {name: [one.partition("*") for one in said.split()] for name, said in types.items()}
    each = {name: [kind for kind, _, count in found for _ in range(int(count or 1))] for name, found in runs.items()}
    found = {}
    for tensor in tensors:
        _, block, part = tensor.name.split(".", 2) if tensor.name.startswith("blk.") else ("", "0", tensor.name)
        default = types["*"] if len(tensor.shape) > 1 else "F32"
        found[tensor.name] = each[part][int(block)] if part in each else default
    return found


def model(blocks: int, columns: int = 256, untied: bool = True, experts: int = 0) -> list[Tensor]:
    """A model's matrices, in an order that must not matter."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down")
    shape = (columns, 64, experts) if experts else (columns, 64)
    found = [Tensor(f"blk.{n}.{part}.weight", "F16", shape) for n in reversed(range(blocks)) for part in parts]
    return [*found, Tensor("token_embd.weight", "F16", (columns, 99)), *([Tensor("output.weight", "F16", (columns, 99))] * untied)]


def of(kind: str, part: str, said: ModelFacts, tensors: list[Tensor]) -> list[str]:
    """The types of one part, block by block."""
    types = choose_types(kind, said, tensors)
    return [types[tensor.name] for tensor in in_order(tensors) if part in tensor.name]


def test_what_fits_needs_no_other_type() -> None:
    said, tensors = ModelFacts("llama", 16, 0, 8, 1), model(16)
    assert set(of("Q4_K_S", "attn_q", said, tensors)) == {"Q4_K"}
    assert of("Q4_K_S", "attn_v", said, tensors) == ["Q5_K"] * 4 + ["Q4_K"] * 12
    assert of("Q4_K_S", "ffn_down", said, tensors) == ["Q5_K"] * 2 + ["Q4_K"] * 14
    more = ["Q6_K", "Q6_K", *["Q4_K", "Q4_K", "Q6_K"] * 4, "Q6_K", "Q6_K"]
    assert of("Q4_K_M", "attn_v", said, tensors) == of("Q4_K_M", "ffn_down", said, tensors) == more
    assert of("Q3_K_M", "ffn_down", said, tensors) == ["Q5_K"] + ["Q4_K"] * 15
    assert of("Q3_K_M", "attn_v", said, tensors) == ["Q5_K"] * 2 + ["Q4_K"] * 14
    assert set(of("Q3_K_M", "attn_output", said, tensors)) == {"Q4_K"}
    assert set(of("Q2_K", "attn_output", said, tensors)) == {"Q3_K"}
    assert set(of("Q2_K", "ffn_up", said, tensors)) == {"Q2_K"}


def test_an_output_of_its_own_frees_the_embeddings() -> None:
    for kind, output, embeddings in (("Q4_K_M", "Q6_K", "Q4_K"), ("Q8_0", "Q8_0", "Q8_0"), ("Q4_0", "Q6_K", "Q4_0"), ("F32", "F32", "F32")):
        assert choose_types(kind, MODEL, model(2))["output.weight"] == output, kind
        assert choose_types(kind, MODEL, model(2))["token_embd.weight"] == embeddings, kind
        assert choose_types(kind, MODEL, model(2, untied=False))["token_embd.weight"] == output, kind


def test_heads_that_share_get_more_bits() -> None:
    tensors = model(8)
    for kind, alone, shared in (("Q2_K", "Q3_K", "Q4_K"), ("IQ4_XS", "IQ4_XS", "Q5_K"), ("IQ4_NL", "IQ4_NL", "Q5_K")):
        assert set(of(kind, "attn_v", ModelFacts("llama", 8, 0, 8, 3), tensors)) == {alone}
        assert set(of(kind, "attn_v", ModelFacts("llama", 8, 0, 8, 4), tensors)) == {shared}
    assert set(of("Q4_K_S", "attn_v", ModelFacts("llama", 80, 0, 64, 8), model(80))) == {"Q5_K"}
    assert set(of("Q4_K_S", "attn_v", ModelFacts("olmo", 80, 0, 64, 8), model(80))) == {"Q5_K"}
    assert of("Q4_K_M", "attn_v", ModelFacts("llama", 80, 0, 64, 1), model(80)).count("Q4_K") == 40


def test_eight_experts_keep_their_attention() -> None:
    said, tensors = ModelFacts("llama", 8, 8, 8, 4), model(8)
    assert set(of("Q4_K_M", "attn_v", said, tensors)) == set(of("Q4_K_M", "attn_k", said, tensors)) == {"Q8_0"}
    assert set(of("Q4_K_M", "attn_output", said, tensors)) == {"Q5_K"}
    assert set(of("Q5_K_M", "attn_output", said, tensors)) == {"Q5_K"}
    assert set(of("Q6_K", "attn_output", said, tensors)) == {"Q6_K"}
    # Which block it is, is read out of the name: some blocks have no such matrix.
    some = [Tensor(f"blk.{n}.ffn_down_exps.weight", "F16", (256, 4, 8)) for n in (0, 5, 6, 7)]
    assert of("Q4_K_S", "ffn_down", said, some) == ["Q5_K", "Q4_K", "Q4_K", "Q4_K"]


def test_falcon_has_rules_of_its_own() -> None:
    said, tensors = ModelFacts("falcon", 32, 0, 8, 1), model(32)
    assert choose_types("Q4_0", said, tensors)["output.weight"] == "Q8_0"
    assert of("Q4_K_M", "ffn_down", said, tensors)[:5] == ["Q6_K", "Q6_K", "Q5_K", "Q5_K", "Q4_K"]
    assert of("Q3_K_M", "ffn_down", said, tensors)[4:7] == ["Q3_K", "Q3_K", "Q4_K"]
    assert set(of("Q4_K_S", "ffn_down", said, tensors)) == {"Q4_K"}
    assert set(of("Q3_K_L", "attn_output", said, tensors)) == {"Q4_K"}


@pytest.mark.parametrize(
    ("kind", "columns", "becomes"),
    [
        ("Q4_K_S", 256, "Q4_K"), ("Q4_K_S", 96, "Q5_0"), ("Q5_K_S", 96, "Q5_1"), ("Q6_K", 96, "Q8_0"), ("Q2_K", 96, "Q4_0"),
        ("Q3_K_S", 96, "Q4_0"), ("IQ4_XS", 96, "IQ4_NL"), ("Q4_K_S", 80, "F16"), ("Q8_0", 80, "F16"), ("Q4_0", 80, "F16"),
        ("BF16", 80, "BF16"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fill_a_block_get_another_type(kind: str, columns: int, becomes: str) -> None:
    assert set(of(kind, "attn_q", MODEL, model(2, columns))) == {becomes}


def test_what_is_small_and_delicate_stays() -> None:
    kept = [
        "blk.0.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight", "blk.0.ssm_conv1d.weight", "token_types.weight", "position_embd.weight",
        "blk.0.attn_q.bias", "v.patch_embd.weight", "blk.0.time_mix_w1.weight", "rope_freqs",
    ]  # fmt: skip
    tensors = [Tensor(name, "F32", (256, 64)) for name in kept] + [Tensor("blk.0.attn_q.weight", "F32", (256, 1))]
    assert set(choose_types("Q4_0", MODEL, tensors).values()) == {"F32"}
    table = Tensor("blk.0.table.weight", "I32", (256, 64))
    assert choose_types("Q4_0", MODEL, [table]) == {table.name: "I32"}
    assert choose_types("Q4_0", MODEL, [Tensor("blk.0.ffn_up_exps.weight", "F32", (256, 1, 4))])["blk.0.ffn_up_exps.weight"] == "Q4_0"


def test_facts_are_read_as_llama_reads_them() -> None:
    keys = {
        "general.architecture": "x",
        "x.block_count": 4,
        "x.attention.head_count": 8,
        "x.attention.head_count_kv": 2,
        "x.expert_count": 8,
    }
    assert read_facts(keys) == ModelFacts("x", 4, 8, 8, 4)
    assert read_facts(keys | {"x.attention.head_count_kv": [4, 2]}).sharing == 2
    assert read_facts({"general.architecture": "x", "x.attention.head_count": 8}).sharing == 1
    assert read_facts(keys | {"x.attention.head_count_kv": 0}).sharing == 0
    assert read_facts({}) == ModelFacts("", 0, 0, 0, 0)
    assert read_facts(keys | {"x.attention.head_count": None}).heads == 0


@pytest.mark.parametrize("word", ["q4_K_m", " Q4_K_M ", "Q4_K", "q4_k"])
def test_a_kind_is_read_in_any_case(word: str) -> None:
    assert parse_kind(word) == "Q4_K_M"


def test_what_is_no_kind_is_told_which_there_are() -> None:
    with pytest.raises(BadRequest, match=r"^unsupported quantization type Q9_9 - supported types are F32, F16, BF16, Q4_0, .*IQ4_XS$"):
        parse_kind("q9_9")
    for word in ("IQ2_XS", "q2_k_s", "iq3_xxs"):
        with pytest.raises(BadRequest, match=rf"^{word.upper()} has so few bits that it needs an importance matrix"):
            parse_kind(word)


def test_blocks_are_those_of_the_engine() -> None:
    for kind, (numbers, size) in BLOCKS.items():
        found = traits(kind)
        assert (found.numbers, found.bytes) == (numbers, size), kind
        assert found.name.decode().upper() == kind
    assert set(KINDS) <= set(FILE_TYPES.values())
