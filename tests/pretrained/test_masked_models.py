"""Masked language models of transformers as the network; published weights of theirs and of MDLM.

Everything is built here from small random configurations: nothing is fetched.
"""

import contextlib
import io
import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from padded import outcome
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
import train
from checkpoint import build_network, build_objective
from configurator import Config, UserError, load
from model import Transformer
from objective import SampleOptions
from pretrained import published
from pretrained.masked import MaskedLM
from sample import canvas, generate
from tokenizer import HF

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

V = 40
COMMON = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
COMMON |= {"intermediate_size": 20, "max_position_embeddings": 64}
IDS = {f"{name}_token_id": i for i, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
FAMILIES = {
    "modernbert": COMMON | IDS | {"num_hidden_layers": 4, "local_attention": 6},
    "bert": COMMON | {"hidden_dropout_prob": 0.1},
    "roberta": COMMON | {"pad_token_id": 1, "max_position_embeddings": 66},
    "distilbert": {"vocab_size": V, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20}
    | {"max_position_embeddings": 64},
}
META = {"vocab_size": V, "specials": {"mask": V - 1}}
TINY = {"backbone": "modernbert-tiny", "objective": "masked"}


@pytest.fixture(autouse=True, scope="module")
def small_tiny():
    """modernbert-tiny, tinier."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"hidden_size": 16, "intermediate_size": 12, "num_attention_heads": 2}
        patch.setattr(published, "TINY", published.TINY | sizes | {"num_hidden_layers": 2})
        yield


def error_of(action: Any, *arguments: Any) -> str:
    """The line that refuses."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def randomise(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.2)
    return net


def theirs(name: str, **more: Any) -> Any:
    """A random model of transformers' own, in evaluation mode."""
    config = transformers.AutoConfig.for_model(name, **FAMILIES[name] | more)
    return randomise(transformers.AutoModelForMaskedLM.from_config(config)).eval()


def config_of(name: str, **more: Any) -> Config:
    text = published.backbone_json({"model_type": name, **FAMILIES[name]}, V)
    return Config(**{"objective": "masked", "time_input": False, "backbone": text, **more})


def ours(name: str, **more: Any) -> MaskedLM:
    cfg = config_of(name, **more)
    return randomise(build_network(cfg, build_objective(cfg, META))).eval()


def tokens(B: int = 3, T: int = 30, seed: int = 1) -> Tensor:
    return torch.randint(5, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def pair(request: Any) -> tuple[Any, MaskedLM]:
    """The same weights in their class and in ours."""
    model, net = theirs(request.param), ours(request.param)
    state = {published.BACKBONE + k: v for k, v in model.state_dict().items()}
    checkpoint.load_weights(net, state, request.param)
    return model, net


# ---- the interface of our own network ----------------------------------------------------------


@torch.no_grad()
def test_logits(pair: tuple[Any, MaskedLM]):
    """Those of the model itself, without and with padding, whose ids are then without effect."""
    model, net = pair
    ids, seen = tokens(), torch.arange(30) < torch.tensor([30, 17, 9])[:, None]
    torch.testing.assert_close(net.logits(net.features(ids)), model(ids).logits)
    want = model(ids, attention_mask=seen.long()).logits
    for mask in (seen[:, None], seen[:, None] & seen[:, :, None]):
        for text in (ids, torch.where(seen, ids, 7)):
            z = net.logits(net.features(text, mask=mask))
            assert z.isfinite().all()
            torch.testing.assert_close(z[seen], want[seen], rtol=0, atol=1e-5)
    assert (want - model(ids).logits)[1, :17].abs().max() > 1e-3  # padding matters


@torch.no_grad()
def test_features_leave_out_the_vocabulary(pair: tuple[Any, MaskedLM]):
    """No product with the output layer happens; one call is one call of `norm`."""
    _, net = pair
    calls = []
    net.norm.register_forward_hook(lambda m, i, out: calls.append(out))
    with FlopCounterMode(display=False) as counted:
        h = net.features(tokens())
    assert len(calls) == 1 and torch.equal(calls[0], h) and h.shape == (3, 30, net.n_embd)
    wide = replace_vocab(net, 50_000)
    with FlopCounterMode(display=False) as again:
        wide.features(tokens())
    assert again.get_total_flops() == counted.get_total_flops()


def replace_vocab(net: MaskedLM, rows: int) -> MaskedLM:
    text = published.backbone_json(net.network.config.to_dict(), rows)
    cfg = Config(objective="masked", time_input=False, backbone=text)
    return build_network(cfg, build_objective(cfg, {"vocab_size": rows, "specials": {"mask": 0}}))


def test_members(pair: tuple[Any, MaskedLM]):
    model, net = pair
    assert not net.causal and net.time is None and net.vocab_size == V
    assert len(net.blocks) == net.n_layer == model.config.num_hidden_layers
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in model.parameters())
    assert {p.ndim for p in net.matrices()} == {2}
    inside = {id(p) for p in net.blocks.parameters()}
    assert inside >= {id(p) for p in net.matrices()} and len(net.matrices()) >= 4 * net.n_layer
    assert net.network.get_input_embeddings().weight is net.head.weight  # still tied
    with FlopCounterMode(display=False) as counted:
        h = net.features(tokens(1, 32))
        net.logits(h).sum().backward()
    # old versions of transformers compute rotary angles by a product, which is none of a weight
    parts = counted.get_flop_counts().items()
    angles = sum(sum(ops.values()) for part, ops in parts if part.endswith("rotary_emb"))
    flops = counted.get_total_flops() - angles
    assert flops / 32 == net.flops_per_token(0)  # it leaves attention out
    scores = net.flops_per_token(32) - net.flops_per_token(0)
    assert scores == 3 * 2 * 2 * 32 * net.n_embd * net.n_layer  # Q K' and A V, forward and backward


@torch.no_grad()
def test_positions_and_windows():
    """Two copies of a text, each with its own positions and blind to the other, are two texts; and
    a local layer sees three tokens to each side, whatever the mask."""
    net, ids = ours("modernbert"), tokens(2, 20)
    twice, places = ids.repeat(1, 2), torch.arange(20).repeat(1, 2)
    half = torch.arange(40) // 20
    h = net.features(twice, mask=(half[:, None] == half)[None], positions=places)
    torch.testing.assert_close(h, net.features(ids).repeat(1, 2, 1))
    assert torch.equal(h, net.features(twice, mask=half[:, None] == half, positions=places))
    everything = net.features(ids, mask=torch.ones(20, 20, dtype=torch.bool))
    torch.testing.assert_close(everything, net.features(ids))
    torch.testing.assert_close(net.features(ids, positions=places[:, :20] + 9), net.features(ids))
    local = ours("modernbert")
    for block in local.blocks:
        block.attention_type = "sliding_attention"
        block.attn.sliding_window = 4
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1 - 5) % (V - 5) + 5
    moved = (local.features(ids) - local.features(other)).abs().amax((0, 2)) > 1e-6
    assert moved[:13].all() and not moved[13:].any()  # four layers of three


