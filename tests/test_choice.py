"""Which files of many are the model, and what form a file has whatever it is called."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from checkpoints import byte_level, made_of, tiny_llama
from ndani.convert.file_selection import choose_files
from ndani.errors import BadRequest
from ndani.store.file_formats import GGML, GGUF, LFS_POINTER, PYTORCH, SAFETENSORS, detect_format, wrong_format

FORMS = {
    b"GGUF": GGUF,
    b"GGUF" + bytes(60): GGUF,
    b"PK\x03\x04" + bytes(60): PYTORCH,
    b"\x80\x02\x8a\nl\xfc\x9cF": PYTORCH,
    b"tjgg" + bytes(60): GGML,
    b"version https://git-lfs.github.com/spec/v1": LFS_POINTER,
    struct.pack("<Q", 8) + b'{"a":{}}' + bytes(9): SAFETENSORS,
    struct.pack("<Q", 8) + b'["a",{}]' + bytes(9): "",
    struct.pack("<Q", 99) + b'{"a":{}}' + bytes(9): "",
    b"": "",
    b"{}": "",
    b'{"architectures": ["LlamaForCausalLM"]}': "",
    b"hello, world": "",
}


@pytest.mark.parametrize("content", FORMS, ids=[str(number) for number in range(len(FORMS))])
def test_the_first_bytes_say_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with (tmp_path / "model.safetensors").open("rb") as file:
        assert detect_format(file.fileno()) == FORMS[content]
    assert "\n" not in str(wrong_format("x", FORMS[content]))
    assert "\n" not in str(wrong_format("x", FORMS[content], adapter=True))


def test_the_outermost_weights_are_the_model() -> None:
    part = "model-00001-of-00001.safetensors"
    forms = dict.fromkeys((part, f"checkpoint-10/{part}", f"checkpoint-20/{part}"), SAFETENSORS)
    forms |= dict.fromkeys(("config.json", "checkpoint-10/config.json", "1_Pooling/config.json", "checkpoint-10/tokenizer.json"), "")
    forms |= {"gguf/m.gguf": GGUF, "training_args.bin": PYTORCH, "model.fp16.safetensors": SAFETENSORS}
    assert set(choose_files(forms)) == {part, "config.json", "1_Pooling/config.json", "checkpoint-10/config.json"}
    inside = {f"trained/{path}": form for path, form in forms.items()}
    assert choose_files(inside) == {name: f"trained/{name}" for name in choose_files(forms)}
    assert choose_files({"m.gguf": GGUF, "sub/model.safetensors": SAFETENSORS}) == {} == choose_files({"config.json": "", "a.bin": PYTORCH})
    assert list(choose_files({"model.safetensors": SAFETENSORS, part: SAFETENSORS, "a.safetensors": SAFETENSORS})) == ["model.safetensors"]
    assert set(choose_files({"model.bin": SAFETENSORS, "config.json": ""})) == {"model.bin", "config.json"}
    for wrong in ({"a/m.safetensors": "", "b/m.safetensors": ""}, {"m.gguf": GGUF, "m.safetensors": SAFETENSORS}):
        with pytest.raises(BadRequest):
            choose_files(wrong)


def test_a_trainers_folder_is_its_last_state(tmp_path: Path) -> None:
    """With everything that lies in it: earlier states with an index each, one of them cut, other forms and notes."""
    folder = tiny_llama(tmp_path / "trained", byte_level(), shards=2)
    want = made_of(folder)
    shutil.copytree(folder, tmp_path / "kept")
    for state in ("checkpoint-10", "checkpoint-20"):
        shutil.copytree(tmp_path / "kept", folder / state)
    (folder / "checkpoint-20" / "model-00002-of-00002.safetensors").unlink()
    (folder / "checkpoint-20" / "model-00001-of-00002.safetensors").write_bytes(b"cut")
    for name in ("optimizer.pt", "training_args.bin", "rng_state.pth", "gguf/model.gguf", "onnx/model.onnx", "original/params.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"GGUF" if name.endswith(".gguf") else b"PK\x03\x04")
    assert made_of(folder) == want
    # What an earlier number of parts left there, and the same in another form, is not named by the index.
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00001-of-00003.safetensors")
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.fp16-00001-of-00002.safetensors")
    (folder / "model.fp16.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model.fp16-00001-of-00002.safetensors"}}))
    assert made_of(folder) == want


def test_weights_under_another_name(llama: Path) -> None:
    want = made_of(llama)
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    assert made_of(llama) == want
    (llama / "pytorch_model.bin").rename(llama / "model.safetensors")
    (llama / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with pytest.raises(BadRequest, match=r"^model.safetensors is git's stand-in for the file"):
        made_of(llama)
