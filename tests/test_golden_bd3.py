"""Block diffusion against numbers recorded from the reference implementation of BD3-LM.

The files are `$GOLDEN_DIR/masked_$GOLDEN_SET.bd3.{npz,json}`; sizes, cases and names are read from
them, so that another set of the same layout can be run. The last test fails if an array was never
compared, so nothing recorded can be wrong unnoticed.
"""

import re

import pytest
import torch
from recorded import Recorded

from checkpoint import load_weights
from corpus import Batch
from diffusion import (
    BlockDiffusion,
    BlockSampler,
    Cosine,
    Log,
    NoisyAndClean,
    Power,
    block_mask,
    cells,
)
from model import Transformer
from objective import SampleOptions, generator, process_logits
from pretrained.published import from_sedd

RECORDED = Recorded("masked", "bd3")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold = RECORDED.gold
SCHEDULES = {
    "loglinear": Power(),  # theirs has no eps
    "square": Power(2.0),
    "square_root": Power(0.5),
    "log": Log(),
    "cosine": Cosine(),
}


def close(ours, name, rtol=1e-4, atol=1e-5):
    RECORDED.close(ours, name, rtol, atol)


def cases(pattern):
    """The groups of `pattern` in all names that it matches whole."""
    found = (re.fullmatch(pattern, name) for name in ARRAYS)
    return sorted(m.groups() for m in found if m)


def fact(name):
    return int(re.search(rf"\b{name}=(\d+)", FACTS["notes"])[1])


SIZE, MASK = fact("block_size"), fact("mask")


