"""MDLM against numbers recorded from its own code: noise, bounds, steps, samplers, network.

The files are `$GOLDEN_DIR/masked_$GOLDEN_SET.mdlm.{npz,json}`; every size, case and name is read
from them, so that another set of the same layout can be run. The last test fails if an array was
never compared, so nothing recorded can be wrong unnoticed.
"""

import re

import pytest
import torch
from exact import Given, Table
from recorded import Recorded

import diffusion
from checkpoint import load_weights
from configurator import Config
from corpus import Batch
from diffusion import (
    Absorbing,
    Cosine,
    Geometric,
    Linear,
    LogLinear,
    Masked,
    MaskedSampler,
    Power,
    ScoreEntropy,
    analytic_weights,
    denoise_weights,
    grid,
    importance,
)
from model import Transformer
from objective import SampleOptions, generator, gumbel_argmax
from pretrained.published import from_sedd, to_sedd
from train import update_ema

RECORDED = Recorded("masked", "mdlm")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold, close, same, cases = RECORDED.gold, RECORDED.close, RECORDED.same, RECORDED.cases
MASK = FACTS["mask_index"]


def table(timed=False):
    return Table(*(gold(f"toy_{part}") for part in "ABCGS"[: 5 if timed else 4]))


def process(noise=None, **options):
    return Masked(FACTS["V"], MASK, noise or LogLinear(), **options)


# ---- noise ---------------------------------------------------------------------------------------

SCHEDULES = {
    "loglinear": LogLinear(),
    "cosine": Cosine(),
    "cosinesqr": Cosine(2),
    "linear": Linear(),
    "geometric": Geometric(),
}


@pytest.mark.parametrize("name", cases(r"noise_(\w+)_total"))
def test_noise(name):
    t = gold("noise_t")
    close(SCHEDULES[name].total(t), f"noise_{name}_total")
    close(SCHEDULES[name].rate(t), f"noise_{name}_rate", 2e-5)


@pytest.mark.parametrize("name", cases(r"noise_(\w+)_importance"))
def test_importance(name):
    """The range of sigma that it covers is that of the file, where it has one."""
    close(importance(SCHEDULES[name], gold("noise_t"))[0], f"noise_{name}_importance", atol=3e-6)
    if f"noise_{name}_sigma_max" not in ARRAYS:
        return
    close(SCHEDULES[name].total(torch.ones(())), f"noise_{name}_sigma_max")
    _, weight = importance(SCHEDULES[name], torch.zeros(()))
    least = gold(f"noise_{name}_sigma_min").double()
    assert weight == pytest.approx(float(-torch.log(-torch.expm1(-least))), rel=1e-6)


@pytest.mark.parametrize("name", cases(r"tsamp_(anti\d_imp\d)"))
def test_times(name, monkeypatch):
    """One in each of n strata, or (anti0) anywhere; as they are or by importance."""
    u = gold("tsamp_u")
    monkeypatch.setattr(torch, "rand", lambda *_, **__: u)
    if "anti0" in name:
        monkeypatch.setattr(diffusion, "low_discrepancy_uniform", lambda B, rng: u)
    t, _ = process(by_importance="imp1" in name).times(len(u), generator(0))
    close(t, f"tsamp_{name}")


# ---- bounds --------------------------------------------------------------------------------------


def log_law(outputs, x):
    """MDLM's parametrisation, by our sampler: the law of the token at masked places (B, T, V), and
    certainty of what is written."""
    decoder = MaskedSampler(process(), Given(outputs), x, x != MASK, None, SampleOptions())
    row, col = decoder.masked_positions()
    logp = torch.full(outputs.shape, -torch.inf).scatter(2, x[..., None], 0.0)
    if len(row):
        h = decoder.forward(row, col, torch.ones(len(x)).double())
        logp[row, col] = decoder.logits(h)
    return logp


def test_parametrisation():
    """MDLM has -1e6 where we have -inf, added to the logit of MASK at masked places."""
    outputs, x = gold("subs_logits"), gold("subs_xt")
    ours = log_law(outputs, x)
    sunk = torch.full_like(ours, -1e6)
    tokens = outputs.index_fill(2, torch.tensor(MASK), -torch.inf)
    sunk[..., MASK] += torch.where(x == MASK, outputs[..., MASK] - tokens.logsumexp(2), 0.0)
    close(torch.where(ours.isinf(), sunk, ours), "subs_logprobs", 1e-6)


