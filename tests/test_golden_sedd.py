"""SEDD against numbers recorded from the reference implementation.

The files are `$GOLDEN_DIR/sedd_$GOLDEN_SET.{npz,json}`; every size, case and name is read from
them, so that another set of the same layout can be run. The last test fails if an array was never
compared, so nothing recorded can be wrong unnoticed.
"""

import re

import pytest
import torch
from exact import Given
from recorded import Recorded

from checkpoint import load_weights
from diffusion import (
    SAMPLE_EPS,
    STEPS,
    Absorbing,
    Geometric,
    LogLinear,
    ScoreEntropy,
    Uniform,
    denoise_weights,
    grid,
    reverse_rate,
)
from model import Transformer
from objective import gumbel_argmax
from pretrained.published import from_sedd, to_sedd
from train import lr_multiple, update_ema

RECORDED = Recorded("sedd")
ARRAYS, FACTS, USED = RECORDED.arrays, RECORDED.facts, RECORDED.used
gold, close, same = RECORDED.gold, RECORDED.close, RECORDED.same
GRAPHS = [g for g in ("absorb", "uniform") if f"{g}.sd.vocab_embed.embedding" in ARRAYS]


def cases(graph, pattern):
    """Distinct first groups of `pattern` among the names below `graph`."""
    got = (re.match(rf"{graph}\.{pattern}", name) for name in ARRAYS)
    return sorted({m[1] for m in got if m})


def schedule(name):
    sizes = FACTS["arrays"].get("noise.geometric_cfg.sigma", {}).get("desc", "")
    got = re.search(r"sigma_min=(\S+) sigma_max=(\S+)", sizes)
    low, high = map(float, got.groups()) if got else (1e-4, 20.0)
    return Geometric(low, high) if name == "geometric" else LogLinear()


class Case:
    """Network, graph and objective of one of the recorded graphs."""

    def __init__(self, name):
        cfg, self.name = FACTS["config"], name
        state = {k.split(".sd.")[1]: gold(k) for k in ARRAYS if k.startswith(f"{name}.sd.")}
        V = len(state["vocab_embed.embedding"])
        self.layers = cfg["n_blocks"]
        sizes = (self.layers, cfg["n_heads"], cfg["hidden_size"], cfg["cond_dim"])
        self.net = Transformer(V, *sizes).eval()
        load_weights(self.net, from_sedd(state), name)
        half = self.net.n_embd // self.net.n_head // 2
        power = torch.arange(half, dtype=torch.float64) / half
        close(10000**-power, f"{name}.sd.rotary_emb.inv_freq", 1e-6, 0)
        self.graph = Absorbing(V - 1, cfg["absorb"]["mask_id"]) if name == "absorb" else Uniform(V)
        self.objective = ScoreEntropy(self.graph, LogLinear(), cfg[name]["scale_by_sigma"])

    @torch.no_grad()
    def log_score(self, ids, sigma):
        """(B, T), (B,) -> (B, T, V)."""
        h = self.net.features(ids, sigma)
        each = sigma[:, None].expand_as(ids).flatten()
        return self.objective.log_score(self.net, h.flatten(0, 1), ids.flatten(), each).unflatten(
            0, ids.shape
        )


@pytest.fixture(scope="module", params=GRAPHS)
def case(request):
    return Case(request.param)


# ---- parts ---------------------------------------------------------------------------------------


def test_noise():
    t = gold("noise.t").double()
    for name in cases("noise", r"(\w+)\.sigma"):
        described = FACTS["arrays"][f"noise.{name}.sigma"]["desc"]
        limits = re.search(r"sigma_min=(\S+) sigma_max=(\S+)", described)
        noise = Geometric(*map(float, limits.groups())) if limits else LogLinear()
        close(noise.total(t), f"noise.{name}.sigma", 2e-5, 1e-7)
        close(noise.rate(t), f"noise.{name}.dsigma", 2e-5, 1e-7)


def test_categorical_race():
    same(gumbel_argmax(gold("cat.probs"), gold("cat.u")), "cat.idx")


@pytest.mark.parametrize("name", cases("ema", r"(\w+)\.params"))
def test_ema(name):
    from configurator import Config

    params = gold(f"ema.{name}.params")
    described = FACTS["arrays"][f"ema.{name}.shadow"]["desc"]
    decay = float(re.search(r"decay=([\d.]+)", described)[1])
    cfg = Config(ema_decay=decay, ema_warmup="use_num_updates=True" in described)
    shadow = [params[0].clone()]
    rows = [shadow[0].clone()]
    for k in range(1, len(params)):
        update_ema(shadow, [params[k]], k, cfg)
        rows.append(shadow[0].clone())
    close(torch.stack(rows), f"ema.{name}.shadow", 1e-5, 1e-6)


