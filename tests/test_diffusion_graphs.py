"""Graphs, schedules, score entropy and steps against matrix exponentials and closed forms."""

import dataclasses
import math

import pytest
import torch
from exact import Distribution, ExactNetwork, Given

from checkpoint import build_network, build_objective
from configurator import Config, UserError
from corpus import Batch
from diffusion import (
    NOISES,
    STEPS,
    Absorbing,
    AbsorbingSampler,
    Geometric,
    LogLinear,
    ScoreEntropy,
    Uniform,
    analytic_weights,
    grid,
    reverse_rate,
)
from model import Transformer
from objective import SampleOptions, generator

GRAPHS = [Uniform(5), Absorbing(5), Absorbing(5, mask_id=2)]


def name(graph):
    return type(graph).__name__ + str(getattr(graph, "mask_id", ""))


@pytest.fixture(params=GRAPHS, ids=name)
def graph(request):
    return request.param


def rates(graph):
    """Q as a matrix, from its definition: columns are where mass flows to."""
    V = graph.states
    if not graph.absorbing:
        return torch.full((V, V), 1 / V, dtype=torch.float64) - torch.eye(V, dtype=torch.float64)
    Q = -torch.eye(V, dtype=torch.float64)
    Q[graph.mask_id] += 1
    return Q


# ---- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1e-4, 0.3, 6.9])
def test_graph_is_the_matrix_exponential(graph, sigma):
    Q, every = rates(graph), torch.arange(graph.states)
    total = torch.tensor(sigma, dtype=torch.float64)
    flow = torch.linalg.matrix_exp(total * Q)
    torch.testing.assert_close(graph.rate(every), Q.t())
    torch.testing.assert_close(graph.transp_rate(every), Q)
    torch.testing.assert_close(graph.transition(every, total), flow.t())
    torch.testing.assert_close(graph.transp_transition(every, total), flow)
    score = torch.rand(graph.states, dtype=torch.float64)
    back = torch.linalg.matrix_exp(-total * Q) @ score
    torch.testing.assert_close(graph.staggered_score(score, total), back, rtol=1e-9, atol=1e-9)


def test_reverse_rates_and_steps_conserve_mass(graph):
    x = torch.arange(graph.states).repeat(3)
    score = torch.rand(len(x), graph.states, dtype=torch.float64).scatter(1, x[:, None], 1.0)
    assert reverse_rate(graph, x, score).sum(-1).abs().max() < 1e-12
    for step in STEPS.values():
        total = step(graph, x, score, torch.full((len(x),), 0.2, dtype=torch.float64)).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=["loglinear", "geometric"])
def test_corruption(graph, noise):
    """Nothing moves without noise, all of it does at t = 1, and between them every transition has
    the frequency of the matrix exponential (5 standard errors)."""
    process = ScoreEntropy(graph, noise)
    tokens = [i for i in range(graph.states) if i != getattr(graph, "mask_id", None)]
    x0 = torch.tensor(tokens).repeat(20000, 1)  # (N, 5): each column one token
    given = torch.zeros_like(x0, dtype=torch.bool)
    none = process.perturb(x0, given, torch.zeros(len(x0)), generator(0))
    assert torch.equal(none, x0)
    for t in (0.5, 1.0):
        sigma = noise.total(torch.tensor(t))
        xt = process.perturb(x0, given, sigma.expand(len(x0)), generator(1))
        for column, token in enumerate(tokens):
            got = torch.bincount(xt[:, column], minlength=graph.states) / len(xt)
            want = graph.transition(torch.tensor(token), sigma).float()
            error = 5 * (want * (1 - want) / len(xt)).sqrt() + 1e-9
            assert ((got - want).abs() <= error).all(), (t, token)
    kept = process.perturb(x0, torch.ones_like(given), torch.full((len(x0),), 9.0), generator(2))
    assert torch.equal(kept, x0)


@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=["loglinear", "geometric"])
def test_rate_is_the_derivative_of_the_total(noise):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(noise.total(t).sum(), t)
    torch.testing.assert_close(noise.rate(t), slope)


# ---- score entropy -------------------------------------------------------------------------------


def entropy_of(graph, x, x0, sigma, log_score):
    """The definition, term by term in float64: sum over y != x of transp_rate(x)_y times
    (s_y - r_y log s_y + r_y (log r_y - 1)), r the true ratio p(y | x0) / p(x | x0)."""
    row = graph.transition(x0, sigma)
    ratio = row / row.gather(-1, x[:, None])
    terms = log_score.exp() - ratio * log_score + torch.special.xlogy(ratio, ratio) - ratio
    weight = graph.transp_rate(x).scatter(-1, x[:, None], 0.0)
    return (weight * terms).sum(-1)