@torch.no_grad()
def test_roberta_counts_positions_by_place():
    """Its own code numbers by the ids: a token that it calls padding would move all that follow."""
    net, ids = ours("roberta"), tokens()
    other = ids.clone()
    other[:, 4] = 1
    net.network.get_input_embeddings().weight[1] = net.network.get_input_embeddings().weight[7]
    same = ids.clone()
    same[:, 4] = 7
    torch.testing.assert_close(net.features(other), net.features(same))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_id_learns(name: str):
    """Also those that the model calls padding."""
    net = ours(name)
    net.head.weight = torch.nn.Parameter(net.head.weight.detach().clone())  # untie: inputs only
    net.features(torch.arange(V)[None]).sum().backward()
    grad = net.network.get_input_embeddings().weight.grad
    assert (grad.abs().sum(1) > 0).all()


def test_too_many_positions():
    assert "backbone has 64" in error_of(ours("bert").features, tokens(1, 65))
    net = ours("roberta")
    assert net.features(tokens(1, 64)).shape[1] == 64
    assert "backbone has 64" in error_of(net.features, tokens(1, 65))
    assert "backbone has 64" in error_of(
        lambda: net.features(tokens(1, 2), positions=tokens(1, 2) + 64)
    )
    assert "block_size=65" in error_of(lambda: ours("modernbert", block_size=65))


@torch.no_grad()
def test_output_layer_without_bias():
    text = published.backbone_json({"model_type": "modernbert", **FAMILIES["modernbert"]}, V)
    cfg = config_of("modernbert", backbone=json.dumps(json.loads(text) | {"decoder_bias": False}))
    objective = build_objective(cfg, META)
    net = randomise(build_network(cfg, objective)).eval()
    assert net.head.bias.shape == (V,) and not net.head.bias.any()
    assert not any("decoder.bias" in k for k in net.state_dict())
    h = net.features(tokens())
    torch.testing.assert_close(net.logits(h), h @ net.head.weight.t())


@torch.no_grad()
def test_bfloat16(pair: tuple[Any, MaskedLM]):
    """Features are float32, close to the exact ones, also under a mask that is added."""
    _, net = pair
    ids, mask = tokens(), torch.ones(30, 30, dtype=torch.bool).tril(9)
    want = net.features(ids, mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        h = net.features(ids, mask=mask)
    assert h.dtype == torch.float32 and 0 < (h - want).abs().max() < 0.05 * want.abs().max()


@pytest.mark.parametrize(
    "sizes, count", [((768, 1152, 22, 12), 149_655_232), ((1024, 2624, 28, 16), 395_881_664)]
)
def test_published_sizes(sizes: tuple[int, ...], count: int):
    """Parameters of ModernBERT-base and -large, without allocating any."""
    keys = "hidden_size intermediate_size num_hidden_layers num_attention_heads".split()
    options = {"model_type": "modernbert", **dict(zip(keys, sizes, strict=True))}
    cfg = replace(config_of("modernbert"), backbone=published.backbone_json(options, 50368))
    meta = {"vocab_size": 50368, "specials": {"mask": 50284}}
    with torch.device("meta"):
        net = build_network(cfg, build_objective(cfg, meta))
    assert sum(p.numel() for p in net.parameters()) == count
    assert (net.window, net.longest) == (64, 8192)


# ---- what a run may ask for --------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, words",
    [
        ({"time_input": True}, "--time_input=False"),
        ({"objective": "bd3", "block_length": 4}, "bd3"),
        ({"backbone": "{}"}, "model_type"),
        ({"backbone": '{"model_type": "nothing"}'}, "nothing"),
        ({"backbone": '{"model_type": "bert", "hidden_size": 5}'}, "hidden size"),
        ({"backbone": "{"}, "JSON"),
        ({"backbone": "no/such/thing/here"}, "no/such/thing/here"),
    ],
)
def test_refused(more: dict, words: str):
    def build() -> None:
        cfg = config_of("bert", **more)
        text = published.resolve_backbone(cfg.backbone, V, {})
        cfg = replace(cfg, backbone=text)
        build_network(cfg, build_objective(cfg, META))

    assert words in error_of(build)