@pytest.mark.parametrize("name", cases("lr", r"(\w+)_mult"))
def test_lr(name):
    from configurator import Config

    described = FACTS["arrays"][f"lr.{name}_mult"]["desc"]
    warmup = int(re.search(r"warmup=(\d+)", described)[1])
    total = re.search(r"n_iters=(\d+)", described)
    kind = "flat_cosine" if total else "constant"
    cfg = Config(warmup_iters=warmup, lr_schedule=kind, max_iters=int(total[1]) if total else 10**9)
    ours = torch.tensor([lr_multiple(int(k), cfg) for k in gold("lr.step")])
    close(ours, f"lr.{name}_mult", 1e-5, 1e-7)


# ---- network -------------------------------------------------------------------------------------


def test_forward(case):
    name, net = case.name + ".fwd.", case.net
    ids, sigma = gold(name + "ids"), gold(name + "sigma")
    clean = gold(name + "x0")  # no input of the forward pass; it must be the text behind `ids`
    assert clean.shape == ids.shape
    if case.name == "absorb":
        assert torch.equal(clean[ids != case.graph.mask_id], ids[ids != case.graph.mask_id])
    for noise in cases(case.name, r"loss\.(\w+)\.x0"):
        same(clean, f"{case.name}.loss.{noise}.x0")
    hidden = []
    hooks = [b.register_forward_hook(lambda m, i, o: hidden.append(o)) for b in net.blocks]
    close(net.time.sinusoids(sigma), name + "t_freq", 2e-4, 2e-5)
    embedded = net.time.proj(torch.nn.functional.silu(net.time.fc(net.time.sinusoids(sigma))))
    close(embedded, name + "sigma_emb", 2e-4, 2e-5)
    close(net.time(sigma), name + "cond", 2e-4, 2e-5)
    close(net.logits(net.features(ids, sigma)), name + "logits_raw", 2e-4, 2e-5)
    for i, h in enumerate([net.embed(ids), *hidden]):
        close(h, f"{name}h{i}", 2e-4, 2e-5)
    close(case.log_score(ids, sigma), name + "log_score", 2e-4, 2e-5)
    for hook in hooks:
        hook.remove()


def test_score_entropy(case):
    """The loss that we train with, fed the recorded log-scores."""
    name = case.name + ".se."
    x, x0, sigma = gold(name + "x"), gold(name + "x0"), gold(name + "sigma")[:, 0]
    process = ScoreEntropy(case.graph, LogLinear(), scale_by_sigma=False)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    net = Given(gold(name + "score"))
    _, each, _, _ = process.score_entropy(
        net, process.noisy(x0, x, everywhere, sigma, torch.ones_like(sigma))
    )
    scored = x == case.graph.mask_id if case.name == "absorb" else everywhere
    ours = torch.zeros(x.shape).masked_scatter(scored, each)
    close(ours, name + "out", 2e-4, 2e-5)


@pytest.mark.parametrize("noise", ["loglinear", "geometric"])
def test_loss_and_gradients(case, noise):
    name = f"{case.name}.loss.{noise}."
    if name + "x0" not in ARRAYS:
        pytest.skip(f"{RECORDED.name} has no {name}*")
    x0, t = gold(name + "x0"), gold(name + "t")
    process = ScoreEntropy(case.graph, schedule(noise), case.objective.scaled)
    close(process.noise.total(t), name + "sigma", 1e-4, 1e-6)
    close(process.noise.rate(t), name + "dsigma", 1e-4, 1e-6)
    sigma, rate = gold(name + "sigma"), gold(name + "dsigma")
    other = gold(name + "r") if name + "r" in ARRAYS else None
    xt = case.graph.move(x0, sigma[:, None], gold(name + "u"), other)
    same(xt, name + "xt")
    case.net.zero_grad()
    written = torch.ones_like(x0, dtype=torch.bool)
    nats, each, row, _ = process.score_entropy(
        case.net, process.noisy(x0, xt, written, sigma, rate)
    )
    close(torch.zeros(len(x0)).index_add_(0, row, each), name + "per_seq", 1e-4, 1e-5)
    close(nats / len(x0), name + "mean", 1e-4, 1e-5)
    (nats / len(x0)).backward()
    grads = to_sedd({k: p.grad for k, p in case.net.named_parameters()}, case.layers)
    names = [k for k in ARRAYS if k.startswith(name + "grad.")]
    assert {k.split(".grad.")[1] for k in names} == set(grads)
    for k in names:
        close(grads[k.split(".grad.")[1]], k, 1e-3, 1e-3 * float(gold(k).abs().max()))
    norm = torch.nn.utils.get_total_norm([p.grad for p in case.net.parameters()])
    close(norm, name + "grad_norm", 1e-3, 0)


