"""GGUF in, GGUF out: the bytes are llama.cpp's own, whatever the threads, and a damaged file is one sentence."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from ndani import names
from ndani.convert import kernels, shards
from ndani.convert.kernels import Kernels
from ndani.convert.quantise import QuantisationPlan, open_source, plan, write
from ndani.errors import BadRequest
from ndani.store import Store, extents
from ndani.store.gguf import Tensor, read_header
from stores import REAL
from weights import file, numbers, recorded_types, small, split, traits, types_of, unpack

RECORDED = json.loads((Path(__file__).parent / "golden" / "quantised.json").read_text())["kinds"]
#: What the real Ollama made of the same file (`create-quantize` of its recorded exchanges).
OLLAMAS_Q8_0 = "f7933c716a5b5334c54b997d1f6db3f38a0786c9046ac5f46311b396a3f1fe54"


@pytest.fixture(scope="module")
def engine() -> Kernels:
    return kernels.load()


@pytest.fixture(scope="module")
def f16(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real model, unpacked to F16."""
    path = tmp_path_factory.mktemp("f16") / "f16.gguf"
    unpack(Store(models).find(names.parse(REAL)).weights_path, path)
    yield path
    path.unlink()


def do(
    sources: Sequence[Path], target: Path, engine: Kernels, kind: str = "", threads: int = 2, only: Sequence[str] = ()
) -> QuantisationPlan:
    """Carry a plan out in this process."""
    opened = [os.open(path, os.O_RDONLY) for path in sources]
    output = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        work = plan([open_source(path.name, at) for path, at in zip(sources, opened, strict=True)], kind)
        some = replace(work, jobs=tuple(p for p in work.jobs if p.name in only)) if only else work
        done = list(write(some, opened, output, engine, threads))
        assert done == sorted(done)
        assert only or done[-1] == work.total
    finally:
        for descriptor in (*opened, output):
            os.close(descriptor)
    assert target.stat().st_size == work.layout.size
    return work


def content(path: Path, work: QuantisationPlan, name: str) -> bytes:
    piece = next(piece for piece in work.jobs if piece.name == name)
    with path.open("rb") as made:
        made.seek(piece.target_offset)
        return made.read(extents.tensor_size(piece.target_type, (piece.columns, piece.rows)))


@pytest.mark.weights
@pytest.mark.parametrize("kind", RECORDED)
def test_five_tensors_are_the_bytes_that_were_recorded(kind: str, f16: Path, tmp_path: Path, engine: Kernels) -> None:
    want = RECORDED[kind]["sha256_first_32"]
    work = do([f16], tmp_path / "made", engine, kind, only=list(want))
    assert {name: sha256(content(tmp_path / "made", work, name)).hexdigest()[:32] for name in want} == want
    assert work.layout.size == RECORDED[kind]["file_bytes"]
    assert {piece.name: piece.target_type for piece in work.jobs} == recorded_types(RECORDED[kind], read_header(f16).tensors)


@pytest.mark.weights
def test_the_whole_file_is_the_one_that_ollama_makes(f16: Path, tmp_path: Path, engine: Kernels) -> None:
    do([f16], tmp_path / "made", engine, "Q8_0", threads=3)
    assert sha256((tmp_path / "made").read_bytes()).hexdigest() == OLLAMAS_Q8_0
    assert read_header(tmp_path / "made").metadata["general.file_type"] == 7


@pytest.mark.slow
def test_threads_make_no_difference_and_every_key_stays(tmp_path: Path, engine: Kernels) -> None:
    keys, tensors = small(rows=9000)
    whole = tmp_path / "whole"
    whole.write_bytes(file(keys, tensors))
    digests = set()
    for threads in (1, 2, 7):
        do([whole], tmp_path / "made", engine, "Q4_K_M", threads)
        digests.add(sha256((tmp_path / "made").read_bytes()).hexdigest())
    assert len(digests) == 1
    made = read_header(tmp_path / "made").metadata
    assert made == dict(keys) | {"general.file_type": 15, "general.quantization_version": 2}
    assert list(made)[-2:] == ["general.quantization_version", "general.file_type"]