@pytest.mark.parametrize("name", FAMILIES)
def test_json_of_a_backbone(name: str):
    """Canonical: once more changes nothing; and its dropout is that of the run, none by default."""
    text = config_of(name).backbone
    assert published.resolve_backbone(text, V, {}) == text
    cfg = config_of(name, dropout=0.25)
    net = build_network(cfg, build_objective(cfg, META))
    assert not torch.equal(*(net.train().features(tokens()) for _ in range(2)))
    still = ours(name).train()
    assert torch.equal(*(still.features(tokens()) for _ in range(2)))


@pytest.mark.parametrize("kind", ["own", *FAMILIES])
def test_gradient_checkpointing(kind: str):
    """The same gradients, and the blocks run twice."""

    def grads(on: bool) -> tuple[list[Tensor], int]:
        if kind == "own":
            cfg = Config(n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.3)
            cfg = replace(cfg, gradient_checkpointing=on)
            net = randomise(build_network(cfg, build_objective(cfg, META)))
            time = torch.tensor([0.1, 0.5, 0.9])
        else:
            net, time = ours(kind, gradient_checkpointing=on, dropout=0.3), None
        calls = []
        inner = next(m for m in net.blocks[0].modules() if isinstance(m, torch.nn.Linear))
        inner.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(3)
        h = net.train().features(tokens(), time)
        net.logits(h).logsumexp(-1).sum().backward()
        return [p.grad for p in net.parameters()], len(calls)

    (plain, once), (saved, twice) = grads(False), grads(True)
    assert (once, twice) == (1, 2)
    assert len(plain) == len(saved) > 4 and all(map(torch.equal, plain, saved))


def test_backbone_from_the_hub(tmp_path: Path, monkeypatch: Any):
    """Only its config.json is fetched, and the rest of the run needs no network."""
    publish(tmp_path / "hf", "bert")
    asked = {}

    def fetch(source: str, **how: Any) -> str:
        asked.update(how, source=source)
        return str(tmp_path / "hf")

    fake = types.SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    text = published.resolve_backbone("someone/bert", V, {})
    assert asked == {"source": "someone/bert", "allow_patterns": ["config.json"]}
    assert json.loads(text)["model_type"] == "bert"


# ---- published masked language models ----------------------------------------------------------


def words(size: int, chat: bool = False) -> HF:
    """A tokenizer of single letters with the specials of BERT, and maybe those of a chat."""
    parts = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(97 + i) for i in range(26)] + [f"w{i}" for i in range(size)]
    vocabulary = {token: i for i, token in enumerate((names + letters)[:size])}
    codec = parts.Tokenizer(parts.models.WordLevel(vocabulary, unk_token="[UNK]"))
    codec.pre_tokenizer = parts.pre_tokenizers.Split("", "isolated")
    codec.add_special_tokens(names)
    return HF.with_chat(codec.to_str()) if chat else HF(codec.to_str())


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory, helpers: Any) -> Path:
    """data_dir with the corpora `tiny`, of V tokens with a MASK, and `chat`, of five more."""
    root = tmp_path_factory.mktemp("letters")
    for name, tokenizer in {"tiny": words(V), "chat": words(V, chat=True)}.items():
        texts = {"train": helpers.palindromes(40, 1), "val": helpers.palindromes(12, 2)}
        helpers.write_corpus(root / name, texts, tokenizer)
    return root


def publish(folder: Path, name: str, tokenizer: HF | None = None, **more: Any) -> Any:
    """What transformers itself saves."""
    model = theirs(name, **more)
    model.save_pretrained(folder)
    if tokenizer:
        (folder / "tokenizer.json").write_text(tokenizer.files["tokenizer.json"])
    return model


def begin(data_dir: Path, out: Path, helpers: Any, *drop: str, **more: Any) -> train.TrainState:
    """A run as train.py starts it, no step done."""
    given = {"data_dir": data_dir, "objective": "masked", "positions": "", **more}
    sizes = ("n_layer", "n_head", "n_embd", "cond_dim", "positions", *drop)
    argv = [f for f in helpers.flags(out, **given) if f[2:].split("=")[0] not in sizes]
    with contextlib.redirect_stdout(io.StringIO()):
        return train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dataset", ["tiny", "chat"])
