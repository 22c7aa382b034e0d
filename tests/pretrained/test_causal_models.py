"""Causal language models of transformers as the network, and CodeGen in the layout of GPT-J.

Everything is built here from small random configurations: nothing is fetched.
"""

import contextlib
import io
import json
from dataclasses import replace

import pytest
import torch
from padded import outcome
from torch.utils.flop_counter import FlopCounterMode

import checkpoint
import train
from checkpoint import build_network, build_objective
from configurator import Config, UserError, load
from corpus import Batch, CorpusWriter
from model import Cache
from objective import SampleOptions, generator
from pretrained import published
from pretrained.causal import CausalLM, Kept, gptj_from_codegen
from sample import canvas, generate
from tokenizer import HF

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

V = 40
IDS = {"bos_token_id": 0, "eos_token_id": 0}
GPT = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64} | IDS
NEW = {"vocab_size": V, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4} | IDS
NEW |= {"intermediate_size": 20, "max_position_embeddings": 64}
FAMILIES = {
    "gpt2": GPT,
    "codegen": GPT | {"rotary_dim": 4, "n_ctx": 64},
    "gptj": GPT | {"rotary_dim": 4},
    "llama": NEW | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "mistral": NEW | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2": NEW | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": NEW | {"num_key_value_heads": 2, "tie_word_embeddings": True, "head_dim": 6},
}
META = {"vocab_size": V, "specials": {"eos": 0, "pad": 0}}


def error_of(action, *arguments, **more):
    """The line that refuses."""
    with pytest.raises(UserError) as caught:
        action(*arguments, **more)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def randomise(net, seed=0):
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.2)
    return net.eval()


def theirs(name, **more):
    """A random model of transformers' own, in evaluation mode."""
    config = transformers.AutoConfig.for_model(name, **FAMILIES[name] | more)
    return randomise(transformers.AutoModelForCausalLM.from_config(config))


def config_of(name, **more):
    text = published.backbone_json({"model_type": name, **FAMILIES[name]}, V)
    return Config(**{"objective": "ar", "backbone": text, **more})


def ours(name, **more):
    cfg = config_of(name, **more)
    return randomise(build_network(cfg, build_objective(cfg, META)))


def tokens(B=3, T=20, seed=1):
    return torch.randint(1, V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=FAMILIES)
def pair(request):
    """The same weights in their class and in ours."""
    model, net = theirs(request.param), ours(request.param)
    state = {published.BACKBONE + k: v for k, v in model.state_dict().items()}
    checkpoint.load_weights(net, state, request.param)
    return model, net


# ---- the interface of our own network ------------------------------------------------------------


@torch.no_grad()
def test_logits(pair):
    """Those of the model itself; no column sees a later one; one call is one call of `norm`."""
    model, net = pair
    ids, calls = tokens(), []
    net.norm.register_forward_hook(lambda m, i, out: calls.append(out))
    h = net.features(ids)
    torch.testing.assert_close(net.logits(h), model(ids).logits, rtol=0, atol=1e-5)
    assert len(calls) == 1 and torch.equal(calls[0], h) and h.shape == (3, 20, net.n_embd)
    other = ids.clone()
    other[:, 9] = ids[:, 9] % (V - 1) + 1
    moved = (net.features(other) - h).abs().amax((0, 2)) > 1e-6
    assert not moved[:9].any() and moved[9:].all()


