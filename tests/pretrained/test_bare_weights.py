"""Sampling from weights of transformers as others leave them: a folder without our config, and a
file alone with the architecture and the tokenizer from elsewhere. The ModernBERT diffusion model
adds the tokens of a chat to the tokenizer in memory, so that its weights have more rows than the
tokenizer.json of the base model has ids."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_masked_models import FAMILIES, V, error_of, publish, randomise, words

import checkpoint
from pretrained import published
from sample import chat_canvas
from tokenizer import HF, USER, encode_chat

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

CHAT = ["<BOS>", "<EOS>", "<START_ID>", "<END_ID>", "<EOT_ID>"]
SMALL = ["--device=cpu", "--num_samples=2", "--steps=3"]


def with_tokens(*names: str) -> HF:
    """The tokenizer of V ids with some more special tokens."""
    codec = words(V).codec
    codec.add_special_tokens(list(names))
    return HF(codec.to_str())


def base(folder: Path, name: str = "modernbert", tokenizer: HF | None = None) -> Path:
    """A masked language model as published, its tokenizer beside it."""
    tokenizer = tokenizer or words(V)
    publish(folder, name, tokenizer, vocab_size=tokenizer.vocab_size)
    return folder


def trained(folder: Path, where: Path, multiple: int | None = None) -> Any:
    """As the original trains: the tokens are added to the tokenizer in memory, the embedding grows
    with it, and accelerate.save_state leaves model.safetensors without the tied decoder."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens({"bos_token": "<BOS>", "eos_token": "<EOS>"})
    tokenizer.add_tokens(CHAT[2:], special_tokens=True)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer), multiple, mean_resizing=False)
    randomise(model.eval(), 1)
    ids = tokenizer.convert_tokens_to_ids(CHAT)
    where.mkdir()
    state = {k: v for k, v in model.state_dict().items() if k != "decoder.weight"}
    safetensors.save_file(state, where / "model.safetensors")
    return model, ids