# ---- graph and steps -----------------------------------------------------------------------------


def test_graph(case):
    name, graph = case.name + ".graph.", case.graph
    ids, sigma = gold(name + "ids"), gold(name + "sigma").double()
    score = gold(name + "log_score").double().exp()
    for part in ("rate", "transp_rate"):
        close(getattr(graph, part)(ids), name + part, 1e-5, 1e-6)
    for part in ("transition", "transp_transition"):
        close(getattr(graph, part)(ids, sigma), name + part, 1e-4, 1e-6)
    close(graph.staggered_score(score, sigma.expand_as(ids)), name + "staggered", 2e-4, 2e-5)
    close(reverse_rate(graph, ids, score), name + "reverse_rate", 2e-4, 2e-5)


def step_weights(case, x, step, t, dt, noise):
    """Weights (B, T, V) of one step from time t to t - dt, all float64 but the network."""
    t, dt = torch.as_tensor(t, dtype=torch.float64), torch.as_tensor(dt, dtype=torch.float64)
    sigma = noise.total(t)
    score = case.log_score(x, sigma.float().expand(len(x))).double().exp()
    if step == "denoise":
        return denoise_weights(case.graph, x, score, sigma.expand_as(x))
    dsigma = dt * noise.rate(t) if step == "euler" else sigma - noise.total(t - dt)
    return STEPS[step](case.graph, x, score, dsigma.expand_as(x))


def test_steps(case):
    ids = gold(case.name + ".fwd.ids")
    for kind in cases(case.name, r"step\.(\w+)\.t"):
        name = f"{case.name}.step.{kind}."
        t, dt = gold(name + "t"), gold(name + "dt")
        for step in ("analytic", "euler"):
            weights = step_weights(case, ids, step, t, dt, LogLinear())
            close(weights, name + step, 1e-3, 1e-5)
            if step == "analytic":  # the fork's mean of both ends, which `Walk` takes per pair
                paired = (weights + weights.flip(1)) / 2
                close(paired, name + "analytic_palindrome", 1e-3, 1e-5)


def test_denoise(case):
    ids = gold(case.name + ".fwd.ids")
    for kind in cases(case.name, r"denoise\.(\w+)\.t"):
        name = f"{case.name}.denoise.{kind}."
        weights = step_weights(case, ids, "denoise", gold(name + "t"), 0, LogLinear())
        close(weights[..., : gold(name + "probs").shape[-1]], name + "probs", 1e-3, 1e-5)


@pytest.mark.parametrize("graph", GRAPHS)
def test_trajectories(graph):
    """Whole samplers, replayed with their recorded noise, are equal id by id."""
    case = Case(graph)
    for run in cases(graph, r"traj\.(\w+)\.x_init"):
        name, noise = f"{graph}.traj.{run}.", schedule(run.split("_")[-1])
        step = "euler" if run.startswith("euler") else "analytic"
        u, x, want = gold(name + "u"), gold(name + "x_init"), gold(name + "x_steps")
        clamped = name + "locs" in ARRAYS

        def project(x, name=name, clamped=clamped):
            return x.index_copy(1, gold(name + "locs"), gold(name + "vals")) if clamped else x

        times = grid(len(u))
        dt = (1 - SAMPLE_EPS) / len(u)
        for i in range(len(u)):
            weights = step_weights(case, project(x), step, times[i], dt, noise)
            x = gumbel_argmax(weights, u[i])
            assert torch.equal(x, want[i]), f"{name} step {i}"
        noise_left = gold(name + "u_denoise")
        weights = step_weights(case, project(x), "denoise", SAMPLE_EPS, 0, noise)
        x = gumbel_argmax(weights[..., : noise_left.shape[-1]], noise_left)
        assert torch.equal(x, want[-1]), f"{name} denoiser"
        same(project(x), name + "x_final")


def test_zz_every_array_is_used(request):
    """Runs last. Only where the whole file runs is the set of compared arrays complete."""
    ran = {i.function.__name__ for i in request.session.items if i.fspath == request.node.fspath}
    everything = {n for n in globals() if n.startswith("test_")}
    if ran != everything:
        pytest.skip("a part of this file runs")
    assert set(ARRAYS) - USED == set()