@torch.no_grad()
def test_cache(pair):
    """Columns in several calls, and of some of the rows, are as in one call."""
    _, net = pair
    ids, cache, parts = tokens(), Cache(3, 20), []
    whole = net.features(ids)
    for start, end in ((0, 7), (7, 8), (8, 20)):
        cache.at, cache.visible = slice(start, end), end
        parts.append(net.features(ids[:, start:end], None, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)
    cache.at, cache.visible, cache.rows = slice(8, 12), 12, torch.tensor([2, 0])
    some = net.features(ids[[2, 0], 8:12], None, cache=cache)
    torch.testing.assert_close(some, whole[[2, 0], 8:12], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, more",
    [
        ((), {}),
        (({"cache_position": None},), {}),  # 5.1
        ((), {"cache_kwargs": {"sin": None}}),
        ((), {"kwargs": {"position_ids": None}}),  # 5.24
    ],
)
def test_arguments_of_a_cache(arguments, more):
    """Whatever a version of transformers passes beside keys and values; these by name as well."""
    k, v = torch.randn(2, 3, 2, 4, 5).unbind()
    cache = Cache(3, 4)
    kept = Kept(cache)
    assert kept.get_seq_length() == kept.get_seq_length(0) == kept.get_seq_length(layer_idx=0) == 0
    assert all(map(torch.equal, kept.update(k, v, 0, *arguments, **more), (k, v)))
    named = {"key_states": v, "value_states": k, "layer_idx": 1}
    assert all(map(torch.equal, kept.update(**named, **more), (v, k)))


@torch.no_grad()
@pytest.mark.filterwarnings("error::FutureWarning")
def test_no_deprecated_argument(pair):
    """What this version has renamed goes by its new name: the old one is soon refused."""
    _, net = pair
    cache = Cache(3, 20)
    cache.at, cache.visible = slice(0, 20), 20
    for more in ({}, {"cache": cache}, {"mask": torch.ones(20, 20, dtype=torch.bool)}):
        net.features(tokens(), None, **more)


@torch.no_grad()
def test_packed_samples_are_isolated(pair):
    """Two texts in one row, each with its own positions and blind to the other, are two texts."""
    _, net = pair
    ids, places = tokens(2, 16), torch.arange(8).repeat(2).expand(2, 16)
    own = torch.arange(16) // 8
    h = net.features(ids, mask=(own[:, None] == own)[None], positions=places)
    apart = net.features(ids.reshape(4, 8)).reshape(2, 16, -1)
    torch.testing.assert_close(h, apart, rtol=0, atol=1e-5)


def test_members(pair):
    model, net = pair
    assert net.causal and net.time is None and net.vocab_size == V and net.longest == 64
    assert len(net.blocks) == net.n_layer == 2
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in model.parameters())
    assert len(net.matrices()) >= 4 * net.n_layer and {p.ndim for p in net.matrices()} == {2}
    with FlopCounterMode(display=False) as counted:
        h = net.features(tokens(1, 32))
        net.logits(h).sum().backward()
    attention = net.flops_per_token(32) - net.flops_per_token(0)
    assert attention == 12 * net.n_layer * net.n_embd * 32
    got = counted.get_total_flops() / 32
    assert net.flops_per_token(0) <= got <= net.flops_per_token(32)


@pytest.mark.parametrize("name", FAMILIES)
def test_dropout_is_that_of_the_run(name):
    """None by default, whatever the model's own is; if asked for, in all places that it has."""
    net = ours(name).train()
    assert torch.equal(*(net.features(tokens()) for _ in range(2)))
    net = ours(name, dropout=0.25).train()
    assert not torch.equal(*(net.features(tokens()) for _ in range(2)))
    config = net.network.config
    known = "attn_pdrop resid_pdrop embd_pdrop attention_dropout".split()
    rates = {k: getattr(config, k) for k in known if hasattr(config, k)}
    assert set(rates.values()) == {0.25} and len(rates) >= (
        1 if name in ("llama", "mistral", "qwen2", "qwen3") else 3
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing(name):
    """The same gradients, and the blocks run twice."""

    def grads(on):
        net = ours(name, gradient_checkpointing=on, dropout=0.3).train()
        calls = []
        inner = next(m for m in net.blocks[0].modules() if not list(m.children()))
        inner.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(3)
        net.logits(net.features(tokens())).logsumexp(-1).sum().backward()
        return [p.grad for p in net.parameters()], len(calls)

    (plain, once), (saved, twice) = grads(False), grads(True)
    assert (once, twice) == (1, 2)
    assert len(plain) > 4 and all(map(torch.equal, plain, saved))


@pytest.mark.parametrize(
    "more, words",
    [
        ({"block_size": 65}, "block_size=65"),
        ({"backbone": '{"model_type": "bert", "vocab_size": 40}'}, "bert cannot"),
        ({"backbone": '{"model_type": "bloom"}'}, "bloom is neither"),
    ],
)
def test_refused(more, words):
    def build():
        cfg = config_of("gpt2", **more)
        cfg = replace(cfg, backbone=published.resolve_backbone(cfg.backbone, V, {}))
        build_network(
            cfg, build_objective(cfg, {"vocab_size": V, "specials": {"mask": 3, "eos": 0}})
        )

    assert words in error_of(build)


def test_positions_beyond_those_of_the_model():
    assert "64" in error_of(ours("gpt2").features, tokens(1, 65))


@torch.no_grad()
@pytest.mark.parametrize(
    "name, local",
    [
        ("mistral", {"sliding_window": 12}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 0}),
    ],
)
def test_longer_rows_than_a_window_are_refused(name, local):
    """Masks of ours would replace it; within the window it hides nothing."""
    fields = {"model_type": name, **FAMILIES[name], **local}
    cfg = config_of(name, backbone=published.backbone_json(fields, V), block_size=12)
    net = randomise(build_network(cfg, build_objective(cfg, META)))
    model = theirs(name, **local)
    z = net.logits(net.features(tokens(3, 12)))
    torch.testing.assert_close(z, model(tokens(3, 12)).logits, rtol=0, atol=1e-5)
    assert (model(tokens(3, 20)).logits - theirs(name)(tokens(3, 20)).logits).abs().max() > 1e-3
    assert "has 12" in error_of(net.features, tokens(1, 13))
    wide = replace(cfg, block_size=13)
    assert "block_size=13" in error_of(build_network, wide, build_objective(cfg, META))


