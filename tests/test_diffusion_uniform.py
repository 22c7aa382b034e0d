"""Uniform-state diffusion (UDLM) on three tokens: its bound, whose posterior it learns, the reverse
step, the corrector and drafts. `exact.ExactNetwork` gives the leave-one-out posterior."""

import itertools
import math

import numpy as np
import pytest
import torch
from exact import Distribution, ExactNetwork, Given, total_variation
from torch import Tensor

from configurator import Config, UserError
from diffusion import UDLM, Geometric, LogLinear, Noisy, Uniform, grid
from objective import SampleOptions, generator

P = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def udlm(noise=None, predict="leave_one_out") -> UDLM:
    return UDLM(Uniform(3), noise or LogLinear(), predict)


def noisy_of(x0: Tensor, xt: Tensor, sigma: Tensor, weight: Tensor) -> Noisy:
    """Rows of one token (B,)."""
    scored = torch.ones(len(x0), 1, dtype=torch.bool)
    return Noisy(x0[:, None], xt[:, None], scored, sigma, weight)


def losses(objective, logits: Tensor, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
    """The integrand at logits (B, 3) of rows of one token (B,): (B,)."""
    noisy = noisy_of(x0, xt, sigma, torch.ones(len(x0)))
    return objective.score_entropy(Given(logits[:, None]), noisy)[1].double()


def paper(mu: Tensor, x0: int, z: int, alpha: float) -> float:
    """The integrand of UDLM's continuous-time bound, for alpha' = -alpha: a rate of 1."""
    N, one_hot = 3, np.eye(3)[x0]
    x = N * alpha * one_hot + 1 - alpha
    y = N * alpha * mu.numpy() + 1 - alpha
    terms = (x / x[z]) * np.log(y[z] * x / (y * x[z]))
    return -(N / x[z] - N / y[z] - terms.sum()) / N


def test_loss_is_that_of_the_paper():
    mu = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    for x0, z, alpha in itertools.product(range(3), range(3), (0.999, 0.7, 0.2, 0.01)):
        sigma = torch.tensor([-math.log(alpha)], dtype=torch.float64)
        got = losses(udlm(), mu.log().float(), torch.tensor([x0]), torch.tensor([z]), sigma)
        want = paper(mu[0], x0, z, alpha)
        assert float(got) == pytest.approx(want, rel=2e-4, abs=2e-6), (x0, z, alpha)


def test_loss_is_score_entropy_of_the_score_it_stands_for():
    """SEDD, theorem 3.6, with the score q(y) / q(x)."""
    objective, logits = udlm(), torch.randn(9, 3, generator=generator(1)).double()
    x0, xt = (torch.tensor(v) for v in zip(*itertools.product(range(3), range(3)), strict=True))
    sigma = torch.linspace(0.05, 4, 9, dtype=torch.float64)
    log_score = objective.log_score(Given(logits[:, None]), logits, xt, sigma)
    want, _ = objective.graph.score_entropy(log_score, xt, x0, sigma)
    got = losses(objective, logits.float(), x0, xt, sigma)
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind, nats", [("leave-one-out", 0.897945725), ("denoiser", 1.3558)])
def test_bound_of_one_token_is_tight_at_the_leave_one_out_posterior_alone(kind, nats):
    """One token has no others: its leave-one-out posterior is P. Quadrature over alpha = 1 - t."""
    u, w = np.polynomial.legendre.leggauss(400)
    alpha = torch.tensor(1 - (u + 1) / 2)
    total = 0.0
    for x0, z in itertools.product(range(3), range(3)):
        q = alpha * (x0 == z) + (1 - alpha) / 3
        to_z = alpha[:, None] * torch.eye(3)[z] + (1 - alpha[:, None]) / 3  # q(z | y)
        mu = P.expand(400, 3) if kind == "leave-one-out" else P * to_z
        each = losses(
            udlm(), mu.log(), *(torch.full((400,), v) for v in (x0, z)), sigma=-alpha.log()
        )
        total += float((torch.tensor(w / 2) / alpha * q * P[x0] * each).sum())
    assert total == pytest.approx(nats, abs=1e-4)


def test_both_predictions_are_the_same_model():
    """d(y) ~ mu(y) q(x | y): loss, score and step do not change."""
    mu = torch.randn(9, 3, generator=generator(2)).double().log_softmax(1)
    x0, xt = (torch.tensor(v) for v in zip(*itertools.product(range(3), range(3)), strict=True))
    sigma = torch.linspace(0.05, 4, 9, dtype=torch.float64)
    d = (
        mu
        + (torch.exp(-sigma)[:, None] * torch.eye(3)[xt] - torch.expm1(-sigma)[:, None] / 3).log()
    )
    got = losses(udlm(predict="denoiser"), d.float(), x0, xt, sigma)
    assert torch.allclose(got, losses(udlm(), mu.float(), x0, xt, sigma), rtol=1e-4, atol=1e-6)
    assert torch.allclose(udlm(predict="denoiser").log_mu(d, xt, sigma), mu)


def test_the_spread_is_bounded_towards_noise_whatever_the_network_says():
    """The integrand falls as alpha^2; that of SEDD, whose score is free, does not."""
    wild = torch.tensor([[6.0, -3.0, 0.0]])
    x0, xt = torch.tensor([1]), torch.tensor([2])
    alpha = torch.tensor([1e-1, 1e-2, 1e-3])
    ours = [float(losses(udlm(), wild.double(), x0, xt, -a.log()[None])) for a in alpha]
    sedd, _ = Uniform(3).score_entropy(wild.repeat(3, 1), xt.repeat(3), x0.repeat(3), -alpha.log())
    assert all(0 < v < 10 * a**2 for v, a in zip(ours, alpha.tolist(), strict=True))
    assert (sedd > 1).all()


# ---- the reverse step ----------------------------------------------------------------------------


def step_probs(objective, logits: Tensor, z: int, sigma: Tensor, dsigma: Tensor) -> Tensor:
    """The law (3,) of a step of the sampler for one token, from its own draws' weights."""
    options = SampleOptions(sampler="ancestral", candidates=3)
    net = Given(logits.expand(1, 1, 3))
    sampler = objective.sampler(options)(
        objective, net, torch.tensor([[z]]), torch.tensor([[False]]), generator(0), options
    )
    sampler.x[:] = z
    place = torch.zeros(1, dtype=torch.long)
    sampler.step(place, place, sigma, dsigma)
    draws = sampler.take_draws()
    return torch.empty(3, dtype=torch.float64).scatter_(0, draws.best[0], draws.best_p[0])


def test_a_step_is_bayes_rule_and_the_formula_of_the_paper():
    t, s, p = 0.7, 0.4, P
    a_t, a_s = 1 - t, 1 - s
    sigma, then = (torch.tensor(-math.log(a), dtype=torch.float64) for a in (a_t, a_s))
    for z in range(3):
        one = torch.eye(3, dtype=torch.float64)[z]
        d = p * (a_t * one + (1 - a_t) / 3)  # the denoiser, ~ mu(x) q(z | x)
        d = d / d.sum()
        bayes = torch.zeros(3, dtype=torch.float64)
        for x in range(3):  # sum over x of d(x) q(s | z, x)
            q_s = a_s * torch.eye(3, dtype=torch.float64)[x] + (1 - a_s) / 3
            joint = q_s * (a_t / a_s * one + (1 - a_t / a_s) / 3)
            bayes += d[x] * joint / joint.sum()

        def plug_in(mu: Tensor, z: int = z, one: Tensor = one) -> Tensor:
            top = 3 * a_t * mu[z] * one + (a_t / a_s - a_t) * one
            top = top + (a_s - a_t) * mu + (a_s - a_t) * (1 - a_s) / (3 * a_s)
            return top / (3 * a_t * mu[z] + 1 - a_t)

        got = step_probs(udlm(), p.log().float(), z, sigma, sigma - then)
        assert torch.allclose(got, bayes, atol=1e-6) and torch.allclose(bayes, plug_in(p))
        assert (plug_in(d) - bayes).abs().max() > 0.02  # the denoiser in its place is wrong
        last = step_probs(udlm(), p.log().float(), z, sigma, sigma)
        assert torch.allclose(last, d, atol=1e-6)


def chain(data: Distribution, net, objective, options: SampleOptions) -> Tensor:
    """The exact law (n^T,) of what the sampler writes: products of its steps' laws."""
    states = data.texts
    law = torch.full((len(states),), 1 / len(states), dtype=torch.float64)
    sigma = objective.noise.total(grid(options.steps))
    for k in range(options.steps + 1):
        last = k == options.steps
        d = sigma[k] if last else sigma[k] - sigma[k + 1]
        h = net.features(states, sigma[k].expand(len(states))).double()
        mu = (h / options.temperature).softmax(-1)
        stay, left = torch.exp(-d), torch.exp(-(sigma[k] - d))
        q = mu if last else left * mu + (1 - left) / data.n
        w = q * (stay * torch.eye(data.n).double()[states] + (1 - stay) / data.n)  # (S, T, n)
        if last and options.sampler == "greedy_tail":
            w = (w == w.amax(-1, keepdim=True)).double()
        w = w / w.sum(-1, keepdim=True)
        moves = torch.stack([w[:, t, states[:, t]] for t in range(data.T)]).prod(0)  # (S, S)
        law = law @ moves
    return law


@pytest.mark.parametrize("sampler", ["ancestral", "greedy_tail"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("predict", ["leave_one_out", "denoiser"])
def test_law_of_the_sampler_on_a_coarse_grid(sampler, temperature, predict):
    """Chi-square of 30,000 texts against the product of the kernels; temperature acts on mu."""
    data, objective = Distribution(3, 2), udlm(predict=predict)
    net = ExactNetwork(data, objective)
    options = SampleOptions(sampler=sampler, steps=3, temperature=temperature)
    ids = torch.zeros(30_000, 2, dtype=torch.long)
    *_, last = objective.sample(net, ids, torch.zeros_like(ids) > 0, generator(5), options)
    counts = torch.bincount(data.index(last.ids), minlength=9).double()
    want = chain(data, ExactNetwork(data, udlm()), objective, options) * len(ids)
    some = want > 1e-9
    assert counts[~some].sum() == 0
    chi2 = ((counts - want) ** 2 / want)[some].sum()
    assert chi2 < 30, (chi2, counts, want)  # 8 degrees of freedom: p < 0.0003


def test_with_many_steps_the_samples_are_texts_of_the_data():
    data, objective = Distribution(3, 2), udlm(Geometric(1e-3, 8.0))
    net, ids = ExactNetwork(data, objective), torch.zeros(20_000, 2, dtype=torch.long)
    options = SampleOptions(steps=100)
    *_, last = objective.sample(net, ids, torch.zeros_like(ids) > 0, generator(6), options)
    assert total_variation(last.ids, data) < 0.015


# ---- the corrector, and drafts -------------------------------------------------------------------


def noised(data: Distribution, alpha: float) -> Tensor:
    """The law (n^T,) of a text at this alpha."""
    kernel = alpha * torch.eye(data.n).double() + (1 - alpha) / data.n
    each = [kernel[data.texts[:, t]][:, data.texts[:, t]] for t in range(data.T)]
    return data.p @ torch.stack(each).prod(0)


def test_one_place_at_random_leaves_the_law_of_the_noisy_text():
    """Gibbs sampling from the exact conditionals of q. With mu in the place of alpha mu +
    (1 - alpha) / n, or with the denoiser, the law would move."""
    data, objective = Distribution(3, 2), udlm()
    net, alpha, N = ExactNetwork(data, objective), 0.6, 40_000
    options = SampleOptions(sampler="ancestral", corrector_steps=1, corrector_order="random")
    law = noised(data, alpha)
    ids = data.texts[torch.multinomial(law, N, replacement=True, generator=generator(7))]
    free = torch.zeros_like(ids) > 0
    sampler = objective.sampler(options)(objective, net, ids, free, generator(8), options)
    sampler.x = ids.clone()
    for _ in range(3):
        sampler.correct(*(~free).nonzero(as_tuple=True), torch.tensor(-math.log(alpha)).double())
    assert ((sampler.x != ids).sum(1) > 0).float().mean() > 0.3
    counts = torch.bincount(data.index(sampler.x), minlength=9).double()
    assert ((counts - law * N) ** 2 / (law * N)).sum() < 30


@pytest.mark.parametrize("order", ["margin", "random"])
def test_the_corrector_prefers_places_that_fall_behind(order):
    """One place per call, with a probability ~ (best other q) / (q of the token that stands)."""
    data, objective, N = Distribution(3, 4, seed=3), udlm(), 20_000
    net = ExactNetwork(data, objective)
    options = SampleOptions(sampler="ancestral", corrector_steps=1, corrector_order=order)
    ids = torch.tensor([0, 2, 1, 1]).expand(N, 4)
    free = torch.zeros_like(ids) > 0
    sampler = objective.sampler(options)(objective, net, ids, free, generator(2), options)
    sampler.x, sigma = ids.clone(), torch.tensor(0.1, dtype=torch.float64)
    sampler.correct(*(~free).nonzero(as_tuple=True), sigma)
    changed = sampler.x != ids
    assert int(changed.sum(1).max()) == 1
    h = net.features(ids[:1], sigma[None])[0]
    q = objective.log_marginal(h.log_softmax(1), sigma.expand(4)).exp()
    own = q.gather(1, ids[0, :, None])[:, 0]
    behind = q.scatter(1, ids[0, :, None], 0).amax(1) / own
    chosen = behind / behind.sum() if order == "margin" else torch.full((4,), 0.25)
    want = chosen * (1 - own)
    error = (changed.double().mean(0) - want).abs()
    assert (error < 4.5 * (want * (1 - want) / N).sqrt()).all(), (error, want)


def test_what_the_corrector_draws_does_not_depend_on_what_stood_there():
    """Though the network repeats the token that it sees: noise stands there when it is called."""

    class Repeats(Given):
        def features(self, ids, *inputs, **options):
            return 30.0 * torch.nn.functional.one_hot(ids, 3).float()

    objective, ids = udlm(), torch.zeros(3000, 1, dtype=torch.long)
    options = SampleOptions(sampler="ancestral", corrector_steps=1)
    net = Repeats(torch.zeros(1, 1, 3))
    sampler = objective.sampler(options)(objective, net, ids, ids > 0, generator(2), options)
    sampler.x = ids.clone()
    sampler.correct(*(ids == 0).nonzero(as_tuple=True), torch.tensor(1e-6).double())
    share = torch.bincount(sampler.x[:, 0], minlength=3) / 3000
    assert (share - 1 / 3).abs().max() < 0.05


def test_the_corrector_draws_as_many_places_as_it_is_told():
    objective, ids = udlm(), torch.zeros(200, 4, dtype=torch.long)
    options = SampleOptions(sampler="ancestral", corrector_steps=1, corrector_places=2)
    net = Given(torch.tensor([-30.0, 0.0, 0.0]).expand(200, 4, 3))  # anything but what stands
    sampler = objective.sampler(options)(objective, net, ids, ids > 0, generator(2), options)
    sampler.x = ids.clone()
    sampler.correct(*(ids == 0).nonzero(as_tuple=True), torch.tensor(1e-6).double())
    assert ((sampler.x != 0).sum(1) == 2).all()


def test_a_draft_is_noised_to_its_time_and_the_prompt_stays():
    objective, N = udlm(LogLinear(0.0)), 20_000
    net = Given(torch.zeros(N, 2, 3))
    ids, given = torch.ones(N, 2, dtype=torch.long), torch.tensor([True, False]).expand(N, 2)
    options = SampleOptions(draft=True, draft_time=0.3, steps=2)
    first, *_ = objective.sample(net, ids, given, generator(3), options)
    assert (first.ids[:, 0] == 1).all()
    moved = float((first.ids[:, 1] != 1).double().mean())  # two of three noise tokens are others
    assert abs(moved - 0.3 * 2 / 3) < 5 * math.sqrt(0.2 * 0.8 / N)
    same = SampleOptions(draft=True, draft_time=0.3, renoise=False)
    first, *_ = objective.sample(net, ids, given, generator(3), same)
    assert (first.ids == 1).all()


def test_a_wrong_letter_is_repaired_from_a_draft_taken_as_it_is():
    """A draft with noise of its own is a noisy text of that time: denoised, it has the posterior
    of the text that it was."""
    data, objective = Distribution(3, 2), udlm(LogLinear(0.0))
    net, N, t = ExactNetwork(data, objective), 40_000, 0.3
    z = torch.tensor([2, 1])
    likelihood = ((1 - t) * (data.texts == z).double() + t / 3).prod(1)
    want = data.p * likelihood
    want = want / want.sum() * N
    ids = z.expand(N, 2)
    options = SampleOptions(draft=True, draft_time=t, renoise=False, steps=60)
    *_, last = objective.sample(net, ids, torch.zeros_like(ids) > 0, generator(4), options)
    counts = torch.bincount(data.index(last.ids), minlength=9).double()
    assert ((counts - want).abs() / N).sum() / 2 < 0.02


def test_banned_ids_never_stand():
    objective = udlm()
    ids = torch.zeros(500, 4, dtype=torch.long)
    options = SampleOptions(steps=5, banned=(1,), corrector_steps=2)
    net = Given(torch.zeros(500, 4, 3))
    for frame in objective.sample(net, ids, ids > 0, generator(1), options):
        assert (frame.ids != 1).all()


def test_options_without_use_are_refused():
    ids = torch.zeros(1, 2, dtype=torch.long)
    net = Given(torch.zeros(1, 2, 3))
    with pytest.raises(UserError, match="remask"):
        list(udlm().sample(net, ids, ids > 0, generator(1), SampleOptions(remask="cap")))
    with pytest.raises(UserError, match="udlm needs noise that is finite"):
        UDLM.from_config(Config(objective="udlm", noise="square"), 3, {})