def require_logits(got: checkpoint.Model, model: Any) -> None:
    """Those of all tokens, the added ones included."""
    rows = model.config.vocab_size
    ids = torch.randint(5, rows, (3, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        z = got.net.logits(got.net.features(ids))
        torch.testing.assert_close(z, model(ids).logits)


# ---- a folder ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("there", [0, 2, 5])
def test_rows_of_the_tokens_of_a_chat(tmp_path: Path, capsys: Any, name: str, there: int):
    """Three rows too many are <START_ID>, <END_ID> and <EOT_ID> if <BOS> and <EOS> are there: the
    added tokens are those that are lacking, in their documented order, and have probability."""
    tokenizer = with_tokens(*CHAT[:there])
    model = publish(tmp_path, name, tokenizer, vocab_size=V + 5)
    got = checkpoint.load(str(tmp_path))
    said = capsys.readouterr().out
    assert (f"the last {5 - there} of {V + 5} rows are read as" in said) == (there < 5)
    ids = got.tokenizer.codec.get_vocab(with_added_tokens=True)
    assert [ids[token] for token in CHAT] == [*range(V, V + 5)]
    assert got.meta["vocab_size"] == V + 5 and got.meta["specials"]["pad"] == V + 1
    require_logits(got, model)
    question = encode_chat(got.tokenizer, [(USER, "abc")], reply=True)
    assert question[0] == V and question.count(V + 4) == 1 and question[-1] == V + 3


@pytest.mark.parametrize("rows", [V, V + 4, V + 6, V + 24])
def test_other_numbers_of_rows_are_not_a_chat(tmp_path: Path, run_cli, assert_refused, rows: int):
    """Rows that are rounded up stay padding; a question to such a model is refused in a line."""
    publish(tmp_path, "modernbert", words(V), vocab_size=rows)
    got = checkpoint.load(str(tmp_path))
    assert got.tokenizer.vocab_size == V and "start" not in got.meta["specials"]
    if rows == V + 4:
        done = run_cli("sample.py", f"--ckpt={tmp_path}", "--chat", "--prompt=abc", *SMALL)
        assert_refused(done, "cannot write a chat")


def test_fewer_rows_than_ids(tmp_path: Path):
    publish(tmp_path, "modernbert", words(V, chat=True), vocab_size=V)
    message = error_of(checkpoint.load, str(tmp_path))
    assert f"has {V} tokens" in message and str(V + 5) in message


def test_a_run_begins_from_it(tmp_path: Path):
    """The corpus of such a run has the same ids; one without the added tokens is refused."""
    publish(tmp_path, "modernbert", words(V), vocab_size=V + 5)
    release = published.read(str(tmp_path))
    published.require_extension(release, words(V, chat=True), "x")
    message = error_of(published.require_extension, release, words(V), "x")
    assert f"x has {V + 5} tokens, the corpus {V}" in message


def test_places_of_the_canvas(tmp_path: Path):
    """512, as many as the model has if they are fewer, or as many as are asked for."""
    publish(tmp_path / "short", "modernbert", words(V, chat=True), vocab_size=V + 5)
    long = {"vocab_size": V + 5, "max_position_embeddings": 2048}
    publish(tmp_path / "long", "modernbert", words(V, chat=True), **long)

    def places(folder: str, **how: int) -> int:
        model = checkpoint.load(str(tmp_path / folder), **how)
        return len(chat_canvas(model, [(USER, "abc")]).ids)

    assert [places("short"), places("long")] == [62, 512]
    assert [places("long", seq_len=n) for n in (30, 700)] == [30, 700]
    assert "has 64 positions" in error_of(lambda: places("short", seq_len=65))


# ---- a file of weights and a model's name ------------------------------------------------------


def test_a_file_with_the_name_of_its_model(tmp_path: Path):
    """Weights of the file, not of the folder; ids of the tokens as transformers gives them."""
    folder = base(tmp_path / "base")
    model, ids = trained(folder, tmp_path / "checkpoint_4")
    assert ids == [*range(V, V + 5)]
    for where in ("checkpoint_4/model.safetensors", "checkpoint_4"):
        got = checkpoint.load(str(tmp_path / where), hf_model_name=str(folder), seq_len=20)
        require_logits(got, model)
        assert [got.tokenizer.specials[k] for k in ("bos", "eos", "start", "end", "eot")] == ids
        assert got.config.block_size == 20
    shutil.copytree(folder, tmp_path / "whole")
    shutil.copy(tmp_path / "checkpoint_4/model.safetensors", tmp_path / "whole")
    same = checkpoint.load(str(tmp_path / "whole"), seq_len=20)
    require_logits(same, model)


def test_rows_that_are_rounded_up(tmp_path: Path):
    """48 rows: with the tokens in the folder, 45 of them are ids. Without, it is not known."""
    folder = base(tmp_path / "base")
    model, _ = trained(folder, tmp_path / "run", 8)
    file = str(tmp_path / "run/model.safetensors")
    message = error_of(lambda: checkpoint.load(file, hf_model_name=str(folder)))
    assert f"rows for 48 tokens, the tokenizer of hf_model_name={folder} 40 ids, 45" in message
    text = words(V, chat=True).files["tokenizer.json"]
    (folder / "tokenizer.json").write_text(text)
    got = checkpoint.load(file, hf_model_name=str(folder))
    ids = torch.arange(V + 5)[None]
    with torch.no_grad():
        z = got.net.logits(got.net.features(ids))
        torch.testing.assert_close(z, model(ids).logits[..., : V + 5])


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_without_added_tokens(tmp_path: Path, name: str):
    """Those of the base model itself, with rows that are rounded up."""
    model = publish(tmp_path / "base", name, words(V), vocab_size=V + 24)
    shutil.copytree(tmp_path / "base", tmp_path / "other")
    (tmp_path / "other/model.safetensors").unlink()
    file = str(tmp_path / "base/model.safetensors")
    got = checkpoint.load(file, hf_model_name=str(tmp_path / "other"))
    with torch.no_grad():
        ids = torch.arange(5, V)[None]
        z = got.net.logits(got.net.features(ids))
        torch.testing.assert_close(z, model(ids).logits[..., :V])


@pytest.mark.parametrize(
    "chat", [pytest.param([], marks=pytest.mark.slow), ["--chat", "--prompt", "abc"]]
)
def test_the_original_command(tmp_path: Path, run_cli: Any, chat: list[str]):
    """inference.py's options, spelled as there; the samples are those of our own spelling."""
    folder = base(tmp_path / "base")
    trained(folder, tmp_path / "run")
    file = tmp_path / "run/model.safetensors"
    theirs = ["--safetensors_path", file, "--hf_model_name", folder, "--num_steps", 3]
    theirs += ["--seq_len", 30, "--sampler", "ancestral", "--device", "cpu", *chat]
    ours = [f"--ckpt={file}", f"--hf_model_name={folder}", "--steps=3", "--seq_len=30"]
    ours += ["--sampler=ancestral", "--device=cpu", *chat]
    done, again = (run_cli("sample.py", *argv) for argv in (theirs, ours))
    assert done.returncode == 0, done.stderr
    first, second = (d.stdout.rpartition("\n\n")[0] for d in (done, again))
    assert first == second and "by ancestral, 3.0 network calls" in done.stdout


def test_refused_in_one_line(tmp_path: Path, run_cli: Any, assert_refused: Any):
    folder = base(tmp_path / "base")
    trained(folder, tmp_path / "run")
    file = tmp_path / "run/model.safetensors"
    deep = publish(tmp_path / "deep", "modernbert", words(V), num_hidden_layers=5)
    assert deep.config.num_hidden_layers == 5
    fewer = base(tmp_path / "fewer", tokenizer=words(V - 2))
    (tmp_path / "none").mkdir()
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text("[]")

    def said(name: Any, source: Any = file) -> str:
        return error_of(lambda: checkpoint.load(str(source), hf_model_name=str(name)))

    counts = f"{file} has rows for {V + 5} tokens, the tokenizer of hf_model_name={fewer} {V - 2}"
    assert f"{counts} ids, {V + 3} with {' '.join(CHAT)}: name the folder" in said(fewer)
    assert "missing network.model.layers.4" in said(tmp_path / "deep")
    assert "config.json is missing" in said(tmp_path / "none")
    assert "the folder has no tokenizer.json" in said(tmp_path / "bare")
    assert "not of a transformers model" in said(tmp_path / "odd")
    assert "no checkpoint at" in said(folder, tmp_path / "gone.safetensors")
    assert "as a hub id" in said("no/such-model-here")
    assert "--hf_model_name=FOLDER" in error_of(checkpoint.load, str(file))
    assert f"name its folder, {folder}" in error_of(
        checkpoint.load, str(folder / "model.safetensors")
    )
    for theirs, ours in (("low_confidence", "confidence"), ("random", "ancestral")):
        done = run_cli("sample.py", f"--strategy={theirs}")
        assert_refused(done, f"write --sampler={ours} instead of --strategy={theirs}")


def test_a_model_of_ours_has_a_length_of_its_own(tmp_path: Path, tiny_model: Any):
    checkpoint.export(tiny_model, tmp_path)
    message = error_of(lambda: checkpoint.load(str(tmp_path), seq_len=30))
    assert "has a block_size of its own" in message and "--max_length" in message
    assert json.loads((tmp_path / "config.json").read_text())["anyorder"]