# ---- the objective on it -------------------------------------------------------------------------


def test_loss_is_theirs(pair):
    """transformers' own mean over labels that are not -100, and its gradients; EOS is a target
    where the row holds it, padding is none."""
    model, net = pair
    ids, objective = tokens(), build_objective(config_of("gpt2"), META)
    length, prompt = torch.tensor([20, 12, 5]), torch.tensor([3, 11, 1])
    ids[torch.arange(3), length - 1] = 0
    place = torch.arange(20)
    ids = ids.where(place < length[:, None], 0)
    batch = Batch(ids, place < prompt[:, None], length)
    labels = ids.where((place >= prompt[:, None]) & (place < length[:, None]), -100)
    want = model(ids, labels=labels).loss
    want.backward()
    loss = objective.loss(net, objective.corrupt(batch, generator(0)))
    (loss.sum / loss.count).backward()
    assert loss.count == 17 + 1 + 4
    torch.testing.assert_close(loss.sum / loss.count, want, rtol=1e-5, atol=1e-6)
    names = dict(model.named_parameters())
    for name, p in net.named_parameters():
        other = names[name.removeprefix(published.BACKBONE)]
        torch.testing.assert_close(p.grad, other.grad, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_greedy_text_is_theirs(pair):
    """transformers' generate at temperature 0, up to EOS."""
    model, net = pair
    objective, ids = build_objective(config_of("gpt2"), META), torch.zeros(3, 20).long()
    ids[:, :4] = tokens(3, 4)
    given = torch.arange(20).expand_as(ids) < 4
    *_, last = objective.sample(net, ids, given, generator(0), SampleOptions(temperature=0))
    want = model.generate(
        ids[:, :4], max_new_tokens=16, do_sample=False, pad_token_id=0, eos_token_id=0
    )
    want = torch.nn.functional.pad(want, (0, 20 - want.shape[1]))
    assert torch.equal(last.ids, want)


# ---- a run ---------------------------------------------------------------------------------------


def words(size):
    """A tokenizer of single letters, as a hub folder has one."""
    parts = pytest.importorskip("tokenizers")
    names = ["<|endoftext|>"] + [chr(97 + i) for i in range(26)] + [f"w{i}" for i in range(size)]
    codec = parts.Tokenizer(parts.models.WordLevel({t: i for i, t in enumerate(names[:size])}))
    codec.pre_tokenizer = parts.pre_tokenizers.Split("", "isolated")
    codec.add_special_tokens(["<|endoftext|>"])
    return HF(codec.to_str())


@pytest.fixture(scope="module")
def letters(tmp_path_factory, helpers):
    """data_dir with `tiny`, rows of V tokens whose specials are one id, as GPT-2's are."""
    root, tokenizer = tmp_path_factory.mktemp("letters"), words(V)
    assert tokenizer.specials == {"pad": 0, "eos": 0}
    with CorpusWriter(root / "tiny", tokenizer, source="tests") as out:
        for split, count in (("train", 40), ("val", 12)):
            for text in helpers.palindromes(count, count):
                out.row(split, [*tokenizer.encode(text), 0], prompt=1)
    return root


def publish(folder, name, tokenizer=None, **more):
    """What transformers itself saves."""
    model = theirs(name, **more)
    model.save_pretrained(folder)
    if tokenizer:
        (folder / "tokenizer.json").write_text(tokenizer.files["tokenizer.json"])
    return model


def flags(data_dir, out, helpers, **more):
    argv = helpers.flags(out, **{"data_dir": data_dir, "objective": "ar", **more})
    return [
        f for f in argv if f[2:].split("=")[0] not in ("n_layer", "n_head", "n_embd", "cond_dim")
    ]


def begin(data_dir, out, helpers, **more):
    """A run as train.py starts it, no step done."""
    with contextlib.redirect_stdout(io.StringIO()):
        made = load(Config, flags(data_dir, out, helpers, **more))
        return train.start(*made, train.World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("name", FAMILIES)
def test_init_from_a_folder(tmp_path, letters, helpers, name):
    """Identical logits; the embedding keeps rows that the tokenizer has no tokens for."""
    model = publish(tmp_path / "hf", name, words(V), vocab_size=V + 9)
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf")
    assert isinstance(job.net, CausalLM) and job.net.vocab_size == V
    assert len(job.net.network.get_input_embeddings().weight) == V + 9
    ids = tokens()
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(ids))
    torch.testing.assert_close(z, model(ids).logits[..., :V], rtol=0, atol=1e-5)
    assert json.loads(job.cfg.backbone)["vocab_size"] == V + 9
    narrow = publish(tmp_path / "less", name, words(V - 9), vocab_size=V - 9)
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "less")  # a corpus of more tokens
    assert job.net.vocab_size == V
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(ids % (V - 9)))
    torch.testing.assert_close(z[..., : V - 9], narrow(ids % (V - 9)).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_are_no_ids(tmp_path, letters, helpers, name):
    """They would win every draw, were they among the tokens: loss, likelihood and samples are those
    of a network without them."""
    rows = V + 30
    model = theirs(name, vocab_size=rows)
    with torch.no_grad():
        for p in model.parameters():
            if len(p) == rows:
                p[V:] = 30 * p[:30]
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf/tokenizer.json").write_text(words(V).files["tokenizer.json"])
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf")
    plain = build_network(replace(job.cfg, backbone=config_of(name).backbone), job.objective)
    cut = {k: v[:V] if len(v) == rows else v for k, v in checkpoint.weights_of(job.net).items()}
    checkpoint.load_weights(plain, cut, "cut")
    batch = job.corpus.batch("train", torch.arange(4), job.cfg.block_size)
    nets, options = (job.net.eval(), plain.eval()), SampleOptions(temperature=1.0)
    (a, b, ids), (c, d, others) = (outcome(job.objective, net, batch, options) for net in nets)
    grad, other = (net.norm.weight.grad for net in nets)
    torch.testing.assert_close((a, b), (c, d), rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, others) and int(ids.max()) < V
    assert not grad[V:].any()
    torch.testing.assert_close(grad[:V], other, rtol=1e-3, atol=1e-5)
    checkpoint.export(
        checkpoint.Model(job.net, job.objective, words(V), job.cfg, job.corpus.meta, 0),
        tmp_path / "export",
    )
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert torch.equal(back.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_gpt2_as_the_hub_has_it(tmp_path, letters, helpers):
    """Without the name of the body, and with masks that old versions saved."""
    model = publish(tmp_path / "hf", "gpt2", words(V))
    file = tmp_path / "hf/model.safetensors"
    state = safetensors.load_file(file)
    state = {k.removeprefix("transformer."): v for k, v in state.items() if k != "lm_head.weight"}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.ones(1)}
    safetensors.save_file(state, file)
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf")
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(tokens()))
    torch.testing.assert_close(z, model(tokens()).logits, rtol=0, atol=1e-5)