def pairs(graph):
    """All (x, x0) for which score entropy is defined."""
    n = graph.states
    x, x0 = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    if graph.absorbing:
        keep = (x == graph.mask_id) & (x0 != graph.mask_id)
        return x[keep], x0[keep]
    return x, x0


@pytest.mark.parametrize("level", [0.01, 0.5, 4.0])
def test_score_entropy_is_its_definition(graph, level):
    x, x0 = pairs(graph)
    sigma = torch.full((len(x),), level, dtype=torch.float64)
    score = torch.randn(len(x), graph.states, dtype=torch.float64)
    own = score.clone()
    if graph.absorbing:  # so that chunked_loss may leave out MASK without a pass over the logits
        own[:, graph.mask_id] = -torch.inf
    ours, total = graph.score_entropy(own, x, x0, sigma)
    torch.testing.assert_close(ours, entropy_of(graph, x, x0, sigma, score))
    torch.testing.assert_close(total, score.scatter(1, x[:, None], -torch.inf).exp().sum(1))
    true = graph.transition(x0, sigma)
    log_ratio = (true / true.gather(-1, x[:, None])).clamp(min=1e-300).log()
    if graph.absorbing:
        log_ratio[:, graph.mask_id] = -torch.inf
    assert graph.score_entropy(log_ratio, x, x0, sigma)[0].abs().max() < 1e-8
    assert (ours > 0).all()


@pytest.mark.parametrize("n", [50258, 65536])
def test_uniform_ratio_keeps_its_digits(n):
    """1 - n/(e + n) is off by 30 times here in float32, and 0 log 0 after that."""
    sigma = torch.tensor([1e-4])
    log_score = torch.full((1, n), -200.0, requires_grad=True)  # no score at all
    x = torch.tensor([3])
    loss, _ = Uniform(n).score_entropy(log_score.clone(), x, x, sigma)
    [slope] = torch.autograd.grad(loss, log_score)  # -r / n at all but x
    e = math.expm1(float(sigma))
    assert float(-slope[0, 5] * n) == pytest.approx(e / (e + n), rel=1e-6)
    assert loss.isfinite() and slope[0, 3] == 0


@pytest.mark.parametrize("n", [50258, 65536])
@pytest.mark.parametrize("kind", [Uniform, Absorbing])
def test_loss_is_finite_at_large_vocabularies_and_little_noise(n, kind):
    graph = kind(n)
    net = Flat(graph.states)
    process = ScoreEntropy(graph, Geometric())
    x0 = torch.tensor([[5, 7]])
    xt = x0 if kind is Uniform else torch.full_like(x0, graph.mask_id)
    for level in (1e-4, 20.0):
        sigma = torch.tensor([level])
        everywhere = torch.ones_like(x0, dtype=torch.bool)
        nats, *_ = process.score_entropy(
            net, process.noisy(x0, xt, everywhere, sigma, torch.ones(1))
        )
        assert nats.isfinite() and nats > -1e-4


class Flat(torch.nn.Module):
    """Outputs 0 everywhere: every network at its start."""

    time = None

    def __init__(self, states):
        super().__init__()
        self.head = torch.nn.Linear(4, states)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)

    def features(self, ids, time=None):
        return torch.ones(*ids.shape, 4)


START = [  # n, graph, noise, expected nats per token for t uniform on [1e-3, 1] (measured)
    (259, "uniform", "loglinear", 5.549),
    (259, "uniform", "geometric", 5.561),
    (50257, "uniform", "loglinear", 10.814),
    (50257, "uniform", "geometric", 10.834),
    (259, "absorb", "loglinear", 0.999 * math.log(259)),
    (50257, "absorb", "loglinear", 0.999 * math.log(50257)),
]


@pytest.mark.parametrize("n, graph, noise, expected", START)
def test_loss_of_a_fresh_network(n, graph, noise, expected):
    cfg = Config(graph=graph, noise=noise, n_layer=1, n_head=1, n_embd=4, cond_dim=4)
    process = build_objective(cfg, {"vocab_size": n, "specials": {}})
    net = build_network(cfg, process)
    rows, length = (1024, 4) if n > 1000 else (4096, 8)
    ids = torch.randint(n, (rows, length), generator=generator(0))
    batch = Batch(ids, torch.zeros_like(ids, dtype=torch.bool), torch.full((rows,), length))
    with torch.no_grad():
        loss = process.loss(net, process.corrupt(batch, generator(1)))
    assert float(loss.sum) / loss.count == pytest.approx(expected, rel=0.03)


