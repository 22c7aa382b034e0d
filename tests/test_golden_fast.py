"""Fast and remasking samplers against recorded numbers: Fast-dLLM, dllm, Dream, ReMDM.

The files are `$GOLDEN_DIR/masked_$GOLDEN_SET.fast.{npz,json}`; every size, case and name is read
from them, so that another set of the same layout can be run. The last test fails if an array was
never compared, so nothing recorded can be wrong unnoticed.
"""

import itertools
import re

import pytest
import torch
from exact import Given, Table
from recorded import Recorded

import diffusion
from diffusion import (
    REMASKING,
    Masked,
    MaskedSampler,
    Power,
    above_threshold,
    num_transfer_tokens,
    ranks,
    within_factor,
)
from objective import SampleOptions, generator, sample_categorical

RECORDED = Recorded("masked", "fast")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold, close, same, cases = RECORDED.gold, RECORDED.close, RECORDED.same, RECORDED.cases


# ---- how many, and which -------------------------------------------------------------------------


@pytest.mark.parametrize("fact", FACTS["dllm_counts"], ids=str)
def test_counts(fact):
    schedule = fact["scheduler"].removesuffix("AlphaScheduler").lower()
    [ours] = num_transfer_tokens(torch.tensor([fact["masks"]]), fact["steps"], schedule).tolist()
    assert [count for count in ours if count] == fact["counts"]


@pytest.fixture(scope="module")
def proposed():
    """Rows and scores (R,) of the masked places, as our sampler finds them."""
    x, places, outputs = gold("ti_x"), gold("ti_mask"), gold("ti_logits")
    V = outputs.shape[-1]
    free = type("Free", (MaskedSampler,), {"never": lambda self: []})  # MASK is a token there
    options = SampleOptions(sampler="confidence", temperature=0.0)
    decoder = free(Masked(V, V - 1, Power()), Given(outputs), x, ~places, generator(0), options)
    row, col = decoder.masked_positions()
    h = decoder.forward(row, col, torch.ones(len(x)).double())
    token = sample_categorical(decoder.logits(h), options, None)
    same(x.index_put((row, col), token), "ti_x0")
    return row, decoder.scores(row, col, h)


RULES = {
    "threshold": above_threshold,
    "factor": within_factor,
    "topk": lambda row, score, count: ranks(row, score) < count,
}


@pytest.mark.parametrize("name", cases(r"ti_((?:threshold|factor|topk)[\d.]+)"))
def test_selection(name, proposed):
    rule, number = re.fullmatch(r"([a-z]+)([\d.]+)", name).groups()
    row, score = proposed
    chosen = RULES[rule](row, score, float(number))
    same(torch.zeros_like(gold("ti_mask")).masked_scatter(gold("ti_mask"), chosen), f"ti_{name}")


