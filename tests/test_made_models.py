"""Checkpoints sent to `create` and run by the real engine: its tokens are the tokenizer's, its answers those of the weights."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
from gguf.quants import dequantize
from tokenizers import Tokenizer, pre_tokenizers

from checkpoints import LLAMA3, byte_level, read_safetensors, sentence_pieces, sources, split, tiny_bert, tiny_llama, write_safetensors
from ndani import names
from ndani.store import Store
from ndani.store.gguf import read_header
from server import Server, serving
from stores import REAL, put_echo

pytestmark = pytest.mark.slow

SAID = [
    "The quick brown fox, isn't it? 12345 foxes!",
    "Wörter wie naïve und 東京 🦊; don't   forget\n\n  spaces\tand tabs.",
    "def main():\n    return {'a': [2, 3]}  ",
    "we'll see you're RIGHT x1y22z333",
]
TOKENIZERS = {
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "llama-bpe": lambda: byte_level(split(LLAMA3)),
    "qwen2": lambda: byte_level(split(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"))),
    "default": sentence_pieces,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("made")
    with serving(folder, folder / "models", NDANI_OFFLINE="1") as started:
        started.http.timeout = httpx.Timeout(300)
        yield started


def upload_all(server: Server, folder: Path) -> dict[str, str]:
    """Every file of a folder, as blobs; their digests by name."""
    return {name: server.upload(path.read_bytes()) for name, path in sources(folder).items()}


def create(server: Server, name: str, folder: Path) -> list[dict[str, Any]]:
    steps = server.lines("/api/create", {"model": name, "files": upload_all(server, folder)})
    assert steps[-1] == {"status": "success"}, steps[-1]
    return steps


def tokens(server: Server, model: str, text: str) -> list[int]:
    """What the engine made of a text: the ids of its context, without the one that it answered."""
    options = {"num_predict": 1, "temperature": 0, "num_ctx": 256}
    answer = server.ask("/api/generate", {"model": model, "prompt": text, "options": options})
    return list(answer["context"][: answer["prompt_eval_count"]])


@pytest.mark.parametrize("pre", TOKENIZERS)
def test_the_engine_reads_the_tokens_of_the_tokenizer(server: Server, tmp_path: Path, pre: str) -> None:
    tokenizer: Tokenizer = TOKENIZERS[pre]()
    special = {"bos_token_id": 1, "eos_token_id": 2} if pre == "default" else {}
    folder = tiny_llama(tmp_path / "checkpoint", tokenizer, **special)
    if pre == "llama-bpe":  # the engine puts a beginning before it unless the file says otherwise
        (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    create(server, pre, folder)
    info = server.post("/api/show", {"model": pre}).json()["model_info"]
    assert info["tokenizer.ggml.pre"] == pre
    for text in SAID:
        assert tokens(server, pre, text) == tokenizer.encode(text).ids, text
    server.post("/api/generate", {"model": pre, "keep_alive": 0})


def test_a_bert_of_random_numbers_embeds(server: Server, tmp_path: Path) -> None:
    steps = create(server, "random-bert", tiny_bert(tmp_path))
    assert steps[0]["status"] == "converting model"
    assert steps[0]["total"] >= steps[0]["completed"]
    assert any(step["status"].startswith("creating new layer sha256:") for step in steps)
    answer = server.post("/api/embed", {"model": "random-bert", "input": ["hello worlds", "a b"]}).json()
    assert [len(vector) for vector in answer["embeddings"]] == [32, 32]
    assert answer["prompt_eval_count"] == 5 + 4


def test_a_bert_with_capital_letters_reads_them(server: Server, tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "Hello", "##s", "naïve", "naive", "##c"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    pairs = {}
    for cased in (False, True):
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not cased}))
        create(server, f"cased-{cased}".lower(), folder)
        body = {"model": f"cased-{cased}".lower(), "input": ["hello", "Hello", "naïve", "naive"]}
        made = server.post("/api/embed", body).json()["embeddings"]
        pairs[cased] = made[0] == made[1], made[2] == made[3]
    assert pairs == {False: (True, True), True: (False, False)}


def blobs(server: Server) -> set[str]:
    return {path.name for path in (server.models / "blobs").iterdir()}


def test_the_server_itself_loads_no_numpy(server: Server, tmp_path: Path) -> None:
    """What is converted is read in the worker: nothing that could read it is in the process that everybody asks."""
    create(server, "elsewhere", tiny_bert(tmp_path))
    maps = Path(f"/proc/{server.pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not say what a process has loaded")
    if os.geteuid() != 0:
        pytest.skip("the server is closed to others of its user: only root sees what it has loaded")
    assert "msgspec" in maps.read_text()
    assert "numpy" not in maps.read_text()


def test_it_is_converted_and_quantised_in_one_go(server: Server, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, byte_level(), width=256)
    digests, before = upload_all(server, folder), blobs(server)
    steps = server.lines("/api/create", {"model": "small", "files": digests, "quantize": "q4_K_M"})
    assert steps[-1] == {"status": "success"}, steps[-1]
    said = list(dict.fromkeys(step["status"].partition(":")[0] for step in steps))
    assert said[:4] == ["converting model", "verifying conversion", "parsing GGUF", "quantizing F16 model to Q4_K_M"]
    assert server.post("/api/show", {"model": "small"}).json()["details"]["quantization_level"] == "Q4_K_M"
    entry = Store(server.models).find(names.parse("small"))
    assert blobs(server) - before == {digest.replace(":", "-") for digest in entry.digests}, "the form between is gone"
    assert len(tokens(server, "small", "The quick brown fox")) > 1
    server.post("/api/generate", {"model": "small", "keep_alive": 0})


def test_what_is_found_wrong_late_leaves_nothing(server: Server, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "l", byte_level())
    digests = upload_all(server, folder)
    weights = read_safetensors(folder / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], np.inf)
    write_safetensors(tmp_path / "worse" / "model.safetensors", weights)
    late = digests | upload_all(server, tmp_path / "worse")
    before = blobs(server)
    for body, begins in [
        ({"files": late}, "the tensor output_norm.weight has numbers that are infinite or none"),
        (
            {"files": digests, "quantize": "q4_0", "adapters": {"a.gguf": digests["config.json"]}},
            "supplied file was not in GGUF format: a.gguf",
        ),
        ({"files": digests, "adapters": {"a.gguf": digests["config.json"]}}, "supplied file was not in GGUF format: a.gguf"),
        ({"files": digests | {f"{'x' * 90}{n}.json": digests["config.json"] for n in range(900)}}, "these are 903 files, which is more"),
        (
            {"files": digests | {f"{chr(0x1F600) * 110}{n}.json": digests["config.json"] for n in range(150)}},
            "these are 153 files, which is more",
        ),
    ]:
        answer = server.post("/api/create", {"model": "late", **body}).text.splitlines()[-1]
        assert json.loads(answer)["error"].startswith(begins), answer
        assert blobs(server) == before


def test_names_say_nothing(server: Server, tmp_path: Path) -> None:
    """A checkpoint's weights called `.bin`, with an earlier state and other forms beside them; a GGUF file of any name."""
    folder = tiny_bert(tmp_path)
    create(server, "right", folder)
    digests = upload_all(server, folder)
    noise = {"optimizer.pt": b"PK\x03\x04", "checkpoint-10/model.safetensors": b"earlier", "gguf/m.gguf": b"GGUF"}
    for name, content in noise.items():
        digests[name] = server.upload(content)
    digests["pytorch_model.bin"] = digests.pop("model.safetensors")
    store = Store(server.models)
    right = store.find(names.parse("right")).weights.digest
    for name, files in {"noisy": digests, "inside": {f"deep/{path}": digest for path, digest in digests.items()}}.items():
        assert server.post("/api/create", {"model": name, "files": files, "stream": False}).json() == {"status": "success"}
        assert store.find(names.parse(name)).weights.digest == right
    for path in ("ggml-model-q4_0.bin", "model.pth", "model.safetensors", "sub/x"):
        body = {"model": "named", "files": {path: right, "sub/deeper/model.safetensors": digests["pytorch_model.bin"]}, "stream": False}
        assert server.post("/api/create", body).json() == {"status": "success"}
        assert store.find(names.parse("named")).weights.digest == right