def test_numbers_come_out_near_what_went_in(tmp_path: Path, engine: Kernels) -> None:
    keys, tensors = small()
    (tmp_path / "whole").write_bytes(file(keys, tensors))
    for kind, apart in (("Q8_0", 0.01), ("Q4_0", 0.15), ("BF16", 0.005), ("F32", 0.0)):
        work = do([tmp_path / "whole"], tmp_path / "made", engine, kind)
        found = floats(work.jobs[-1].target_type, content(tmp_path / "made", work, "blk.1.ffn_down.weight"))
        want = struct.unpack(f"<{len(found)}e", tensors[-1][1])
        assert max(abs(a - b) for a, b in zip(found, want, strict=True)) <= apart, kind


def floats(kind: str, held: bytes) -> list[float]:
    import ctypes

    if kind == "F32":
        return list(struct.unpack(f"<{len(held) // 4}f", held))
    count = len(held) // extents.BLOCKS[kind][1] * extents.BLOCKS[kind][0]
    found = (ctypes.c_float * count)()
    traits(kind).to_float(held, found, count)
    return list(found)


def test_every_plain_type_can_be_where_it_starts(tmp_path: Path, engine: Kernels) -> None:
    keys, tensors = small()
    (tmp_path / "F16").write_bytes(file(keys, tensors))
    for kind in ("F32", "BF16"):
        do([tmp_path / "F16"], tmp_path / kind, engine, kind)
    assert do([tmp_path / "F32"], tmp_path / "again", engine, "F16")
    assert same_weights(tmp_path / "again", tmp_path / "F16")
    for source in ("F32", "BF16"):
        do([tmp_path / source], tmp_path / "made", engine, "Q8_0")
        assert types_of(tmp_path / "made")["blk.0.ffn_down.weight"] == "Q8_0"


def same_weights(one: Path, other: Path) -> bool:
    found = []
    for path in (one, other):
        descriptor = os.open(path, os.O_RDONLY)
        work = plan([open_source("x", descriptor)])
        jobs = work.jobs
        sizes = [extents.tensor_size(job.source_type, (job.columns, job.rows)) for job in jobs]
        found.append({j.name: (j.source_type, os.pread(descriptor, n, j.source_offset)) for j, n in zip(jobs, sizes, strict=True)})
        os.close(descriptor)
    return found[0] == found[1]


def test_a_file_that_is_of_its_kind_already_is_left_alone(tmp_path: Path, engine: Kernels) -> None:
    (tmp_path / "whole").write_bytes(file(*small()))
    assert do([tmp_path / "whole"], tmp_path / "made", engine, "F16").unchanged
    assert not do([tmp_path / "whole"], tmp_path / "made", engine, "BF16").unchanged


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_become_the_file_that_they_were(count: int, tmp_path: Path) -> None:
    keys, tensors = small()
    parts = split(keys, tensors, count)
    for name, part in parts.items():
        (tmp_path / name).write_bytes(part)
    do([tmp_path / name for name in parts], tmp_path / "made", None)  # type: ignore[arg-type]
    assert (tmp_path / "made").read_bytes() == file(keys, tensors)


def test_parts_can_be_quantised_on_the_way(tmp_path: Path, engine: Kernels) -> None:
    keys, tensors = small()
    (tmp_path / "whole").write_bytes(file(keys, tensors))
    parts = split(keys, tensors, 3)
    for name, part in parts.items():
        (tmp_path / name).write_bytes(part)
    do([tmp_path / "whole"], tmp_path / "one", engine, "Q6_K")
    do([tmp_path / name for name in parts], tmp_path / "other", engine, "Q6_K")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


HEADS = [{"split.no": number, "split.count": 3, "split.tensors.count": 7} for number in range(3)]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"a": HEADS[0], "c": HEADS[2]}, "a is one of 3 parts of a model, and part 2 (…-00002-of-00003.gguf) is missing; give"),
        ({"a": HEADS[0], "b": HEADS[0], "c": HEADS[1]}, "b and a are both part 1 of 3"),
        ({"a": HEADS[0], "b": HEADS[1] | {"split.count": 2}}, "b is one of 2 parts of a model, and a one of 3"),
        ({"a": HEADS[0] | {"split.no": 3}}, "a is one of 3 parts of a model, and says that it is part 3, counted from 0"),
        ({"a": HEADS[0] | {"split.no": "x"}}, "a is one of 3 parts of a model, and says that it is part x"),
        ({"a": HEADS[0] | {"split.count": 1 << 60}}, f"a is one of {1 << 60} parts of a model, and part 2 "),
    ],
)
def test_parts_that_do_not_make_a_whole_are_one_sentence(parts: dict[str, dict[str, object]], sentence: str) -> None:
    with pytest.raises(BadRequest) as met:
        shards.in_order(parts)
    assert str(met.value).startswith(sentence)
    assert "\n" not in str(met.value)