def test_normalised_score_entropy_is_weighted_cross_entropy():
    """RADD's identity: with scores p / (e^sigma - 1), score entropy is -log p(x0) / (e^sigma - 1),
    and under log-linear noise the rate makes that a factor 1/t."""
    n, B, T = 7, 4, 6
    graph, noise = Absorbing(n), LogLinear()
    free, normal = ScoreEntropy(graph, noise), ScoreEntropy(graph, noise, normalize=True)
    t = torch.tensor([0.05, 0.3, 0.7, 1.0])
    sigma, rate = noise.total(t), noise.rate(t)
    x0 = torch.randint(n, (B, T), generator=generator(0))
    xt = torch.full_like(x0, n)
    raw = torch.randn(B, T, n + 1, generator=generator(1))
    raw[..., n] = -torch.inf
    p = raw.softmax(-1)
    everywhere = torch.ones_like(x0, dtype=torch.bool)
    # a free score is z - log e - log n, so z = log p + log n makes it p / e
    scaled = (p[..., :n].log() + math.log(n)).nan_to_num()
    z = torch.cat([scaled, torch.zeros(B, T, 1)], -1)
    noisy = free.noisy(x0, xt, everywhere, sigma, rate)
    one, _, _, ce = free.score_entropy(Given(z), noisy)
    two, _, _, ce2 = normal.score_entropy(Given(z), noisy)
    nats = -p.gather(2, x0[..., None])[..., 0].log()
    want = (nats / t[:, None]).sum()
    torch.testing.assert_close(one, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(two, want, rtol=1e-5, atol=0)
    for metric in (ce, ce2):
        assert float(metric) == pytest.approx(float(nats.sum()), rel=1e-5)


# ---- steps and samplers --------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["analytic", "euler"])
@pytest.mark.parametrize("normalize", [False, True])
def test_where_then_what_is_the_dense_step(sampler, normalize):
    """The probability of revealing a place and of its token, as the masked sampler has them, are
    the weights of the dense step over all states."""
    graph, noise = Absorbing(6, mask_id=4), LogLinear()
    process = ScoreEntropy(graph, noise, normalize=normalize)
    x = torch.full((1, 3), graph.mask_id)
    net = Given(torch.randn(1, 3, 7, generator=generator(3)))
    walk = AbsorbingSampler(process, net, x, x < 0, generator(0), SampleOptions(sampler=sampler))
    times = grid(8)
    total = noise.total(times)
    h = walk.forward(*walk.masked_positions(), -torch.expm1(-total[2]).expand(1))
    z = walk.logits(h).double()
    if sampler == "analytic":
        gain, dsigma = torch.expm1(total[2] - total[3]), total[2] - total[3]
    else:
        gain = dsigma = (times[2] - times[3]) * noise.rate(times[2])
    ours = gain * (z - process.shift(total[2])).exp()
    ours[:, graph.mask_id] = 1 - ours.sum(1)  # stay
    score = process.log_score(net, h, x[0], total[2].expand(3)).double().exp()
    dense = STEPS[sampler](graph, x[0], score, dsigma.expand(3))
    torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
@pytest.mark.parametrize(
    "sampler, steps, off",
    [("analytic", 1, 0), ("analytic", 4, 0), ("analytic", 32, 0), ("euler", 32, 0.002)],
)
def test_exact_score_gives_the_data(graph, sampler, steps, off):
    """One token of five, 200,000 draws with the closed-form score: analytic steps are exact for any
    number of them (deviation of a probability 0.0007 to 0.0018 measured, all of it sampling
    noise); Euler steps when there are enough."""
    got, p = draw_one_token(graph, sampler, steps)
    assert (got - p).abs().max() < 0.0045 + off


def test_euler_steps_are_known_to_be_wrong_when_few():
    """On the uniform graph one Euler step leaves noise: off by 0.248 (measured), four by 0.006."""
    for steps, off in ((1, 0.248), (4, 0.006)):
        got, p = draw_one_token("uniform", "euler", steps)
        assert (got - p).abs().max() == pytest.approx(off, abs=0.0045)


def draw_one_token(graph, sampler, steps):
    data = Distribution(5, 1)
    data.p = torch.tensor([0.45, 0.3, 0.15, 0.08, 0.02], dtype=torch.float64)
    made = Uniform(5) if graph == "uniform" else Absorbing(5)
    process = ScoreEntropy(made, LogLinear())
    ids = torch.zeros(200_000, 1, dtype=torch.int64)
    options = SampleOptions(steps=steps, sampler=sampler)
    net = ExactNetwork(data, made)
    *_, last = process.sample(net, ids, ids > 0, generator(7), options)
    return torch.bincount(last.ids[:, 0], minlength=5) / len(ids), data.p


def test_first_hitting_calls_once_per_place():
    graph = Absorbing(5)
    process = ScoreEntropy(graph, LogLinear(), normalize=True)
    net = ExactNetwork(Distribution(5, 3), graph)
    ids = torch.zeros(50, 3, dtype=torch.int64)
    given = torch.tensor([False, True, False]).expand_as(ids)
    options = SampleOptions(sampler="first_hitting", steps=999)
    frames = list(process.sample(net, ids, given, generator(0), options))
    assert len(frames) == 3  # the start and one per open place
    assert all((f.changed.sum(1) == 1).all() for f in frames[1:])


def test_analytic_weights_are_the_posterior():
    """With the true score of a single text, a step is Bayes' rule: P(x_s | x_t, x_0)."""
    graph = Uniform(4)
    x0, x = torch.tensor([1]), torch.tensor([3])
    t, s = torch.tensor(1.2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    row = graph.transition(x0, t)
    weights = analytic_weights(graph, x, row / row[:, 3:], (t - s).expand(1))
    joint = graph.transition(x0, s)[0] * graph.transition(torch.arange(4), t - s)[:, 3]
    torch.testing.assert_close(weights[0], joint / joint.sum())


# ---- the bound's standard error ------------------------------------------------------------------


def quadrature(process, net, x0):
    """The bound of texts of one token x0 (), as an integral over sigma and a sum over x_sigma."""
    n, end = process.graph.n, process.noise.total(torch.tensor(1.0, dtype=torch.float64))
    edges = torch.cat([torch.zeros(1), torch.logspace(-9, 0, 20_001)]).double() * end
    sigma = (edges[1:] + edges[:-1]) / 2
    states = torch.arange(n).repeat(len(sigma))[:, None]
    text = torch.full_like(states, int(x0))
    p = process.graph.transition(torch.full((len(sigma),), int(x0)), sigma)  # (N, n)
    weight = (p * edges.diff()[:, None]).flatten()
    noisy = process.noisy(text, states, states >= 0, sigma.repeat_interleave(n), weight)
    return float(
        process.score_entropy(net, noisy)[1].double().sum() + process.graph.prior_nats(end)
    )


@pytest.mark.parametrize("noise", NOISES)
def test_uniform_graph_needs_finite_noise(noise):
    """The bound is an integral over the total noise: infinite for all networks but a perfect one,
    where the total noise is."""
    cfg = Config(objective="sedd", graph="uniform", noise=noise)
    try:
        made = build_objective(cfg, {"vocab_size": 5, "specials": {}})
    except UserError as e:
        assert noise in ("affine", "clamped", "square", "square_root", "log") and noise in str(e)
        return
    net = build_network(dataclasses.replace(cfg, n_layer=1, n_embd=16, n_head=2), made).eval()
    ids = torch.zeros(50, 6, dtype=torch.int64)
    assert made.bound(net, Batch(ids, ids > 0, None), generator(0), 4).isfinite().all()


@pytest.mark.parametrize("scale", [0.05, 0.4])
@pytest.mark.parametrize("noise", [Geometric(), LogLinear()])
@torch.no_grad()
def test_uniform_graph_standard_error_is_one(noise, scale):
    """200 estimates from 400 rows against quadrature: 90 to 98 % lie within two of their standard
    errors. With uniform m it was 6 to 84 %."""
    process = ScoreEntropy(Uniform(5), noise)
    torch.manual_seed(3)
    net = Transformer(5, 1, 2, 16, 8, block_size=1).eval()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=scale)
    truth = quadrature(process, net, torch.tensor(2))
    ids = torch.full((400, 1), 2)
    batch = Batch(ids, ids < 0, None)
    nats = torch.stack([process.bound(net, batch, generator(5, k), 4) for k in range(200)])
    error = nats.std(1) / len(ids) ** 0.5
    inside = ((nats.mean(1) - truth).abs() <= 2 * error).double().mean()
    assert 0.9 <= inside <= 0.98, (float(inside), truth, float(nats.mean()))
    assert float(nats.mean()) == pytest.approx(truth, abs=4 * float(error.mean()) / 200**0.5)