def test_init_from_a_folder(tmp_path: Path, letters: Path, helpers: Any, name: str, dataset: str):
    """Identical logits of the tokens that the model knows; new ones get rows, and stay tied."""
    model = publish(tmp_path / "hf", name, words(V))
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf", dataset=dataset)
    rows = job.corpus.vocab_size
    assert rows == (V if dataset == "tiny" else V + 5) and not job.cfg.time_input
    ids = tokens()
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(ids))
        assert torch.equal(z[..., :V], model(ids).logits)
    assert job.net.head.weight is job.net.network.get_input_embeddings().weight
    assert z.shape[-1] == rows and (job.net.head.weight[V:].abs().sum(1) > 0).all()
    assert json.loads(job.cfg.backbone)["vocab_size"] == rows


def test_seed_format(tmp_path: Path, letters: Path, helpers: Any):
    """accelerate.save_state: model.safetensors alone; the architecture comes from elsewhere."""
    model = publish(tmp_path / "hf", "modernbert")
    state = {k: v for k, v in model.state_dict().items() if k != "decoder.weight"}
    (tmp_path / "checkpoint_4").mkdir()
    file = tmp_path / "checkpoint_4/model.safetensors"
    safetensors.save_file(state, file)
    for source in (file, file.parent):
        where = {"init_from": source, "backbone": tmp_path / "hf"}
        job = begin(letters, tmp_path, helpers, **where)
        with torch.no_grad():
            z = job.net.eval().logits(job.net.features(tokens()))
            assert torch.equal(z, model(tokens()).logits)
    missing = lambda: begin(letters, tmp_path, helpers, init_from=file)  # noqa: E731
    assert "--backbone" in error_of(missing)


def damaged(tmp_path: Path, change: Any) -> Path:
    publish(tmp_path / "hf", "modernbert")
    file = tmp_path / "hf/model.safetensors"
    state = safetensors.load_file(file)
    change(state)
    safetensors.save_file(state, file)
    return tmp_path / "hf"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("head.dense.weight"), "missing network.head.dense.weight"),
        (lambda s: s.update(extra=torch.ones(2)), "unexpected network.extra"),
        (lambda s: s.update({"decoder.weight": torch.ones(V, 24)}), "to which it is tied"),
        (lambda s: s.update({"head.norm.weight": torch.ones(23)}), "(23,) instead of (24,)"),
    ],
)
def test_strict(tmp_path: Path, letters: Path, helpers: Any, change: Any, words: str):
    folder = damaged(tmp_path, change)
    assert words in error_of(lambda: begin(letters, tmp_path, helpers, init_from=folder))


def test_other_heads_and_old_names_of_bert(tmp_path: Path, letters: Path, helpers: Any, capsys):
    """bert-base-uncased has a pooler and norms with gamma and beta."""
    model = publish(tmp_path / "hf", "bert")
    file = tmp_path / "hf/model.safetensors"
    state = safetensors.load_file(file)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        state = {k.replace(new, name): v for k, v in state.items()}
    state["bert.pooler.dense.weight"] = torch.ones(24, 24)
    state["cls.seq_relationship.bias"] = torch.ones(2)
    state["cls.predictions.decoder.weight"] = model.get_output_embeddings().weight.detach().clone()
    safetensors.save_file(state, file)
    got = published.read(str(tmp_path / "hf"))
    assert "bert.pooler.dense.weight, cls.seq_relationship.bias" in capsys.readouterr().out
    net = ours("bert")
    checkpoint.load_weights(net, got.weights, "bert")
    with torch.no_grad():
        torch.testing.assert_close(net.logits(net.features(tokens())), model(tokens()).logits)


def test_other_ids_are_refused(tmp_path: Path, letters: Path, helpers: Any):
    """Fewer ids, or ids of another tokenizer."""
    publish(tmp_path / "wide", "bert", vocab_size=V + 9)
    begun = lambda name: begin(letters, tmp_path, helpers, init_from=tmp_path / name)  # noqa: E731
    assert f"has {V + 9} tokens, the corpus {V}" in error_of(begun, "wide")
    shuffled = words(V)
    text = shuffled.files["tokenizer.json"].replace('"a": 5', '"a": 6').replace('"b": 6', '"b": 5')
    text = text.replace('"a":5', '"a":6').replace('"b":6', '"b":5')
    publish(tmp_path / "other", "bert", HF(text) if '"a"' in text else None)
    assert "'b' is id 5 there and 6 in the corpus" in error_of(begun, "other")


# ---- files of weights --------------------------------------------------------------------------

PREFIXES = ("_orig_mod.", "module.", "_forward_module.", "model.", "module._orig_mod.")


@pytest.mark.parametrize("prefix", [*PREFIXES, "_forward_module.module.", "model._orig_mod."])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_names_that_training_wrapped(tmp_path, letters, helpers, name, prefix):
    model = publish(tmp_path / "hf", name, words(V))
    file = tmp_path / "hf/model.safetensors"
    safetensors.save_file({prefix + k: v for k, v in safetensors.load_file(file).items()}, file)
    require_same(model, begin(letters, tmp_path, helpers, init_from=tmp_path / "hf"))


def require_same(model: Any, job: train.TrainState) -> None:
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(tokens()))
        torch.testing.assert_close(z, model(tokens()).logits)