class Recorded(Masked):
    """Keeps what it scored last: noised ids, and the loss of each place."""

    def cross_entropy(self, net, noisy):
        total, each, row = super().cross_entropy(net, noisy)
        self.xt = noisy.xt
        self.each = torch.zeros(noisy.xt.shape).masked_scatter(noisy.scored, each.float())
        return total, each, row


def batch_of(ids):
    return Batch(ids, torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids[:, 0], 99))


@pytest.fixture
def replayed(monkeypatch):
    """replayed(t): from here on times are t and uniforms are the recorded ones."""

    def replay(t):
        low, u = LogLinear.t_min, gold("nelbo_u")
        for module in (diffusion,):
            monkeypatch.setattr(
                module, "low_discrepancy_uniform", lambda B, rng: (t - low) / (1 - low)
            )
        monkeypatch.setattr(torch, "rand", lambda *_, **__: u)

    return replay


def token_losses(mode, replayed, monkeypatch):
    """Our loss in a mode of MDLM -> (objective with what it scored, loss summed, t (B,))."""
    options, t = {}, gold("nelbo_t")
    steps = re.search(r"_T(\d+)", mode)
    if steps:
        t = ((t * int(steps[1])).floor() + 1) / int(steps[1])
    if "_imp" in mode or "_cov" in mode:
        options["by_importance"] = True
    if "_imp" in mode:  # there the recorded t is what importance has given
        own = diffusion.importance
        monkeypatch.setattr(diffusion, "importance", lambda noise, t: (t, own(noise, t)[1]))
    replayed(t)
    made = Recorded(FACTS["V"], MASK, LogLinear(), **options)
    ids = gold("nelbo_x0")
    loss = made.loss(table(mode.endswith("_tc")), made.corrupt(batch_of(ids), generator(0)))
    assert loss.count == ids.numel()
    return made, loss.sum.float(), t


SUBS = [m for m in cases(r"nelbo_(.+)_loss") if m.startswith("subs_")]
D3PM = [m for m in cases(r"nelbo_(.+)_loss") if m.startswith("d3pm_")]


def moved(mode, t):
    if "_cov" in mode:
        t, _ = importance(LogLinear(), t)
    return LogLinear().mask_prob(t)[:, None]


@pytest.mark.parametrize("mode", SUBS)
def test_bound(mode, replayed, monkeypatch):
    """Per token, in continuous time, by importance, and with T steps, whose weight is 1 / t as
    well: T times the step's KL (MDLM, eq. 8), for t at the end of a step."""
    made, nats, t = token_losses(mode, replayed, monkeypatch)
    same(made.xt, f"nelbo_{mode}_xt")
    close(moved(mode, t), f"nelbo_{mode}_movechance")
    want = gold(f"nelbo_{mode}_loss").clone()
    if "_T" in mode:  # at t = 1 MDLM takes 1 - 1e-4, so that its logarithms are finite
        want *= t.clamp(max=1 - 1e-4)[:, None] / t[:, None]
    torch.testing.assert_close(made.each, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nats, want.sum(), rtol=1e-5, atol=1e-6)


def test_mean_over_what_counts(replayed, monkeypatch):
    """The mean over places that are not padding (MDLM noises padding too, and its toy sees it)."""
    made, _, _ = token_losses("subs_ct", replayed, monkeypatch)
    counts = gold("nelbo_attention_mask")
    close((made.each * counts).sum() / counts.sum(), "nelbo_total_loss_masked")


