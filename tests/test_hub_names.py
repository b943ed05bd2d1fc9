"""Which file of a repository a tag means, and how the library spells names."""

from __future__ import annotations

import pytest

from ndani.errors import NotFound, SourceFailed
from ndani.names import parse
from ndani.sources.families import library_models, registry_spelling
from ndani.sources.gguf_files import group, pick


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("latest", "m-Q4_K_M.gguf"),
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q8_0", "big/m.Q8_0-00001-of-00002.gguf"),
        ("fp16", "m-F16.gguf"),
        ("m-UD-Q4_K_XL.gguf", "m-UD-Q4_K_XL.gguf"),
        ("ud-q4_k_xl", "m-UD-Q4_K_XL.gguf"),
    ],
)
def test_a_tag_picks_a_file(tag: str, file: str) -> None:
    files = ["README.md", "m-F16.gguf", "m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf", "mmproj-m-F16.gguf", "m.imatrix.gguf"]
    files += [f"big/m.Q8_0-0000{n}-of-00002.gguf" for n in (2, 1)]
    assert pick(files, tag, "here")[0] == file
    assert len(group(files)) == 4
    with pytest.raises(SourceFailed, match="is one of 2 parts, and not all of them are there"):
        pick(files[:-1], "q8_0", "here")
    with pytest.raises(NotFound, match=r"has no q9; it has m00, .*, m19 and 5 more$"):
        pick([f"m{number:02}.gguf" for number in range(25)], "q9", "here")
    assert pick(["b-Q5_K_M.gguf", "a-Q8_0.gguf"], "latest", "here") == ("b-Q5_K_M.gguf",), "the first, where there is no Q4_K_M"


#: Files as publishers lay them out, the tag, and what it means.
LAYOUTS = [
    (["mtp-g.gguf", "MTP/mtp-g-BF16.gguf", "MTP/mtp-g-Q8_0.gguf", "g-BF16.gguf", "mmproj-BF16.gguf"], "latest", "g-BF16.gguf"),
    (["MTP/g-Q8_0-MTP.gguf", "MTP/g-BF16-MTP.gguf", "g-UD-Q8_0.gguf", "g-Q8_0.gguf"], "q8_0", "g-Q8_0.gguf"),
    (["dflash-g-Q8_0.gguf", "eagle3-g-Q8_0.gguf", "g-it-long-name-Q8_0.gguf"], "Q8_0", "g-it-long-name-Q8_0.gguf"),
    (["draft-g-q4_k_m.gguf", "dspark-g.gguf", "g-instruct-q4_k_m.gguf"], "latest", "g-instruct-q4_k_m.gguf"),
    (["a-Q4_K_M-draft.gguf", "m-Q5_K_M.gguf"], "latest", "m-Q5_K_M.gguf"),
    (["Ornith-9B-MTP-IQ2_M.gguf", "Ornith-9B-MTP-Q8_0.gguf", "mmproj-Ornith-9B-BF16.gguf"], "q8_0", "Ornith-9B-MTP-Q8_0.gguf"),
    (["Eagle2-9B-Q4_K_M.gguf", "Eagle2-9B-Q8_0.gguf", "mmproj-Eagle2.gguf"], "latest", "Eagle2-9B-Q4_K_M.gguf"),
    (["mtp-g-Q8_0.gguf"], "q8_0", "mtp-g-Q8_0.gguf"),
    (["Q4_K_M/model.gguf", "Q8_0/model.gguf"], "Q8_0", "Q8_0/model.gguf"),
    (["Q4_K_M/model.gguf", "Q8_0/model.gguf"], "latest", "Q4_K_M/model.gguf"),
    (["quants/m-UD-Q4_K_XL/v2/model.gguf", "m/F16/model.gguf"], "ud-q4_k_xl", "quants/m-UD-Q4_K_XL/v2/model.gguf"),
    (["BF16/m-Q8_0.gguf", "BF16/m.gguf"], "bf16", "BF16/m.gguf"),
    (["BF16/m-Q8_0.gguf", "BF16/m.gguf"], "q8_0", "BF16/m-Q8_0.gguf"),
    (["only/F16/model.gguf"], "model.gguf", "only/F16/model.gguf"),
    (["Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "m-Q8_0.gguf"], "q8_0", "m-Q8_0.gguf"),
    (["Q8_0/m-00001-of-00002.gguf", "Q8_0/m-00002-of-00002.gguf", "Q4_0/m.gguf"], "q8_0", "Q8_0/m-00001-of-00002.gguf"),
    (["a/m-F16-00002-of-00002.gguf", "b/m-F16-00001-of-00002.gguf", "b/m-F16-00002-of-00002.gguf"], "f16", "b/m-F16-00001-of-00002.gguf"),
    (["m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"], "q8_0", "m-Q8_0-00001-of-00002.gguf"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "tag", "file"), LAYOUTS)
def test_what_lies_beside_a_model_and_in_which_folder(files: list[str], tag: str, file: str) -> None:
    found = pick(files, tag, "here")
    assert found[0] == file
    assert len(found) == (2 if "-of-00002" in file else 1)
    assert len({path.rpartition("/")[0] for path in found}) == 1


@pytest.mark.parametrize(
    ("typed", "there"),
    [
        ("phi4:mini", "phi4-mini:3.8b"),
        ("phi4:mini-f16", "phi4-mini:3.8b-fp16"),
        ("phi4:mini-q8_0", "phi4-mini:3.8b-q8_0"),
        ("phi4:mini-q4_k_m", "phi4-mini:3.8b-q4_K_M"),
        ("PHI4:Mini-Q4_K_M", "phi4-mini:3.8b-q4_K_M"),
        ("qwen2.5:3b-q4_k_m", "qwen2.5:3b-instruct-q4_K_M"),
        ("qwen2.5:3b-instruct-q4_k_m", "qwen2.5:3b-instruct-q4_K_M"),
        ("llama3.2:3b-f16", "llama3.2:3b-instruct-fp16"),
        ("deepseek-r1:1.5b-q8_0", "deepseek-r1:1.5b-qwen-distill-q8_0"),
        ("mixtral:8x7b-q4_k_m", "mixtral:8x7b-instruct-v0.1-q4_K_M"),
        ("nomic-embed-text:f16", "nomic-embed-text:137m-v1.5-fp16"),
    ],
)
def test_names_are_spelt_as_the_library_spells_them(typed: str, there: str) -> None:
    assert registry_spelling(parse(typed)) == parse(there)
    assert registry_spelling(parse(there)) is None


def test_names_that_need_no_spelling() -> None:
    for name in ("qwen2.5:3b", "nomic-embed-text", "llama3.2:1b", "someone/phi4:mini", "127.0.0.1:5000/library/phi4:mini", "nope"):
        assert registry_spelling(parse(name)) is None, name
    keys = [parse(model.name).key for model in library_models()]
    assert len(keys) == len(set(keys))
    families = {model.name.partition(":")[0] for model in library_models()}
    assert {"llama3.2", "gemma2", "gemma3", "phi4", "qwen2.5", "qwen3", "deepseek-r1", "mistral", "mixtral", "nomic-embed-text"} <= families
    for model in library_models():
        assert parse(model.registry_name)
        assert model.type in {"instruct", "embedding"}
        assert model.size_class in {"tiny", "small", "medium", "large"}
        assert "{}" in model.variant
        assert model.quantizations