def in_parts(folder: Path, suffix: str) -> None:
    """The weights of a folder in two files and an index."""
    state = safetensors.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    whole = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    stem, names, where = whole.partition(".")[0], sorted(state), {}
    for i, part in enumerate((names[:9], names[9:]), 1):
        file = f"{stem}-0000{i}-of-00002.{suffix}"
        tensors = {k: state[k] for k in part}
        if suffix == "bin":
            torch.save(tensors, folder / file)
        else:
            safetensors.save_file(tensors, folder / file)
        where |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
    (folder / f"{whole}.index.json").write_text(index)


def in_one_bin(folder: Path) -> None:
    torch.save(safetensors.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


LAYOUTS = {
    "parts": lambda folder: in_parts(folder, "safetensors"),
    "parts.bin": lambda folder: in_parts(folder, "bin"),
    "bin": in_one_bin,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_folder(tmp_path, letters, helpers, layout):
    """Weights in parts, and those of torch.save: to start from, and to sample."""
    model = publish(tmp_path / "hf", "bert", words(V))
    LAYOUTS[layout](tmp_path / "hf")
    require_same(model, begin(letters, tmp_path, helpers, init_from=tmp_path / "hf"))
    loaded = checkpoint.load(str(tmp_path / "hf"))
    with torch.no_grad():
        z = loaded.net.logits(loaded.net.features(tokens()))
        torch.testing.assert_close(z, model(tokens()).logits)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f, w: next(f.glob("*-00002-*")).unlink(), "is missing, which"),
        (lambda f, w: w.update(extra=min(w.values())), "extra is not where"),
        (lambda f, w: w.pop("cls.predictions.bias"), "cls.predictions.bias is not where"),
        (lambda f, w: w.update(a="../model.safetensors"), "no weight_map"),
        (lambda f, w: w.update(a=3), "no weight_map"),
        (lambda f, w: w.clear(), "no weight_map"),
        (lambda f, w: next(f.glob("*-00001-*")).write_bytes(b"version https://git-lfs"), "LFS"),
        (lambda f, w: next(f.glob("*-00001-*")).write_bytes(b"{"), "00001"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, change: Any, words: str):
    publish(tmp_path / "hf", "bert")
    in_parts(tmp_path / "hf", "safetensors")
    path = tmp_path / "hf/model.safetensors.index.json"
    where = json.loads(path.read_text())["weight_map"]
    change(tmp_path / "hf", where)
    path.write_text(json.dumps({"weight_map": where}))
    message = error_of(published.read, str(tmp_path / "hf"))
    assert words in message and str(tmp_path / "hf") in message


@pytest.mark.parametrize(
    "file, wrap",
    [
        ("last.ckpt", lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "at": 1}),
        ("mine.pt", lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}}),
        ("mine.pth", lambda s: {"model": s, "optimizer": {"step": 3}}),
        ("alone.pt", lambda s: s),
        ("alone.bin", lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}),
    ],
)
def test_training_checkpoints_with_a_backbone(tmp_path, letters, helpers, file, wrap):
    """Their one entry with weights, with --backbone for the sizes; without it the line says so."""
    model = publish(tmp_path / "hf", "bert")
    torch.save(wrap(dict(model.state_dict())), tmp_path / file)
    where = {"init_from": tmp_path / file, "backbone": tmp_path / "hf"}
    require_same(model, begin(letters, tmp_path, helpers, **where))
    missing = lambda: begin(letters, tmp_path, helpers, init_from=tmp_path / file)  # noqa: E731
    assert "--backbone" in error_of(missing)
    state = dict(model.state_dict())
    torch.save({"model": state, "state_dict": state}, tmp_path / file)
    message = error_of(lambda: begin(letters, tmp_path, helpers, **where))
    assert "weights under state_dict and model" in message


def test_weights_of_other_frameworks_are_named(tmp_path: Path):
    publish(tmp_path / "hf", "bert")
    (tmp_path / "hf/model.safetensors").rename(tmp_path / "hf/tf_model.h5")
    message = error_of(published.read, str(tmp_path / "hf"))
    assert "model.safetensors is missing; tf_model.h5 is not read" in message


# ---- embeddings with more rows than ids --------------------------------------------------------

OBJECTIVES = {
    "masked": {"objective": "masked"},
    "mlm": {"objective": "mlm"},
    "sedd": {"objective": "radd"},
    "it": {"objective": "it"},
}


