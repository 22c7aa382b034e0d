"""GGUF files of causal models. The file here is a small random Llama, written by the package gguf
as llama.cpp's converter does; the real one is in tests/models."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_causal_models import begin, error_of, letters, theirs, tokens, words  # noqa: F401

import checkpoint
from corpus import CorpusWriter
from evaluate import Judge
from pretrained import gguf as ours
from pretrained import published
from tokenizer import HF

V = 40
NAMES = {  # of llama.cpp -> of transformers, in each block
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LETTERS = [chr(97 + i) for i in range(26)] + [chr(65 + i) for i in range(11)]
TOKENS = ["<|endoftext|>", *LETTERS, "cd", "ab"]


@pytest.fixture(scope="module")
def package() -> Any:
    pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate")
    return pytest.importorskip("gguf", reason="GGUF files need the package gguf")


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key matrix as llama.cpp has them, whose rotary pairs are neighbours."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


def write(package: Any, path: Path, tied: bool = True, drop: str = "", kind: Any = None) -> Any:
    """A random Llama in a GGUF file; kind: of its matrices, by default float32."""
    # quantized rows are of 32 numbers
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    model = theirs("llama", tie_word_embeddings=tied, **sizes)
    cfg, state = model.config, model.state_dict()
    out = package.GGUFWriter(path, "llama")
    out.add_name("random")
    out.add_context_length(cfg.max_position_embeddings)
    out.add_embedding_length(cfg.hidden_size)
    out.add_block_count(cfg.num_hidden_layers)
    out.add_feed_forward_length(cfg.intermediate_size)
    out.add_head_count(cfg.num_attention_heads)
    out.add_head_count_kv(cfg.num_key_value_heads)
    out.add_key_length(cfg.head_dim)
    out.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(V)
    out.add_tokenizer_model("gpt2")
    out.add_token_list(TOKENS)
    out.add_token_types([3] + [1] * (V - 1))
    out.add_token_merges(["a b", "c d"])  # of one, transformers 5.1 makes no list
    out.add_bos_token_id(0)
    out.add_eos_token_id(0)
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    tensors |= {} if tied else {"output": "lm_head"}
    for i in range(cfg.num_hidden_layers):
        tensors |= {f"blk.{i}.{a}": f"model.layers.{i}.{b}" for a, b in NAMES.items()}
    heads = {"attn_q": cfg.num_attention_heads, "attn_k": cfg.num_key_value_heads}
    for theirs_name, name in tensors.items():
        value = state[f"{name}.weight"]
        if count := heads.get(theirs_name.rpartition(".")[2]):
            value = interleaved(value, count)
        if theirs_name == drop:
            continue
        data, how = value.numpy(), {}
        if kind is not None and value.ndim == 2:
            data, how = package.quants.quantize(data, kind), {"raw_dtype": kind}
        out.add_tensor(f"{theirs_name}.weight", data, **how)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return model


@torch.no_grad()
def logits(model: checkpoint.Model) -> torch.Tensor:
    return model.net.logits(model.net.features(tokens()))


@pytest.mark.parametrize("tied", [True, False])
def test_logits(tmp_path: Path, package: Any, tied: bool):
    """Those of the model that was written; the tokenizer is that of the file."""
    model = write(package, tmp_path / "random.gguf", tied)
    got = checkpoint.load(str(tmp_path / "random.gguf"))
    with torch.no_grad():
        torch.testing.assert_close(logits(got), model(tokens()).logits, rtol=0, atol=1e-5)
    assert got.tokenizer.vocab_size == V and got.tokenizer.encode("cab") == [3, V - 1]
    assert got.config.objective == "ar" and "quant" not in got.config.backbone


def test_quantized(tmp_path: Path, package: Any):
    """As transformers reads the same file, and not as before the quantization."""
    path = tmp_path / "random.gguf"
    model = write(package, path, kind=package.GGMLQuantizationType.Q8_0)
    transformers = pytest.importorskip("transformers")
    same = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    ).eval()
    got = logits(checkpoint.load(str(path)))
    with torch.no_grad():
        torch.testing.assert_close(got, same(tokens()).logits, rtol=0, atol=1e-5)
        assert 1e-3 < (got - model(tokens()).logits).abs().max() < 0.5


def test_init_from(tmp_path: Path, package: Any, letters: Path, helpers: Any):  # noqa: F811
    """On a corpus with its tokenizer: the same logits from left to right, and all places see each
    other where the model is made to write in any order."""
    path = tmp_path / "random.gguf"
    model = write(package, path)
    tokenizer = HF.create(str(path), chat=False)
    with CorpusWriter(tmp_path / "data/abc", tokenizer, source="test") as out:
        for split in ("train", "val"):
            for word in ("abcab", "cabba", "bacca", "abbac"):
                out.row(split, tokenizer.encode(word), prompt=0)
    more = {"data_dir": tmp_path / "data", "out": tmp_path / "run", "dataset": "abc"}
    job = begin(helpers=helpers, init_from=path, **more)
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(tokens()))
        torch.testing.assert_close(z, model(tokens()).logits, rtol=0, atol=1e-5)
    job = begin(helpers=helpers, init_from=path, objective="masked", **more)
    assert not job.net.causal and job.net.vocab_size == V + 1  # MASK
    other = json.loads(letters.joinpath("tiny/meta.json").read_text())["vocab_size"]
    assert other == V
    message = error_of(
        begin, data_dir=letters, out=tmp_path / "o", helpers=helpers, init_from=path, dataset="tiny"
    )
    assert "prepare it with the tokenizer of that model" in message


def test_converted(tmp_path: Path, package: Any, run_cli: Any):
    """A folder that transformers, --init_from and --ckpt read, with the tokenizer."""
    write(package, tmp_path / "random.gguf")
    done = run_cli(
        "pretrained.causal", f"--gguf={tmp_path / 'random.gguf'}", f"--out={tmp_path / 'hf'}"
    )
    assert done.returncode == 0, done.stderr
    a, b = (checkpoint.load(str(tmp_path / name)) for name in ("random.gguf", "hf"))
    assert torch.equal(logits(a), logits(b)) and a.tokenizer.spec() == b.tokenizer.spec()
    assert a.config.backbone == b.config.backbone
    assert "quantization_config" not in json.loads((tmp_path / "hf/config.json").read_text())
    transformers = pytest.importorskip("transformers")
    same = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(b), same(tokens()).logits, rtol=0, atol=1e-5)


def test_command(tmp_path: Path, package: Any, run_cli: Any, assert_refused: Any):
    """sample.py writes text with it; a folder that holds such a file is refused with its name."""
    write(package, tmp_path / "random.gguf")
    done = run_cli("sample.py", f"--ckpt={tmp_path / 'random.gguf'}", "--max_length=5")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    done = run_cli("sample.py", f"--ckpt={tmp_path}")
    assert_refused(done, "name the file", "random.gguf")


def test_judge(tmp_path: Path, package: Any):
    """The nats of all tokens but the first, by the model that was written."""
    model = write(package, tmp_path / "random.gguf")
    judge = Judge(str(tmp_path / "random.gguf"), torch.device("cpu"))
    ids = judge.encode([("cabba", False)])
    assert ids == [3, V - 1, 2, 1]
    cost, count = judge.nats([ids])
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    want = -logp[torch.arange(3), torch.tensor(ids[1:])].sum()
    assert count.tolist() == [3] and abs(float(cost[0]) - float(want)) < 1e-4


# ---- what is refused, in one line --------------------------------------------------------------


def test_missing_tensor(tmp_path: Path, package: Any):
    """transformers itself would make it up."""
    write(package, tmp_path / "random.gguf", drop="blk.1.ffn_up")
    message = error_of(checkpoint.load, str(tmp_path / "random.gguf"))
    assert "lacks 1 weights, model.layers.1.mlp.up_proj.weight" in message


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs", b"PK\x03\x04 and so on"])
def test_other_files(tmp_path: Path, content: bytes):
    (tmp_path / "a.gguf").write_bytes(content)
    for action in (checkpoint.load, published.read, HF.create):
        assert "no GGUF file" in error_of(action, str(tmp_path / "a.gguf"))


def test_damaged_file(tmp_path: Path, package: Any):
    write(package, tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    for cut in (6, 400, len(whole) - 100):
        (tmp_path / "a.gguf").write_bytes(whole[:cut])
        assert "could not be read" in error_of(checkpoint.load, str(tmp_path / "a.gguf"))


def test_absent_file(tmp_path: Path):
    assert "no checkpoint at" in error_of(checkpoint.load, str(tmp_path / "a.gguf"))
    assert "no file" in error_of(HF.create, str(tmp_path / "a.gguf"))


@pytest.mark.parametrize("package_name", ["gguf", "accelerate"])
def test_without_the_packages(tmp_path: Path, monkeypatch: Any, package_name: str):
    for other in {"gguf", "accelerate"} - {package_name}:
        monkeypatch.setitem(sys.modules, other, sys)
    monkeypatch.setitem(sys.modules, package_name, None)
    (tmp_path / "a.gguf").write_bytes(ours.MAGIC)
    message = error_of(published.read, str(tmp_path / "a.gguf"))
    assert message == f"{package_name} is not installed: pip install {package_name}"