@pytest.fixture(scope="module")
def net():
    state = {k.removeprefix("dit_sd."): gold(k) for k in ARRAYS if k.startswith("dit_sd.")}
    V, n_embd = state["vocab_embed.embedding"].shape
    half, cond_dim = len(state["rotary_emb.inv_freq"]), len(state["sigma_map.mlp.0.bias"])
    n_layer = sum(name.endswith("attn_qkv.weight") for name in state)
    net = Transformer(V, n_layer, n_embd // (2 * half), n_embd, cond_dim)
    load_weights(net, from_sedd(state), RECORDED.name)
    close(10000 ** -(torch.arange(half).double() / half), "dit_sd.rotary_emb.inv_freq", 1e-6, 0)
    return net.eval()


def process(low=0.0, high=1.0):
    """The published objective: its network is always told that there is no noise."""
    V = len(ARRAYS["dit_sd.vocab_embed.embedding"])
    return BlockDiffusion(V, MASK, Power(), length=SIZE, low=low, high=high, zero_time=True)


def decoder(net, x):
    """A sampler in the middle of its work on the canvas x."""
    everywhere = torch.ones_like(x, dtype=torch.bool)
    return BlockSampler(process(), net, x, everywhere, generator(0), SampleOptions())


def look(walk, block):
    walk.current_block = block
    rows = torch.arange(len(walk.x))
    return walk.features(rows, torch.zeros(len(rows)))[0]


@pytest.mark.parametrize("T, length", cases(r"mask_n(\d+)_b(\d+)"))
def test_masks(T, length):
    ours = block_mask(int(T), int(length), torch.device("cpu"))
    assert torch.equal(ours, gold(f"mask_n{T}_b{length}"))


def test_noise():
    t = gold("noise_t").double()
    for (name,) in cases(r"noise_(\w+)_move_chance"):
        schedule = SCHEDULES[name]
        share, slope = schedule.mask_prob(t), schedule.mask_prob(t) * schedule.weight(t)
        eps = schedule.eps if name == "cosine" else 0
        # their cosine masks a share of eps at t = 0, where ours leaves eps unmasked at t = 1, and
        # their weight has eps once more in its denominator
        close(share + eps, f"noise_{name}_move_chance", 1e-5, 1e-6)
        close(-slope / (share + 2 * eps), f"noise_{name}_loss_scaling", 1e-5, 1e-6)


@torch.no_grad()
def test_one_pass_over_noised_and_clean(net):
    x0, xt = gold("x0"), gold("xt")
    seen = xt.view(-1, SIZE)
    sigma = {"dit_train_logits": torch.zeros(len(x0)), "dit_train_logits_sigma": gold("dit_sigma")}
    for name, each in sigma.items():
        h = NoisyAndClean(net, x0, None, per_row=True).features(seen, each)
        close(net.logits(h).view(*x0.shape, -1), name)


@torch.no_grad()
def test_cached_blocks(net):
    """Row by row as recorded: noised blocks one after another, clean ones in the cache."""
    x0, xt = gold("x0"), gold("xt")
    rows = len(gold("dit_kvcache_logits"))
    walk, found = decoder(net, x0[:rows].clone()), []
    for block in range(walk.blocks):
        here = slice(block * SIZE, (block + 1) * SIZE)
        walk.x[:, here] = xt[:rows, here]
        found.append(net.logits(look(walk, block)))
        walk.x[:, here] = x0[:rows, here]
    close(torch.cat(found, 1), "dit_kvcache_logits")


@torch.no_grad()
def test_block_causal_pass(net):
    """All blocks of a canvas at once, as a prompt is stored, and its last block from the cache."""
    xt = gold("xt")
    T = xt.shape[1]
    mask = block_mask(T, SIZE, xt.device)[None, T:, T:]
    ours = net.logits(net.features(xt, torch.zeros(len(xt)), mask))
    close(ours, "dit_sample_logits")
    walk = decoder(net, xt)
    last = net.logits(look(walk, walk.blocks - 1))
    torch.testing.assert_close(last, ours[:, -last.shape[1] :], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low, high", cases(r"loss_([\d.]+)_([\d.]+)"))
def test_loss(net, monkeypatch, low, high):
    """The training loss, fed the recorded uniforms; the first token is given, as there."""
    name, x0 = f"{low}_{high}", gold("x0")
    t_u, q_u = gold("t_u"), gold("q_u")
    drawn = iter([t_u.flatten(), q_u.view(-1, SIZE)])
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: next(drawn))
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    ours, seen = process(float(low), float(high)), {}
    times, score = ours.times, ours.cross_entropy

    def watch_times(*given):
        seen["t"], weight = times(*given)
        return seen["t"], weight

    def watch_score(net, noisy):
        seen["masked"] = noisy.scored
        seen["scored"] = score(net, noisy)
        return seen["scored"]

    monkeypatch.setattr(ours, "times", watch_times)
    monkeypatch.setattr(ours, "cross_entropy", watch_score)
    given = torch.zeros_like(x0, dtype=torch.bool)
    given[:, 0] = True
    batch = Batch(x0, given, torch.full((len(x0),), x0.shape[1]))
    loss = ours.loss(net, ours.corrupt(batch, generator(0)))
    close(seen["t"].repeat_interleave(SIZE).view_as(x0), f"t_{name}", 1e-6, 1e-6)
    _, each, _ = seen["scored"]
    each = torch.zeros(seen["masked"].shape).masked_scatter(seen["masked"], each.detach())
    close(each.view_as(x0), f"loss_{name}")
    assert float(loss.sum.detach()) == pytest.approx(float(gold(f"loss_{name}").sum()), rel=1e-5)
    noised = cells(batch, SIZE).ids.masked_fill(seen["masked"], MASK).view_as(x0)
    assert torch.equal(noised == MASK, gold(f"loss_{name}") > 0)


@torch.no_grad()
def test_step_laws(net):
    """A step from t to s leaves a masked place masked with probability share(s) / share(t), and
    otherwise draws from the network: what `ancestral` does place by place. Recorded before the
    tokens that are no MASK are copied: the network's law for them is certainty."""
    xt, noise = gold("xt"), Power()
    walk = decoder(net, xt)
    h = look(walk, walk.blocks - 1)
    x = xt[:, -h.shape[1] :]
    p = walk.logits(h.flatten(0, 1)).softmax(-1).double().view(*x.shape, -1)
    certain = torch.nn.functional.one_hot(x, p.shape[-1]).double()
    p = torch.where((x == MASK)[..., None], p, certain)
    lengths = dict(re.findall(r"\(([\d.]+),([\d.]+)\)", FACTS["notes"]))
    assert set(lengths) == {t for (t,) in cases(r"ddpm_t([\d.]+)_qxs")}
    for at, dt in lengths.items():
        t = torch.tensor(float(at), dtype=torch.float64)
        stay = noise.mask_prob(t - float(dt)) / noise.mask_prob(t)
        law = p * (1 - stay)
        law[..., MASK] = stay
        close(law, f"ddpm_t{at}_qxs", 1e-4, 1e-6)


@pytest.mark.parametrize("top_p", [p for (p,) in cases(r"nucleus_([\d.]+)")])
def test_nucleus(top_p):
    """Theirs leaves out the token that crosses the limit, unless it is the first; ours keeps it, as
    is usual. They agree on all the others. Theirs acts on the last block only."""
    p = gold("nucleus_in").double()
    want = p.clone()
    z = process_logits(p[:, -SIZE:].log().flatten(0, 1), SampleOptions(top_p=float(top_p)))
    kept = z > -torch.inf
    crossing = z.masked_fill(~kept, torch.inf).argmin(1, keepdim=True)
    kept = kept.scatter(1, crossing, kept.sum(1, keepdim=True) == 1)
    law = torch.where(kept, p[:, -SIZE:].flatten(0, 1), 0)
    want[:, -SIZE:] = (law / law.sum(1, keepdim=True)).view_as(want[:, -SIZE:])
    close(want, f"nucleus_{top_p}", 1e-5, 1e-6)


def test_zz_every_array_is_used(request):
    """Runs last. Only where the whole file runs is the set of compared arrays complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert set(ARRAYS) - USED == set()