def publish_padded(folder: Path, name: str, size: int = V, rows: int = V + 30) -> None:
    """Rows behind the ids that would win every draw, were they among them."""
    model = theirs(name, vocab_size=rows)
    with torch.no_grad():
        for p in model.parameters():
            if len(p) == rows:
                p[size:] = 9.0
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(words(size).files["tokenizer.json"])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_rows_that_are_no_ids(tmp_path: Path, letters: Path, helpers: Any, name: str, kind: str):
    """Loss, gradients, bound and samples are those of a network without these rows."""
    publish_padded(tmp_path / "hf", name)
    more = {**OBJECTIVES[kind], "init_from": tmp_path / "hf"}
    job = begin(letters, tmp_path, helpers, **more)
    size = job.objective.network_kwargs["vocab_size"]  # with CLS, which is no id of the tokenizer
    fields = {"model_type": name, **FAMILIES[name]}
    cfg = replace(job.cfg, backbone=published.backbone_json(fields, size))
    plain = build_network(cfg, job.objective)
    whole = checkpoint.weights_of(job.net).items()
    cut = {k: v[:size] if len(v) == V + 30 else v for k, v in whole}
    checkpoint.load_weights(plain, cut, "cut")
    batch = job.corpus.batch("train", torch.arange(4), job.cfg.block_size)
    nets, options = (job.net.eval(), plain.eval()), SampleOptions(steps=4)
    (a, b, ids), (c, d, others) = (outcome(job.objective, net, batch, options) for net in nets)
    w, v = (net.network.get_input_embeddings().weight for net in nets)
    torch.testing.assert_close((a, b), (c, d), rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, others) and int(ids.max()) < V
    assert not w.grad[size:].any() and w.grad[:V].any()
    torch.testing.assert_close(w.grad[:size], v.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_leaves_rows_that_are_no_ids(tmp_path, letters, helpers, monkeypatch, name):
    """They stay as they were, in the run and in its export, which is read by everybody."""
    publish_padded(tmp_path / "hf", name)
    more = {"init_from": tmp_path / "hf"}
    state = whole(letters, tmp_path / "run", helpers, monkeypatch, **more)
    whole(letters, tmp_path / "run", helpers, monkeypatch, init_from="resume", max_iters=6)
    model = checkpoint.load(str(tmp_path / "run/ckpt.pt"))
    checkpoint.export(model, tmp_path / "export")
    factory = transformers.AutoModelForMaskedLM
    theirs = {k: factory.from_pretrained(tmp_path / k).eval() for k in ("hf", "export")}
    rows = {k: net.get_input_embeddings().weight for k, net in theirs.items()}
    assert torch.equal(rows["export"][V:], rows["hf"][V:]) and len(rows["export"]) == V + 30
    assert not torch.equal(rows["export"][:V], rows["hf"][:V])
    assert sum(len(v) == V + 30 for v in state["model"].values()) >= 1
    back = checkpoint.load(str(tmp_path / "export"))
    ids = tokens()
    with torch.no_grad():
        z = model.net.logits(model.net.features(ids))
        assert torch.equal(back.net.logits(back.net.features(ids)), z)
        torch.testing.assert_close(theirs["export"](ids).logits[..., :V], z)
    for one in (model, back, checkpoint.load(str(tmp_path / "hf"))):
        got = generate(one, [canvas(one, infill="ab[3]c")] * 3, SampleOptions(steps=3), seed=1)
        assert int(got.ids.max()) < V
    again = begin(letters, tmp_path, helpers, init_from=tmp_path / "export")
    assert again.net.vocab_size == V and json.loads(again.cfg.backbone)["vocab_size"] == V + 30


@pytest.mark.parametrize("dataset, rows", [("tiny", V + 30), ("chat", V + 30), ("chat", V + 2)])
def test_new_ids_take_rows_that_are_none(tmp_path, letters, helpers, dataset, rows):
    """Ids of the corpus behind those of the tokenizer; where there are not enough, rows are new."""
    publish_padded(tmp_path / "hf", "bert", rows=rows)
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf", dataset=dataset)
    assert job.net.vocab_size == len(job.net.head.weight) == job.corpus.vocab_size
    assert len(job.net.norm.weight) == max(rows, job.corpus.vocab_size)


def test_padding_of_weights_without_config(tmp_path: Path, letters: Path, helpers: Any):
    """accelerate.save_state; and without a tokenizer.json, which alone tells ids from padding."""
    publish_padded(tmp_path / "hf", "bert")
    (tmp_path / "step").mkdir()
    for file in ("model.safetensors", "tokenizer.json"):
        (tmp_path / "step" / file).write_bytes((tmp_path / "hf" / file).read_bytes())
    how = {"init_from": tmp_path / "step", "backbone": tmp_path / "hf"}
    job = begin(letters, tmp_path, helpers, **how)
    assert job.net.vocab_size == V and len(job.net.norm.weight) == V + 30
    (tmp_path / "step/tokenizer.json").unlink()
    message = error_of(lambda: begin(letters, tmp_path, helpers, **how))
    assert f"has {V + 30} tokens" in message and "tokenizer.json" in message


def test_sizes_beside_a_backbone_are_refused(letters: Path, tmp_path: Path, helpers: Any):
    def with_sizes() -> None:
        argv = helpers.flags(tmp_path, data_dir=letters, **TINY)
        train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))

    assert "n_layer (command line) means nothing" in error_of(with_sizes)


def test_sample_from_a_published_model(tmp_path: Path, letters: Path):
    """A masked language model with its tokenizer fills holes as it is."""
    publish(tmp_path / "hf", "bert", words(V))
    model = checkpoint.load(str(tmp_path / "hf"))
    begun = [canvas(model, infill="ab[3]c")] * 2
    got = generate(model, begun, SampleOptions(steps=3), seed=1)
    assert (got.ids != model.objective.mask_id).all() and got.ids.shape == (2, 6)


# ---- a run -------------------------------------------------------------------------------------

RUN = {"max_iters": 4, "eval_interval": 2, "learning_rate": 0.01, "ema_decay": 0.9}


