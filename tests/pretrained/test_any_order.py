"""Causal language models of transformers that are made to read in both directions (DiffuLLaMA).

Everything is built here from small random configurations: nothing is fetched.
"""

import contextlib
import io
import json
from dataclasses import replace

import pytest
import torch
from test_causal_models import (
    FAMILIES,
    META,
    V,
    begin,
    config_of,
    error_of,
    flags,
    letters,  # noqa: F401
    publish,
    randomise,
    theirs,
    tokens,
    words,
)

import checkpoint
import evaluate
import train
from checkpoint import build_network, build_objective
from corpus import Batch
from model import Cache
from objective import SampleOptions, generator
from pretrained.causal import AnyOrderLM, CausalLM
from sample import canvas, generate

transformers = pytest.importorskip("transformers")
MASK = V


def any_order(name, objective="masked", **more):
    """Our network of some kind with MASK, the weights random."""
    fields = json.loads(config_of(name).backbone) | {"vocab_size": V + 1}
    more = {"objective": objective, "time_input": False, **more}
    cfg = config_of(name, backbone=json.dumps(fields), **more)
    made = build_objective(cfg, META)
    return randomise(build_network(cfg, made)), made


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_later_tokens_are_seen(name):
    """By every place; and not with objective=ar, whose features are those of the model itself."""
    ids = tokens()
    other = ids.clone()
    other[:, 9] = ids[:, 9] % (V - 1) + 1
    net, _ = any_order(name, shift=False)
    assert isinstance(net, AnyOrderLM) and not net.causal
    moved = (net.features(other) - net.features(ids)).abs().amax((0, 2)) > 1e-6
    assert moved.all()
    model = theirs(name, vocab_size=V + 1)
    model.load_state_dict(
        {k.removeprefix("network."): v for k, v in net.state_dict().items()}, False
    )
    plain = CausalLM(model)
    moved = (plain.features(other) - plain.features(ids)).abs().amax((0, 2)) > 1e-6
    assert not moved[:9].any() and moved[9:].all()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_under_a_mask_of_zeros(name):
    """transformers' own, with the 4-D mask that lets every place see every other."""
    net, _ = any_order(name, shift=False)
    model = theirs(name, vocab_size=V + 1)
    weights = {k.removeprefix("network."): v for k, v in net.state_dict().items()}
    z = net.logits(net.features(tokens()))
    checkpoint.load_weights(model, {k: weights[k] for k in model.state_dict()}, name)
    want = model(tokens(), attention_mask=torch.zeros(3, 1, 20, 20)).logits
    torch.testing.assert_close(z, want, rtol=0, atol=1e-5)
    assert (z - model(tokens()).logits).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_shift(name):
    """Place i is predicted by the output before it, the first by its own."""
    net, _ = any_order(name)
    h = net.features(tokens())
    net.shift = False
    own = net.features(tokens())
    assert torch.equal(h[:, 1:], own[:, :-1]) and torch.equal(h[:, 0], own[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_not_seen(name):
    """A row with padding behind it, of which a mask of keys is told, is the row alone."""
    net, _ = any_order(name)
    ids = tokens(2, 20)
    inside = (torch.arange(20) < 12).expand(2, 1, 20)
    h = net.features(ids, None, inside)[:, :12]
    torch.testing.assert_close(h, net.features(ids[:, :12]), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_annealing_goes_from_causal_to_bidirectional(name):
    """Share 0 is the causal mask, 1 none; between, the share of later places that are seen; in
    evaluation all are."""
    net, _ = any_order(name)
    ids = tokens()
    whole = net.features(ids)
    net.train().anneal(0.0, 20, generator(1))
    causal = CausalLM.features(net, ids)
    other = ids.clone()
    other[:, 9] = ids[:, 9] % (V - 1) + 1
    moved = (CausalLM.features(net, other) - causal).abs().amax((0, 2)) > 1e-6
    assert not moved[:9].any() and moved[9:].all()
    assert torch.equal(net.eval().features(ids), whole)
    net.train().anneal(0.3, 100, generator(1))
    later = torch.ones(100, 100).triu(1) > 0
    sees = net.sees(torch.arange(100), 100)
    assert sees[~later].all() and abs(float(sees[later].float().mean()) - 0.3) < 0.03
    net.anneal(1.0, 20, generator(1))
    assert net.later is None and torch.equal(net.features(ids), whole)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_the_loss_is_a_weighted_cross_entropy_of_shifted_logits(name):
    """-log p of masked token i from the logits of place i - 1, MASK itself left out, over t."""
    net, objective = any_order(name)
    ids = tokens()
    batch = Batch(ids, torch.arange(20).expand_as(ids) < 3, torch.full((3,), 20))
    noisy = objective.corrupt(batch, generator(0))
    h = CausalLM.features(net, noisy.xt)
    logp = net.logits(h)[..., :MASK].log_softmax(-1)
    row, col = noisy.scored.nonzero(as_tuple=True)
    want = -(logp[row, col - 1, ids[row, col]] * noisy.weight[row]).sum()
    torch.testing.assert_close(objective.loss(net, noisy).sum, want, rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_are_sampled_as_they_are_trained(name):
    """Block diffusion without the shift: features of the sampler's cached pass over a block are
    those of the pass over noised and clean tokens that training makes."""
    net, objective = any_order(name, "bd3", shift=False, block_length=4)
    ids, masked = tokens(2, 12), torch.zeros(6, 4, dtype=torch.bool)
    masked[:, 1:] = True
    batch = Batch(ids, torch.zeros(2, 12, dtype=torch.bool), torch.full((2,), 12))
    cut = objective.cut(batch, None)
    noisy = objective.noisy(cut, masked, torch.ones(6), torch.ones(6))
    h, row, col = objective.features(net, noisy)
    cache, found = Cache(2, 12), []
    for k in range(3):
        xt = noisy.xt.view(2, 3, 4)[:, k]
        cache.at, cache.visible = slice(4 * k, 4 * k + 4), 4 * k + 4
        found.append(net.features(xt, None, cache=cache))
        clean = ids[:, 4 * k : 4 * k + 4]
        net.features(clean, None, cache=cache)
    found = torch.stack(found, 1).reshape(6, 4, -1)[row, col]
    torch.testing.assert_close(h, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"objective": "ilm"}, "any of masked, mlm, sedd, bd3"),
        ({"objective": "masked", "time_input": True}, "--time_input=False"),
        ({"objective": "bd3", "block_length": 4}, "needs --shift=False"),
        ({"objective": "bd3", "shift": False, "anneal_steps": 3}, "no anneal_steps"),
        ({"objective": "ar", "anneal_steps": 3}, "no mask to anneal"),
    ],
)
def test_refused(more, words):
    cfg = config_of("gpt2", **{"time_input": False, **more})
    cfg = replace(cfg, backbone=json.dumps(json.loads(cfg.backbone) | {"vocab_size": V + 9}))
    meta = {"vocab_size": V, "specials": {"bos": 1, "eos": 0, "pad": 2}}
    assert words in error_of(lambda: build_network(cfg, build_objective(cfg, meta)))


@pytest.mark.parametrize("key", ["shift=False", "anneal_steps=3"])
def test_options_of_a_causal_backbone_are_refused_elsewhere(tmp_path, letters, helpers, key):  # noqa: F811
    argv = helpers.flags(tmp_path / "out", data_dir=letters, objective="masked")
    assert key.split("=")[0] in error_of(train.main, [*argv, f"--{key}"])
    assert not (tmp_path / "out").exists()


# ---- a run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "qwen3"])
def test_train_resume_sample_evaluate_export(tmp_path, letters, helpers, capsys, name):  # noqa: F811
    """MASK gets a row behind those of the weights, which stay; annealing survives a resume to the
    bit; samples and infills hold no MASK and keep what is given; the bound is printed; transformers
    reads the export, with a mask of zeros, and so do we."""
    model = publish(tmp_path / "hf", name, words(V))
    job = begin(letters, tmp_path, helpers, init_from=tmp_path / "hf", objective="masked")
    rows = job.net.network.get_input_embeddings().weight
    assert len(rows) == V + 1 and torch.equal(rows[:V], model.get_input_embeddings().weight)
    more = {"max_iters": 6, "eval_interval": 3, "learning_rate": 0.01, "dropout": 0.1}
    more |= {"objective": "masked", "anneal_steps": 5, "lr_decay_iters": 6}

    def whole(out, **other):
        train.main(flags(letters, tmp_path / out, helpers, **more | other))
        return checkpoint.read(tmp_path / out / "ckpt.pt")

    straight = whole("a", init_from=tmp_path / "hf")
    assert "read in both directions; the place before it predicts" in capsys.readouterr().out
    whole("b", init_from=tmp_path / "hf", max_iters=3)
    again = whole("b", init_from="resume")
    assert all(torch.equal(again["model"][k], v) for k, v in straight["model"].items())
    at_once = whole("c", init_from=tmp_path / "hf", anneal_steps=0)
    assert any(not torch.equal(at_once["model"][k], v) for k, v in straight["model"].items())

    ckpt = str(tmp_path / "a/ckpt.pt")
    model = checkpoint.load(ckpt)
    checkpoint.export(model, tmp_path / "export")
    back = checkpoint.load(str(tmp_path / "export"))
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        z = model.net.logits(model.net.features(tokens()))
        assert torch.equal(back.net.logits(back.net.features(tokens())), z)
        seen = other(tokens(), attention_mask=torch.zeros(3, 1, 20, 20)).logits
        torch.testing.assert_close(seen[:, :-1], z[:, 1:], rtol=0, atol=1e-5)
    for one in (model, back):
        for sampler in one.objective.samplers:
            options = SampleOptions(sampler=sampler, steps=8)
            got = generate(one, [canvas(one, infill="ab[4]cd")] * 3, options, seed=1)
            assert (got.ids[:, :2] == torch.tensor([1, 2])).all() and int(got.ids.max()) < V
    capsys.readouterr()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        evaluate.main([f"--ckpt={ckpt}", "--rows=6", "--samples=0", "--device=cpu"])
    assert "nats per token" in out.getvalue() and "variational bound" in out.getvalue()


def test_the_shift_comes_with_the_weights(tmp_path, letters, helpers):  # noqa: F811
    """It says what outputs mean: another one is refused, none is taken from them."""
    publish(tmp_path / "hf", "gpt2", words(V))
    more = {"objective": "masked", "max_iters": 1, "eval_interval": 1}
    first = flags(letters, tmp_path / "a", helpers, init_from=tmp_path / "hf", shift=False, **more)
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(first)
    later = {"init_from": tmp_path / "a/ckpt.pt", **more}
    assert not begin(letters, tmp_path / "b", helpers, **later).net.shift
    assert "has shift=False" in error_of(
        begin, letters, tmp_path / "b", helpers, shift=True, **later
    )


def test_blocks_from_a_causal_model(tmp_path, letters, helpers):  # noqa: F811
    publish(tmp_path / "hf", "llama", words(V))
    more = {"objective": "bd3", "block_length": 4, "shift": False, "max_iters": 2}
    argv = flags(
        letters, tmp_path / "a", helpers, init_from=tmp_path / "hf", eval_interval=2, **more
    )
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(argv)
    model = checkpoint.load(str(tmp_path / "a/ckpt.pt"))
    got = generate(model, [canvas(model, "ab")] * 3, SampleOptions(steps=8), seed=1)
    assert (got.ids[:, :2] == torch.tensor([1, 2])).all() and int(got.ids.max()) < V