def test_other_ids_and_losses_of_weights_are_refused(tmp_path, letters, helpers):
    publish(tmp_path / "wide", "gpt2", words(V + 1), vocab_size=V + 1)
    wide = {"init_from": tmp_path / "wide"}
    assert f"has {V + 1} tokens" in error_of(begin, letters, tmp_path, helpers, **wide)
    publish(tmp_path / "hf", "gpt2")
    file = tmp_path / "hf/model.safetensors"
    state = safetensors.load_file(file)
    safetensors.save_file({k: v for k, v in state.items() if "ln_f" not in k}, file)
    lacks = {"init_from": tmp_path / "hf"}
    assert "missing" in error_of(begin, letters, tmp_path, helpers, **lacks)


@pytest.mark.parametrize("name", ["gpt2", "codegen"])
def test_train_sample_export(tmp_path, letters, helpers, monkeypatch, name):
    """A run from published weights; it resumes exactly; its export is read by everybody."""
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    publish(tmp_path / "hf", name, words(V))
    more = {"max_iters": 4, "eval_interval": 2, "learning_rate": 0.01, "dropout": 0.1}

    def whole(out, **other):
        with contextlib.redirect_stdout(io.StringIO()):
            train.main(flags(letters, tmp_path / out, helpers, **more | other))
        return checkpoint.read(tmp_path / out / "ckpt.pt")

    source = {"init_from": tmp_path / "hf", "lr_decay_iters": 4}
    straight = whole("a", **source)
    whole("b", **source, max_iters=2)
    again = whole("b", init_from="resume", lr_decay_iters=4)
    assert all(torch.equal(again["model"][k], v) for k, v in straight["model"].items())
    model = checkpoint.load(str(tmp_path / "a/ckpt.pt"))
    checkpoint.export(model, tmp_path / "export")
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    back = checkpoint.load(str(tmp_path / "export"))
    with torch.no_grad():
        z = model.net.logits(model.net.features(tokens()))
        torch.testing.assert_close(other(tokens()).logits, z, rtol=0, atol=1e-5)
        assert torch.equal(back.net.logits(back.net.features(tokens())), z)
    raw = checkpoint.load(str(tmp_path / "hf"))  # published weights as they are
    for one in (model, back, raw):
        got = generate(one, [canvas(one, "ab")] * 3, SampleOptions(), seed=1)
        assert (got.ids[:, :2] == torch.tensor([1, 2])).all() and int(got.ids.max()) < V


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model.", "module._orig_mod."])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_names_that_training_wrapped(tmp_path, letters, helpers, name, prefix):
    """All names of a tied Llama begin with `model.` as they are."""
    model = publish(tmp_path / "hf", name, words(V))
    file = tmp_path / "hf/model.safetensors"
    state = safetensors.load_file(file)
    safetensors.save_file({prefix + k: v for k, v in state.items()}, file)
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf")
    with torch.no_grad():
        z = job.net.eval().logits(job.net.features(tokens()))
    torch.testing.assert_close(z, model(tokens()).logits, rtol=0, atol=1e-5)