def test_score_entropy_mode(replayed):
    """nelbo_sedd_ct: score entropy, its network's outputs shifted by log(e^sigma - 1) + log n."""
    kept = []

    class Kept(ScoreEntropy):
        def score_entropy(self, net, noisy):
            total, each, row, ce = super().score_entropy(net, noisy)
            kept.append(
                (noisy.xt, torch.zeros(noisy.xt.shape).masked_scatter(noisy.scored, each.float()))
            )
            return total, each, row, ce

    for mode in cases(r"nelbo_(sedd_.+)_loss"):
        replayed(gold("nelbo_t"))
        made = Kept(Absorbing(FACTS["V"] - 1, MASK), LogLinear(), scale_by_sigma=True)
        loss = made.loss(table(True), made.corrupt(batch_of(gold("nelbo_x0")), generator(0)))
        xt, each = kept[-1]
        same(xt, f"nelbo_{mode}_xt")
        close(moved(mode, gold("nelbo_t")), f"nelbo_{mode}_movechance")
        close(each, f"nelbo_{mode}_loss")
        torch.testing.assert_close(
            loss.sum.float(), gold(f"nelbo_{mode}_loss").sum(), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("mode", D3PM)
def test_d3pm(mode, replayed, monkeypatch):
    """MDLM's other parametrisation, in which written places are predicted too and MASK may be
    probable. Not offered here: the formula is the test's own, on our noised ids and network."""
    made, _, t = token_losses(mode, replayed, monkeypatch)
    same(made.xt, f"nelbo_{mode}_xt")
    close(moved(mode, t), f"nelbo_{mode}_movechance")
    x0, dt = gold("nelbo_x0")[..., None], 1 / int(re.search(r"_T(\d+)", mode)[1])
    t = t.clamp(max=1 - 1e-4)[:, None].double()

    def logp(ids):
        z = table().features(ids)
        if "subsmask" in mode:
            z[..., MASK] = -torch.inf
        return z.log_softmax(-1)

    at_mask, right = logp(made.xt)[..., MASK].exp(), logp(made.xt).gather(2, x0)[..., 0]
    before, after = ((1 - s) * at_mask / s + 1 for s in (t, t - dt))
    before, after = before.log(), ((1 - t + dt) * at_mask / (t - dt) + 1).log()
    bound = dt / t * (before - right) + (1 - dt / t) * (before - after)
    rebuilt = -logp(gold("nelbo_x0")).gather(2, x0)[..., 0]
    close(bound * (made.xt == MASK) / dt + rebuilt, f"nelbo_{mode}_loss", 1e-4, 1e-4)


# ---- steps ---------------------------------------------------------------------------------------


def law(noise, outputs, x, t, s):
    """Weights (B, T, V) of the state at s given x at t, not normalised: those of a masked place add
    up to the share of masked ones at t. The share revealed is the ancestral sampler's: `due`."""
    high, low = (noise.mask_prob(torch.tensor(time, dtype=torch.float64)) for time in (t, s))
    weights = log_law(outputs, x).double().exp() * (high - low)
    weights[..., MASK] += low
    return weights


def scored(outputs, x, t):
    """Our score (B, T, V) float64 at time t, and sigma there."""
    made = ScoreEntropy(Absorbing(FACTS["V"] - 1, MASK), LogLinear(), normalize=True)
    sigma = LogLinear().total(torch.tensor(t, dtype=torch.float64))
    h, each = outputs.flatten(0, 1), sigma.expand(x.numel())
    score = made.log_score(Given(outputs), h, x.flatten(), each)
    return made.graph, score.double().exp().view(outputs.shape), sigma


def stepped(outputs, x, t, s):
    graph, score, sigma = scored(outputs, x, t)
    dsigma = sigma - LogLinear().total(torch.tensor(s, dtype=torch.float64))
    return analytic_weights(graph, x, score, dsigma.expand_as(x))


def denoised(outputs, x, t):
    graph, score, sigma = scored(outputs, x, t)
    return denoise_weights(graph, x, score, sigma.expand_as(x))


@pytest.mark.parametrize("name", FACTS["ddpm"])
def test_steps(name):
    """ddpm has the log-linear shares; ddpm_cache has t itself."""
    x, outputs = gold("subs_xt"), table().features(gold("subs_xt"))
    outputs, t = outputs.float(), FACTS["ddpm"][name]["t"]
    s = t - FACTS["ddpm"][name]["dt"]
    close(law(LogLinear(), outputs, x, t, s), f"ddpm_{name}_qxs")
    close(law(Power(1), outputs, x, t, s), f"ddpmcache_{name}_qxs")
    close(log_law(outputs, x).exp(), f"ddpmcache_{name}_px0")
    close(stepped(outputs, x, t, s), f"analytic_{name}_probs", 1e-4, 1e-5)


def test_denoiser():
    x, outputs = gold("subs_xt"), table().features(gold("subs_xt")).float()
    t = float(re.search(r"denoiser_probs at t=([\d.]+)", FACTS["ddpm_note"])[1])
    close(denoised(outputs, x, t)[..., : gold("denoiser_probs").shape[2]], "denoiser_probs")


@pytest.mark.parametrize("name", cases(r"sampler_(\w+)_states"))
def test_samplers(name):
    """Whole runs, replayed with the recorded uniforms, are equal id by id."""
    want, u, net = gold(f"sampler_{name}_states"), gold("sampler_u"), table()
    times, x = grid(len(u)).tolist(), torch.full_like(want[0], MASK)
    noise = {"ddpm": LogLinear(), "ddpm_cache": Power(1)}.get(name)
    for step in range(len(u)):
        assert torch.equal(x, want[step]), f"{name} step {step}"
        outputs, t, s = net.features(x).float(), times[step], times[step + 1]
        weights = law(noise, outputs, x, t, s) if noise else stepped(outputs, x, t, s)
        x = torch.where(x == MASK, gumbel_argmax(weights, u[step]), x)
    outputs = net.features(x).float()
    last = gumbel_argmax(denoised(outputs, x, times[-1]), u[0])
    x = log_law(outputs, x).argmax(2) if noise else last
    assert torch.equal(x, want[-1]), f"{name} at the end"


# ---- network -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    state = {k.removeprefix("dit_sd."): gold(k) for k in ARRAYS if k.startswith("dit_sd.")}
    sizes = dict(re.findall(r"(\w+) (\d+)", FACTS["dit"]))
    V, C = state["vocab_embed.embedding"].shape
    cond = len(state["sigma_map.mlp.0.bias"])
    assert (C, cond) == (int(sizes["hidden"]), int(sizes["cond"]))
    made = Transformer(V, int(sizes["blocks"]), int(sizes["heads"]), C, cond).eval()
    load_weights(made, from_sedd(state), "MDLM")
    half = C // made.n_head // 2
    power = torch.arange(half, dtype=torch.float64) / half
    close(10000**-power, "dit_sd.rotary_emb.inv_freq")
    return made


def test_network(net):
    x, sigma = gold("dit_x"), gold("dit_sigma")
    close(net.time.sinusoids(sigma), "dit_timefeat", 1e-5, 1e-5)
    close(net.time(sigma), "dit_cond")
    close(net.logits(net.features(x, sigma)), "dit_logits", 1e-5, 1e-5)
    close(net.logits(net.features(x, 0 * sigma)), "dit_logits_sigma0", 1e-5, 1e-5)


GRADIENTS = {
    "qkv0": "blocks.0.attn_qkv.weight",
    "embed": "vocab_embed.embedding",
    "out": "output_layer.linear.weight",
}


def test_loss_and_gradients(net, replayed):
    """Told none of the noise, as is MDLM's default."""
    replayed(gold("nelbo_t"))
    net.zero_grad()
    made = process(zero_time=True)
    loss = made.loss(net, made.corrupt(batch_of(gold("nelbo_x0")), generator(0)))
    close(loss.sum / loss.count, "dit_nelbo")
    (loss.sum / loss.count).backward()
    grads = to_sedd({k: p.grad for k, p in net.named_parameters()}, net.n_layer)
    for name in cases(r"dit_nelbo_grad_(\w+)"):
        close(grads[GRADIENTS[name]], f"dit_nelbo_grad_{name}")


def test_ema():
    """Update i has the parameters [1, i, (-1)^i]; the first decay is 2 / 11."""
    decay = float(re.search(r"decay ([\d.]+)", FACTS["ema"])[1])
    cfg, shadow, rows = Config(ema_decay=decay, ema_warmup=True), [torch.zeros(3)], []
    for i in range(len(gold("ema_shadow"))):
        update_ema(shadow, [torch.tensor([1.0, i, (-1) ** i])], i + 1, cfg)
        rows.append(shadow[0].clone())
    close(torch.stack(rows), "ema_shadow")


def test_zz_every_array_is_used(request):
    """Runs last. Only where the whole file runs is the set of compared arrays complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert set(ARRAYS) - USED == set()