def test_parts_are_put_in_their_order() -> None:
    assert shards.in_order({"b": HEADS[2], "a": HEADS[1], "c": HEADS[0]}) == ["c", "a", "b"]
    assert shards.is_shard(HEADS[0])
    assert not shards.is_shard({"split.count": 1})
    assert not shards.is_shard({"split.count": "many"})


def planned(tmp_path: Path, *contents: bytes, kind: str = "Q4_0") -> QuantisationPlan:
    sources = []
    for number, each in enumerate(contents):
        (tmp_path / f"{number}.gguf").write_bytes(each)
        with (tmp_path / f"{number}.gguf").open("rb") as opened:
            sources.append(open_source(f"{number}.gguf", opened.fileno()))
    return plan(sources, kind)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    keys, tensors = small()
    whole = file(keys, tensors)
    cases = [
        ((whole[:-700],), "is cut off"),
        ((whole[:40],), "is not a usable GGUF file"),
        ((b"",), "is not a usable GGUF file"),
        ((file([*keys, ("general.alignment", 48)], tensors),), "its alignment is 48"),
        ((file(keys, [*tensors, tensors[0]]),), "it has the tensor token_embd.weight twice"),
        ((whole, whole), "1.gguf has the tensor token_embd.weight, which is there already"),
        (tuple(split(keys, tensors, 3).values())[:2], "the parts have 4 tensors together, and 0.gguf says 7"),
    ]
    for contents, sentence in cases:
        with pytest.raises(BadRequest) as met:
            planned(tmp_path, *contents)
        assert sentence in str(met.value)
        assert str(tmp_path) not in str(met.value)
        assert "\n" not in str(met.value)


def test_weights_that_are_quantised_already_are_refused(tmp_path: Path, engine: Kernels) -> None:
    (tmp_path / "whole").write_bytes(file(*small()))
    for kind in ("Q5_0", "IQ4_NL", "Q4_K_S"):
        do([tmp_path / "whole"], tmp_path / "made", engine, kind)
        sentence = rf"^quantization is only supported for F16, BF16 and F32 models, and 0.gguf is {kind}; give the file"
        with pytest.raises(BadRequest, match=sentence):
            planned(tmp_path, (tmp_path / "made").read_bytes())
    assert planned(tmp_path, (tmp_path / "made").read_bytes(), kind="").total  # to be joined they may be of any type


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "IQ4_NL"])
def test_weights_that_are_no_numbers_are_one_sentence(kind: str, tmp_path: Path, engine: Kernels) -> None:
    keys, tensors = small()
    bad = bytearray(numbers(256 * 32))
    bad[512:514] = struct.pack("<e", float("nan"))
    spoilt = [(t, bytes(bad) if t.name == "blk.1.attn_v.weight" else held) for t, held in tensors]
    (tmp_path / "whole").write_bytes(file(keys, spoilt))
    with pytest.raises(BadRequest, match=r"^the tensor blk.1.attn_v.weight cannot be quantized: it holds numbers that are not finite"):
        do([tmp_path / "whole"], tmp_path / "made", engine, kind)


def test_work_that_is_given_up_stops(tmp_path: Path, engine: Kernels) -> None:
    (tmp_path / "whole").write_bytes(file(*small(rows=40_000)))
    with (tmp_path / "whole").open("rb") as source, (tmp_path / "made").open("wb+") as target:
        work = plan([open_source("x", source.fileno())], "Q8_0")
        steps = write(work, [source.fileno()], target.fileno(), engine, 2)
        assert next(steps) < work.total
        steps.close()  # waits for its threads, so that the descriptors can be closed


def test_a_type_of_a_version_to_come_is_said(tmp_path: Path) -> None:
    whole = bytearray(file(*small()))
    at = whole.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
    whole[at : at + 4] = struct.pack("<I", 99)
    with pytest.raises(BadRequest, match=r"holds weights of the type 99, which this version does not know; update ndani"):
        planned(tmp_path, bytes(whole), kind="")
    assert Tensor("a", "F16", (1,), 5) == Tensor("a", "F16", (1,), 6)  # where it lies is no part of what it is