def whole(data_dir: Path, out: Path, helpers: Any, monkeypatch: Any, **more: Any) -> dict:
    """A whole run of train.py -> its checkpoint."""
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    given = {"data_dir": data_dir, "init_from": "modernbert-tiny", "objective": "masked"}
    sizes = ("n_layer", "n_head", "n_embd", "cond_dim")
    argv = helpers.flags(out, **{**given, **RUN, **more})
    with contextlib.redirect_stdout(io.StringIO()):
        train.main([f for f in argv if f[2:].split("=")[0] not in sizes])
    return checkpoint.read(out / "ckpt.pt")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_is_exact(tmp_path, data_dir, helpers, monkeypatch, optimizer):
    """On a corpus whose tokenizer has no MASK: the network has one row more."""
    more = {"optimizer": optimizer, "dropout": 0.1, "lr_decay_iters": 4}
    straight = whole(data_dir, tmp_path / "a", helpers, monkeypatch, **more)
    whole(data_dir, tmp_path / "b", helpers, monkeypatch, **more | {"max_iters": 2})
    with monkeypatch.context() as patch:  # the checkpoint alone is enough: no sizes of its own
        patch.setattr(published, "TINY", {})
        again = whole(data_dir, tmp_path / "b", helpers, patch, **more | {"init_from": "resume"})
    for part in ("model", "ema"):
        assert list(again[part]) == list(straight[part])
        assert all(torch.equal(again[part][k], v) for k, v in straight[part].items())
    assert not any("decoder.weight" in k for k in straight["model"])  # a tied weight counts once
    fresh = begin(data_dir, tmp_path, helpers, init_from="modernbert-tiny")
    moved = [
        k for k, v in checkpoint.weights_of(fresh.net).items() if not v.equal(again["model"][k])
    ]
    assert len(moved) == len(again["model"])  # every weight learns