# ---- nanoGPT as GPT-2 ----------------------------------------------------------------------------


def nanogpt(weights, ids, heads):
    """The forward pass of nanoGPT's model.py, as plain functions."""
    functional, (B, T) = torch.nn.functional, ids.shape

    def norm(x, name):
        bias = weights.get(f"transformer.{name}.bias")
        return functional.layer_norm(x, x.shape[-1:], weights[f"transformer.{name}.weight"], bias)

    def linear(x, name):
        full = f"transformer.{name}"
        return functional.linear(x, weights[f"{full}.weight"], weights.get(f"{full}.bias"))

    x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:T]
    for i in range(2):
        parts = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn").chunk(3, -1)
        q, k, v = (part.view(B, T, heads, -1).transpose(1, 2) for part in parts)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).reshape(B, T, -1), f"h.{i}.attn.c_proj")
        inner = functional.gelu(linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc"))
        x = x + linear(inner, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["lm_head.weight"].t()


def nanogpt_checkpoint(bias, vocab_size, C=16):
    rng = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (vocab_size, C), "wpe.weight": (32, C), "ln_f.weight": (C,)}
    for i in range(2):
        shapes |= {f"h.{i}.ln_1.weight": (C,), f"h.{i}.attn.c_attn.weight": (3 * C, C)}
        shapes |= {f"h.{i}.attn.c_proj.weight": (C, C), f"h.{i}.ln_2.weight": (C,)}
        shapes |= {f"h.{i}.mlp.c_fc.weight": (4 * C, C), f"h.{i}.mlp.c_proj.weight": (C, 4 * C)}
    if bias:
        some = [(k, s[0]) for k, s in shapes.items() if k[:3] not in ("wte", "wpe")]
        shapes |= {k.replace("weight", "bias"): (n,) for k, n in some}
    state = {f"transformer.{k}": torch.randn(s, generator=rng) * 0.3 for k, s in shapes.items()}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    args = {"n_layer": 2, "n_head": 2, "n_embd": C, "block_size": 32, "dropout": 0.1}
    more = {"optimizer": {"state": {}}, "iter_num": 7, "best_val_loss": torch.tensor(1.0)}
    args |= {"bias": bias, "vocab_size": vocab_size}
    return state, {"model": state, "model_args": args, "config": {}, **more}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocab_size, prefix", [(V, ""), (V, "_orig_mod."), (50304, "_orig_mod.")])
def test_nanogpt_as_gpt2(tmp_path, run_cli, assert_refused, bias, vocab_size, prefix):
    """The line that refuses its ckpt.pt names the command, whose folder has nanoGPT's own logits;
    of the 50,304 rows for GPT-2's tokens only those of tokens."""
    state, content = nanogpt_checkpoint(bias, vocab_size)
    content["model"] = {prefix + k: v for k, v in state.items()}
    path, out = tmp_path / "ckpt.pt", tmp_path / "gpt2"
    torch.save(content, path)
    assert f"python -m pretrained.causal --nanogpt={path}" in error_of(checkpoint.load, str(path))
    done = run_cli("pretrained.causal", f"--nanogpt={path}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    got = published.read(str(out))
    size = 50257 if vocab_size == 50304 else vocab_size
    assert got.tokens == size
    cfg = Config(objective="ar", backbone=got.config["backbone"], block_size=32)
    net = build_network(cfg, build_objective(cfg, {"vocab_size": size, "specials": {"eos": 0}}))
    checkpoint.load_weights(net, got.weights, "nanogpt")
    ids = tokens(2, 12)
    with torch.no_grad():
        z = net.eval().logits(net.features(ids))
    torch.testing.assert_close(z, nanogpt(state, ids, 2)[..., :size], rtol=1e-4, atol=1e-4)
    assert_refused(run_cli("pretrained.causal", f"--nanogpt={path}", f"--out={out}"), "cannot be")


def test_what_is_no_nanogpt(tmp_path, run_cli, assert_refused):
    path, out = tmp_path / "ckpt.pt", f"--out={tmp_path / 'out'}"
    content = nanogpt_checkpoint(True, V)[1]
    for wrong, words in (
        ({"model": {}}, "no model_args"),
        ({"model": {}, "model_args": {"n_layer": 2}}, "model_args has no n_head"),
        ({**content, "model": {"a": torch.ones(2)}}, "transformer.wte.weight"),
    ):
        torch.save(wrong, path)
        assert_refused(run_cli("pretrained.causal", f"--nanogpt={path}", out), words)
        assert not (tmp_path / "out").exists()
    assert_refused(run_cli("pretrained.causal", out), "codegen must be")


# ---- CodeGen as GPT-J ----------------------------------------------------------------------------


def test_codegen_as_gptj(tmp_path, run_cli, assert_refused):
    """Equal logits, and the same greedy text; the tokenizer comes along."""
    model = publish(tmp_path / "codegen", "codegen", words(V))
    args = ("pretrained.causal", f"--codegen={tmp_path / 'codegen'}", f"--out={tmp_path / 'gptj'}")
    done = run_cli(*args)
    assert done.returncode == 0, done.stderr
    made, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "gptj", output_loading_info=True
    )
    assert type(made).__name__ == "GPTJForCausalLM"
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
        texts = [m.generate(ids[:, :4], max_new_tokens=32, do_sample=False) for m in (model, made)]
    assert torch.equal(*texts)
    assert (tmp_path / "gptj/tokenizer.json").exists()
    assert_refused(run_cli(*args), "gptj", "cannot be made")
    assert_refused(run_cli(*args[:1], f"--codegen={tmp_path / 'gptj'}", "--out=x"), "needs")


def test_every_tensor_of_codegen_is_used_once():
    """A permutation of the numbers, and all heads differ: swapped blocks would show."""
    state = theirs("codegen").state_dict()
    got = gptj_from_codegen({**state, "transformer.h.0.attn.causal_mask": torch.ones(1)})
    assert sum(v.numel() for v in got.values()) == sum(v.numel() for v in state.values())
    q, k, v = (got[f"transformer.h.1.attn.{part}_proj.weight"] for part in "qkv")
    rows = torch.cat([q, k, v])
    packed = state["transformer.h.1.attn.qkv_proj.weight"]
    assert torch.equal(rows.sort(0).values, packed.sort(0).values)
    assert torch.equal(q[:8], packed[:8]) and torch.equal(v[:8], packed[8:16])