def test_an_engine_without_vectors_says_so(server: Server) -> None:
    put_echo(server.models, "echo")
    answer = server.post("/api/embed", {"model": "echo", "input": "x"})
    assert (answer.status_code, answer.json()["error"]) == (400, '"echo:latest" does not support embeddings')


def test_what_cannot_be_made_is_said_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    digests = upload_all(server, tiny_bert(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    (other / "m.gguf").write_bytes(b"GGUF")
    (other / "pytorch_model.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    unlike = upload_all(server, other)
    before = sorted(path.name for path in (server.models / "blobs").iterdir())
    for files, begins in [
        (digests | {"config.json": unlike["config.json"]}, 'unsupported architecture "MambaForCausalLM"'),
        ({"model.safetensors": digests["model.safetensors"]}, "there is no config.json beside the weights"),
        (digests | {"model.safetensors": digests["config.json"]}, "model.safetensors is not a safetensors file"),
        (digests | {"config.json": f"sha256:{'1' * 64}"}, "the file config.json (sha256:1111"),
        (digests | {"../config.json": digests["config.json"]}, "file path must be relative"),
        (digests | {"config.json": "sha256:1"}, "invalid digest format"),
        (digests | {"m.gguf": unlike["m.gguf"]}, "there are safetensors and another model"),
        ({"pytorch_model.bin": unlike["pytorch_model.bin"]}, "only safetensors and GGUF files"),
    ]:
        answer = server.post("/api/create", {"model": "wrong", "files": files})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith(begins), answer.text
        assert str(server.models) not in answer.text
    assert sorted(path.name for path in (server.models / "blobs").iterdir()) == before
    assert "wrong:latest" not in {model["name"] for model in server.http.get("/api/tags").json()["models"]}


# SmolLM2 from its own numbers: unpacked, written as its publishers write it, and converted back.

BLOCKS = 2  # of its 30: what is looked at is the same in each

THEIRS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class File:
    """A GGUF file of few types, read by its head: the gguf library takes seconds for a vocabulary. Numbers are bytes, row by row."""

    keys: dict[str, Any]
    tensors: dict[str, tuple[str, Any]]

    @classmethod
    def read(cls, path: Path) -> File:
        head = read_header(path, verbose=True)
        widths = {one.name: one.shape[0] * WIDTHS[one.type][0] // WIDTHS[one.type][1] for one in head.tensors}
        sizes = {one.name: widths[one.name] * math.prod(one.shape[1:]) for one in head.tensors}
        raw = np.fromfile(path, np.uint8)
        at, found = len(raw) - sum(size + -size % 32 for size in sizes.values()), {}
        for one in head.tensors:
            found[one.name] = one.type, raw[at : at + sizes[one.name]].reshape(-1, widths[one.name])
            at += sizes[one.name] + -sizes[one.name] % 32
        return cls(head.metadata, found)


#: Bytes for so many numbers.
WIDTHS = {"F32": (4, 1), "F16": (2, 1), "Q4_1": (20, 32), "Q8_0": (34, 32)}


def unpack(source: Path, checkpoint: Path, target: Path) -> None:
    """The first blocks of a GGUF file as F16: as a checkpoint, and as a GGUF file written by the gguf library."""
    file = File.read(source)
    keys = file.keys | {"llama.block_count": BLOCKS, "general.file_type": 1}
    writer = gguf.GGUFWriter(target, "llama")
    for name, value in keys.items():
        if name != "general.architecture":
            writer.add_key_value(name, value, *_types(value))
    tensors = {}
    for name, (kind, raw) in file.tensors.items():
        if name.startswith("blk.") and int(name.split(".")[1]) >= BLOCKS:
            continue
        plain = kind == "F32"
        numbers = raw.reshape(-1).view(np.float32) if plain else dequantize(raw, gguf.GGMLQuantizationType[kind]).astype(np.float16)
        writer.add_tensor(name, numbers)
        stem, _, end = name.rpartition(".")
        if stem.endswith(("attn_q", "attn_k")):
            heads = keys["llama.attention.head_count" + ("_kv" if stem.endswith("k") else "")]
            numbers = np.ascontiguousarray(numbers.reshape(heads, -1, 2, numbers.shape[1]).swapaxes(1, 2).reshape(numbers.shape))
        tensors[f"{_theirs(stem)}.{end}"] = numbers
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_safetensors(checkpoint / "model.safetensors", tensors, format="pt")
    describe(checkpoint, keys)


def _types(value: Any) -> list[Any]:
    kinds = gguf.GGUFValueType
    if isinstance(value, list):
        return [kinds.ARRAY, kinds.get_type(value[0])]
    return [kinds.UINT32 if isinstance(value, int) and not isinstance(value, bool) else kinds.get_type(value)]


def _theirs(stem: str) -> str:
    if not stem.startswith("blk."):
        return {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[stem]
    _, number, ours = stem.split(".")
    return f"model.layers.{number}.{THEIRS[ours]}"


def describe(folder: Path, keys: dict[str, Any]) -> None:
    """The files beside the weights, as a publisher writes them."""
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": keys["llama.embedding_length"],
        "intermediate_size": keys["llama.feed_forward_length"], "max_position_embeddings": keys["llama.context_length"],
        "num_attention_heads": keys["llama.attention.head_count"], "num_hidden_layers": BLOCKS,
        "num_key_value_heads": keys["llama.attention.head_count_kv"], "rms_norm_eps": keys["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": keys["llama.rope.freq_base"], "tie_word_embeddings": True, "vocab_size": len(tokens),
    }  # fmt: skip
    added = [{"id": n, "content": tokens[n], "special": True} for n, kind in enumerate(types) if kind == 3]
    steps = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]
    tokenizer = {
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {"type": "BPE", "vocab": {token: n for n, token in enumerate(tokens)}, "merges": keys["tokenizer.ggml.merges"]},
    }
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    said = {f"{role}_token": tokens[keys[f"tokenizer.ggml.{ours}_token_id"]] for role, ours in special.items()}
    said |= {"add_prefix_space": False, "chat_template": keys["tokenizer.chat_template"]}
    for name, content in {"config.json": config, "tokenizer.json": tokenizer, "tokenizer_config.json": said}.items():
        (folder / name).write_text(json.dumps(content))


@pytest.mark.weights
def test_smollm2_comes_back_the_same(server: Server, tmp_path: Path, models: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "gguf").mkdir()
    unpack(Store(models).find(names.parse(REAL)).weights_path, tmp_path / "checkpoint", tmp_path / "gguf" / "smol.gguf")
    create(server, "there", tmp_path / "gguf")
    create(server, "back", tmp_path / "checkpoint")
    there, back = (File.read(Store(server.models).find(names.parse(name)).weights_path) for name in ("there", "back"))
    assert there.tensors.keys() == back.tensors.keys()
    assert len(back.tensors) == 2 + 9 * BLOCKS
    for name, (kind, raw) in back.tensors.items():
        same, theirs = there.tensors[name]
        assert kind == same, name
        assert (raw == theirs).all(), name
    told = [name for name in there.keys if name.startswith(("llama.", "tokenizer.", "general.arch", "general.file"))]
    assert len(told) > 15
    assert {name: back.keys.get(name) for name in told} == {name: there.keys[name] for name in told}
    options = {"temperature": 0, "num_predict": 16, "seed": 1, "num_ctx": 256}
    chat = {"messages": [{"role": "user", "content": "Name three colours, please."}], "options": options}
    ask = {"prompt": "Name three colours, please.", "options": options}
    answers = [server.ask("/api/generate", {"model": name, **ask}) for name in ("there", "back")]
    assert answers[0]["context"] == answers[1]["context"]
    assert len(answers[0]["context"]) > answers[0]["prompt_eval_count"]
    assert len({server.ask("/api/chat", {"model": name, **chat})["message"]["content"] for name in ("there", "back")}) == 1