def test_export_and_back(tmp_path, letters, helpers, monkeypatch):
    """Train, export, and the same logits from checkpoint.load, --init_from and transformers."""
    whole(letters, tmp_path / "run", helpers, monkeypatch)
    model = checkpoint.load(str(tmp_path / "run/ckpt.pt"))
    checkpoint.export(model, tmp_path / "export")
    names = set(safetensors.load_file(tmp_path / "export/model.safetensors"))
    assert "decoder.weight" not in names and "model.embeddings.tok_embeddings.weight" in names
    files = sorted(p.name for p in (tmp_path / "export").iterdir())
    assert files == ["config.json", "model.safetensors", "tokenizer.json"]
    data = json.loads((tmp_path / "export/config.json").read_text())
    assert data["architectures"] == ["ModernBertForMaskedLM"] and data["vocab_size"] == V
    ids = tokens()
    with torch.no_grad():
        z = model.net.logits(model.net.features(ids))
        factory = transformers.AutoModelForMaskedLM
        other, info = factory.from_pretrained(tmp_path / "export", output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(other.eval()(ids).logits, z)
        back = checkpoint.load(str(tmp_path / "export"))
        assert back.config == model.config and back.meta["task"] == "palindrome"
        job = begin(letters, tmp_path, helpers, init_from=tmp_path / "export")
        for net in (back.net, job.net.eval()):
            assert torch.equal(net.logits(net.features(ids)), z)
    options = SampleOptions(steps=4)
    texts = [generate(m, [canvas(m, "a")] * 3, options, seed=1).texts for m in (model, back)]
    assert texts[0] == texts[1] and all(t.startswith("a") for t in texts[0])


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, data_dir: Path, helpers: Any, monkeypatch: Any):
    """DDP with a tied weight: as one process, up to the order of sums."""
    sizes = ("n_layer", "n_head", "n_embd", "cond_dim")
    flags = helpers.flags(tmp_path / "two", data_dir=data_dir, **RUN, gradient_accumulation_steps=2)
    flags = [f for f in flags if f[2:].split("=")[0] not in sizes]
    text = published.resolve_backbone("modernbert-tiny", 8, {"pad": 4, "bos": 5, "eos": 6})
    flags += [f"--backbone={text}", "--objective=masked"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = str(helpers.repo / "train.py")
    done = subprocess.run(
        [*command, script, *flags], env=helpers.env(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = checkpoint.read(tmp_path / "two/ckpt.pt")
    more = {"init_from": "scratch", "backbone": text, "gradient_accumulation_steps": 2}
    one = whole(data_dir, tmp_path / "one", helpers, monkeypatch, **more)
    for k, v in one["model"].items():
        torch.testing.assert_close(two["model"][k], v, rtol=1e-4, atol=1e-5)


# ---- MDLM --------------------------------------------------------------------------------------

MDLM = Config(objective="masked", zero_time=True, n_layer=2, n_head=2, n_embd=16, cond_dim=8)


def mdlm() -> tuple[Transformer, dict[str, Tensor]]:
    """A random network of 259 tokens and MASK, and its weights under MDLM's names."""
    objective = build_objective(MDLM, {"vocab_size": 259, "specials": {}})
    net = randomise(build_network(MDLM, objective)).eval()
    bare = published.to_sedd(net.state_dict(), 2) | {"rotary_emb.inv_freq": torch.ones(4)}
    return net, {f"backbone.{k}": v for k, v in bare.items()}


def mdlm_folder(folder: Path, state: dict[str, Tensor], **more: Any) -> Path:
    """config.json as kuleshov-group/mdlm-owt has it."""
    folder.mkdir()
    options = {"model_type": "mdlm", "architectures": ["MDLM"], "vocab_size": 260, "dropout": 0.1}
    options |= {"hidden_dim": 16, "cond_dim": 8, "n_blocks": 2, "n_heads": 2, "model_length": 32}
    options |= {"time_conditioning": False, "return_dict": False, **more}
    (folder / "config.json").write_text(json.dumps(options))
    safetensors.save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("conditioned", [False, True])
def test_mdlm_folder(tmp_path: Path, conditioned: bool):
    net, state = mdlm()
    folder = mdlm_folder(tmp_path / "mdlm", state, time_conditioning=conditioned)
    got = checkpoint.load(str(folder))
    assert got.config.zero_time is not conditioned and got.config.objective == "masked"
    assert got.objective.mask_id == 259 and got.config.noise == "loglinear"
    time = torch.tensor([0.3, 2.0])
    ids = torch.randint(0, 260, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (n.logits(n.features(ids, time)) for n in (net, got.net))
    assert torch.equal(a, b) and a.std() > 0.1


def test_mdlm_folder_with_rows_that_are_no_ids(tmp_path: Path, capsys: Any):
    """An embedding and an output layer that are rounded up: the same network, and it is told."""
    _, state = mdlm()
    ends = ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias")
    wide = {
        k: torch.cat([v, torch.full((60, *v.shape[1:]), 9.0)]) if k.endswith(ends) else v
        for k, v in state.items()
    }
    plain = checkpoint.load(str(mdlm_folder(tmp_path / "plain", state)))
    capsys.readouterr()
    padded = checkpoint.load(str(mdlm_folder(tmp_path / "wide", wide)))
    assert "not used, no ids of 260" in capsys.readouterr().out
    theirs, ours = padded.net.state_dict(), plain.net.state_dict()
    assert all(torch.equal(theirs[k], v) for k, v in ours.items())
    narrow = {k: v[:200] if k.endswith(ends) else v for k, v in state.items()}
    folder = mdlm_folder(tmp_path / "narrow", narrow)
    assert "instead of (260" in error_of(checkpoint.load, str(folder))


def test_mdlm_folder_is_strict(tmp_path: Path):
    _, state = mdlm()
    name = "backbone.blocks.1.attn_qkv.weight"
    lacks = {k: v for k, v in state.items() if k != "backbone.output_layer.linear.bias"}
    folder = mdlm_folder(tmp_path / "lacks", lacks)
    assert "output_layer.linear.bias is missing" in error_of(checkpoint.load, str(folder))
    folder = mdlm_folder(tmp_path / "more", state | {"backbone.blocks.0.more": torch.ones(2)})
    assert "unexpected blocks.0.more" in error_of(checkpoint.load, str(folder))
    folder = mdlm_folder(tmp_path / "shape", state | {name: torch.ones(9, 16)})
    assert "instead of" in error_of(checkpoint.load, str(folder))
    folder = mdlm_folder(tmp_path / "bd3", state, model_type="bd3lm")
    assert "bd3lm" in error_of(checkpoint.load, str(folder))


@pytest.mark.parametrize("averaged", [False, True])
def test_mdlm_training_checkpoint(tmp_path: Path, averaged: bool):
    """Lightning's file; the EMA is a list in the order of the parameters."""
    net, state = mdlm()
    content = {"state_dict": {k: v * 1.5 for k, v in state.items()}, "epoch": 3}
    if averaged:
        shadow = [v for k, v in state.items() if not k.endswith("inv_freq")]
        content["ema"] = {"decay": 0.9999, "num_updates": 7, "shadow_params": shadow}
    torch.save(content, tmp_path / "last.ckpt")
    got = published.read(str(tmp_path / "last.ckpt"))
    assert got.tokens == 259 and got.config["zero_time"]
    other = build_network(MDLM, build_objective(MDLM, {"vocab_size": 259, "specials": {}}))
    checkpoint.load_weights(other, got.weights, "last.ckpt")
    factor = 1.0 if averaged else 1.5
    for k, v in net.state_dict().items():
        assert torch.equal(other.state_dict()[k], v * factor), k


class Stranger:
    """What a pickle may hold beside tensors."""


def test_mdlm_training_checkpoint_with_objects(tmp_path: Path):
    """Refused, unread, in one line that says how to convert it; and the line works."""
    _, state = mdlm()
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "ema": None, "hyper_parameters": Stranger()}, path)
    message = error_of(published.read, str(path))
    assert "refused" in message and "weights_only=False" in message
    code = message.split('python -c "')[1].rstrip('"')
    code = code.replace("THIS.ckpt", str(path)).replace("NEW.ckpt", str(tmp_path / "new.ckpt"))
    exec(code, {})
    assert published.read(str(tmp_path / "new.ckpt")).tokens == 259
    assert error_of(checkpoint.load, str(path))


def test_init_from_mdlm(tmp_path: Path, letters: Path, helpers: Any):
    """Weights of another vocabulary are refused before anything is built."""
    _, state = mdlm()
    folder = mdlm_folder(tmp_path / "mdlm", state)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8}
    argv = helpers.flags(tmp_path, data_dir=letters, init_from=folder, **sizes)
    begun = lambda: train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))  # noqa: E731
    assert "has 259 tokens" in error_of(begun)