SCORES = {"maskgit_plus": "confidence", "topk_margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("name", cases(r"dream_(\w+)_conf"))
def test_scores(name):
    """Dream's entropy score is -H, ours e^-H."""
    logp = gold("dream_logits").log_softmax(1)
    same(logp.argmax(1), f"dream_{name}_x0")
    ours = diffusion.ORDERS[SCORES[name]](logp, None, None, None)
    close(ours.log() if name == "entropy" else ours, f"dream_{name}_conf")


# ---- whole samplers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACTS["fast_generate"])
def test_generate(name):
    """Ids, the canvas at every call of the network, and their number. No recorded step is idle."""
    fact, prompt = FACTS["fast_generate"][name], gold(f"fg_{name}_prompt")
    net = Table(*(gold(f"fg_{name}_{part}") for part in "ABCG"))
    T = prompt.shape[1] + fact["gen_length"]
    ids = torch.full((len(prompt), T), fact["mask_id"])
    ids[:, : prompt.shape[1]] = prompt
    given = (torch.arange(T) < prompt.shape[1]).expand_as(ids)
    threshold = fact["threshold"]
    options = SampleOptions(
        sampler="confidence",
        temperature=0.0,
        steps=fact["steps"],
        block_length=fact["block_length"],
        unmask_schedule="uniform" if threshold is None else "threshold",
        threshold=threshold or 0.0,
    )
    process = Masked(len(net.B), fact["mask_id"], Power())
    *_, last = process.sample(net, ids, given, generator(0), options)
    same(last.ids, f"fg_{name}_out")
    same(torch.stack([*net.calls, last.ids]), f"fg_{name}_states")
    assert len(net.calls) == fact["nfe"]


# ---- remasking -----------------------------------------------------------------------------------


TIMES = cases(r"remdm_mdlm_t(.+)_q")
LAWS = cases(r"remdm_(.+)_t[\d.]+_q")
TOLD = {
    key: float(re.search(rf"{key}[= ](\d*\.\d+)", FACTS["remdm"])[1])
    for key in ("dt", "eta", "t_on", "t_off", "alpha_on")
}


@pytest.fixture
def canvas(monkeypatch):
    """Our sampler on the recorded canvas, with the recorded trust in what is written there."""
    for key, told in {"LOOP_ON": "t_on", "LOOP_OFF": "t_off", "LOOP_ALPHA": "alpha_on"}.items():
        monkeypatch.setattr(diffusion, key, TOLD[told])
    x, outputs = gold("remdm_x"), gold("remdm_logits")
    V = outputs.shape[-1]
    open_ = torch.zeros_like(x, dtype=torch.bool)
    options = SampleOptions(sampler="ancestral", remask="conf")
    decoder = MaskedSampler(
        Masked(V, V - 1, Power()), Given(outputs), x, open_, generator(0), options
    )
    decoder.x = x
    decoder.confidence = -gold("remdm_conf_in").double()
    return decoder


def predictions(decoder):
    """(B, T, V): the law of the token at masked places, the token itself at written ones."""
    x, V = decoder.x, decoder.objective.network_kwargs["vocab_size"]
    p = torch.nn.functional.one_hot(x, V).double()
    row, col = decoder.masked_positions()
    h = decoder.forward(row, col, torch.full((len(x),), 0.5).double())
    p[row, col] = decoder.logits(h).double().softmax(1)
    return p


def forward_backward(t, s, trust):
    """ReMDM's form of the forward-backward sampler: what sigma has to be. We do not offer it: in
    it, a written token is doubted whenever a masked one is written."""
    return diffusion.RemaskStep(1 - t, 1 - s, torch.full_like(trust, (t - s) / (1 - t)))


@pytest.mark.parametrize("name, time", [*itertools.product(LAWS, TIMES)])
def test_law_of_a_step(name, time, canvas):
    """A written token has weight 1 - sigma, and sigma is that of MASK. Where there is no doubt, the
    recorded rows are not normalised: they add up to the share of masked places, 1 - alpha_t. ReMDM
    then overwrites those of written tokens by copies; they are the rows of a masked place that is
    sure of its token."""
    t, kind = float(time), name.removeprefix("remdm-")
    s = t - TOLD["dt"]
    if kind == "forward-backward":
        found = forward_backward(t, s, canvas.confidence)
    elif kind == "mdlm":
        found = diffusion.RemaskStep(1 - t, 1 - s, torch.zeros_like(canvas.confidence))
    else:
        found = REMASKING[kind].step(t, s, TOLD["eta"], canvas.confidence)
    p, mask, reveal = predictions(canvas), canvas.mask_id, found.unmask_prob()[..., None]
    masked = reveal * p
    masked[..., mask] += (1 - reveal)[..., 0]
    kept = (1 - found.sigma)[..., None] * p
    kept[..., mask] += found.sigma
    copied = kind == "mdlm" or (kind == "loop" and not (found.sigma > 0).any())
    written = (canvas.x != mask)[..., None] & (not copied)
    law = torch.where(written, kept, masked) * (1 - found.alpha_t if copied else 1)
    close(law, f"remdm_{name}_t{time}_q")


@pytest.mark.parametrize("time", cases(r"remdm_conf_out_t(.+)"))
def test_trust_is_kept(time, canvas, monkeypatch):
    """The recorded step is one that ours can take, and leaves the same trust: that of a written
    token is its probability, and a forgotten one has none."""
    after = -gold(f"remdm_conf_out_t{time}").double()
    p, masked = predictions(canvas), canvas.x == canvas.mask_id
    row, col = canvas.masked_positions()
    wrote = after.isfinite()[row, col]
    gap = (p[row, col] - after[row, col][:, None]).abs()[wrote]
    assert (gap.amin(1) < 1e-6).all()  # each is the probability of a token: that was drawn
    monkeypatch.setattr(MaskedSampler, "sample_categorical", lambda *_: gap.argmin(1))
    h = canvas.forward(row, col, torch.full((len(masked),), 0.5).double())
    canvas.unmask(row[wrote], col[wrote], h[wrote])
    canvas.remasked = ~masked & after.isinf()
    canvas.mask_again()
    close(-canvas.confidence, f"remdm_conf_out_t{time}")


def test_zz_every_array_is_used(request):
    """Runs last. Only where the whole file runs is the set of compared arrays complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert set(ARRAYS) - USED == set()
