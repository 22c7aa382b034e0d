"""Diffusion over discrete tokens: schedules, graphs, losses, bounds and samplers, in page order.

    1. Noise schedules            how many tokens are destroyed at time t
    2. Graphs                     uniform, absorbing; steps of the reverse process
    3. Score entropy              ScoreEntropy: SEDD, RADD; UDLM: uniform-state diffusion
    4. Masked diffusion           Masked: MDLM, LLaDA; MaskedTokens: plain masked language modelling
    5. Block diffusion            BlockDiffusion: BD3
    6. Which places come next     unmasking schedules, orders, remasking
    7. The sampler of masked text MaskedSampler: ancestral, first-hitting, ordered, remasking
    8. Samplers on a grid         SEDD's, on both graphs; UDLM's, with a corrector
    9. Samplers of blocks         with a cache of keys and values
    10. Likelihood in an order    of a text that a sampler is made to write

The loss and the bound of each objective are methods of its class, in the chapter of that class.

The forward process moves every token by a Markov chain, dp/dsigma = Q p, run up to the total noise
sigma(t), t from 0 (text) to 1 (noise). A network estimates the ratios p_sigma(y) / p_sigma(x), the
concrete score (SEDD), or p(x0 | xt) at masked places (MDLM), and the chain is run backwards with
them. n is the number of real tokens; the absorbing graph has one more state, MASK, and V = n + 1.

    SEDD   Lou, Meng & Ermon 2024, Discrete Diffusion Modeling by Estimating the Ratios of the
           Data Distribution, arXiv 2310.16834
    RADD   Ou et al. 2024, Your Absorbing Discrete Diffusion Secretly Models the Conditional
           Distributions of Clean Data, arXiv 2406.03736
"""

import itertools
import math
from collections import ChainMap
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import Config, UserError, one_of
from corpus import Batch
from model import (
    Cache,
    Transformer,
    chunked_cross_entropy,
    chunked_loss,
    chunks,
    features_at,
    to_device,
)
from objective import (
    CHOICES,
    Allowed,
    Loss,
    Objective,
    SampleOptions,
    Sampler,
    categorical,
    low_discrepancy_uniform,
    mask_k_tokens,
    metric,
    process_logits,
)

# ==================================================================================================
# 1. Noise schedules: how many tokens are destroyed at time t, from 0 (text) to 1 (noise)
#
# A schedule has four functions of t (...): the total noise sigma, its rate d sigma / dt, the
# probability 1 - e^-sigma that a token has been replaced (masked, on the absorbing graph), and the
# weight of the cross entropy of a masked token in the bound, (d mask_prob / dt) / mask_prob. Two
# of them define the others.
#
#     SEDD   Lou et al. 2024, arXiv 2310.16834      LLaDA  Nie et al. 2025, arXiv 2502.09992
#     MDLM   Sahoo et al. 2024, arXiv 2406.07524    BD3    Arriola et al. 2025, arXiv 2503.09573
# ==================================================================================================


SAMPLE_EPS = 1e-5  # smallest t of the sampling grid, where the denoiser takes over (SEDD)


class Noise:
    """A schedule given by its total noise and its rate."""

    t_min = 1e-3  # smallest t in training (SEDD, MDLM)

    def total(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def rate(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def mask_prob(self, t: Tensor) -> Tensor:
        """Probability that a token has been replaced."""
        return -torch.expm1(-self.total(t))

    def weight(self, t: Tensor) -> Tensor:
        """Factor of -log p(x0) at a masked position (MDLM, eq. 10): rate / (e^sigma - 1)."""
        return self.rate(t) / torch.expm1(self.total(t))


@dataclass(frozen=True)
class LogLinear(Noise):
    """mask_prob = (1 - eps) t: the weight is 1 / t exactly (SEDD, MDLM)."""

    eps: float = 1e-3

    def mask_prob(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t

    def weight(self, t: Tensor) -> Tensor:
        return 1 / t

    def total(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1 - self.eps) * t)

    def rate(self, t: Tensor) -> Tensor:
        return (1 - self.eps) / (1 - (1 - self.eps) * t)

    def time_of_mask_prob(self, mask_prob: Tensor) -> Tensor:
        """Inverse of `mask_prob`."""
        return mask_prob / (1 - self.eps)


@dataclass(frozen=True)
class Geometric(Noise):
    """sigma = sigma_min^(1 - t) sigma_max^t (SEDD)."""

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def total(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t

    def rate(self, t: Tensor) -> Tensor:
        return self.total(t) * math.log(self.sigma_max / self.sigma_min)

    def time_of(self, total: Tensor) -> Tensor:
        """Inverse of `total`."""
        return (total / self.sigma_min).log() / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Linear(Noise):
    """sigma = sigma_min + t (sigma_max - sigma_min) (MDLM)."""

    sigma_min: float = 1e-3
    sigma_max: float = 7.0

    def total(self, t: Tensor) -> Tensor:
        return self.sigma_min + t * (self.sigma_max - self.sigma_min)

    def rate(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max - self.sigma_min)

    def time_of(self, total: Tensor) -> Tensor:
        """Inverse of `total`."""
        return (total - self.sigma_min) / (self.sigma_max - self.sigma_min)

    def time_of_mask_prob(self, mask_prob: Tensor) -> Tensor:
        """Inverse of `mask_prob`."""
        return self.time_of(-torch.log1p(-mask_prob))


@dataclass(frozen=True)
class Exponential(Noise):
    """rate = sigma_min r^t, r = sigma_max / sigma_min, from 0 at t = 0 (insertion diffusion, which
    calls it log-linear)."""

    sigma_min: float = 3.0
    sigma_max: float = 30.0

    def total(self, t: Tensor) -> Tensor:
        ratio = self.sigma_max / self.sigma_min
        return self.sigma_min / math.log(ratio) * torch.expm1(math.log(ratio) * t)

    def rate(self, t: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def time_of(self, total: Tensor) -> Tensor:
        """Inverse of `total`."""
        rate = math.log(self.sigma_max / self.sigma_min)
        return torch.log1p(total * rate / self.sigma_min) / rate


@dataclass(frozen=True)
class Cosine(Noise):
    """e^-sigma = eps + (1 - eps) cos(pi t / 2)^power (MDLM; power 2 is its cosine squared)."""

    power: int = 1
    eps: float = 1e-3

    def total(self, t: Tensor) -> Tensor:
        return -torch.log(self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * t) ** self.power)

    def rate(self, t: Tensor) -> Tensor:
        angle = math.pi / 2 * t
        slope = self.power * torch.cos(angle) ** (self.power - 1) * torch.sin(angle)
        return (1 - self.eps) * math.pi / 2 * slope * torch.exp(self.total(t))


class ByMaskProb(Noise):
    """A schedule given by mask_prob and weight."""

    def total(self, t: Tensor) -> Tensor:
        return -torch.log1p(-self.mask_prob(t))

    def rate(self, t: Tensor) -> Tensor:
        return self.weight(t) * torch.expm1(self.total(t))


@dataclass(frozen=True)
class Affine(ByMaskProb):
    """mask_prob = eps + (1 - eps) t, weight 1 / mask_prob, t from 0 on (LLaDA). The loss has less
    variance than with the other schedules of weight about 1 / t."""

    eps: float = 1e-3
    t_min = 0.0

    def mask_prob(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * t

    def weight(self, t: Tensor) -> Tensor:
        return 1 / self.mask_prob(t)


@dataclass(frozen=True)
class Clamped(ByMaskProb):
    """mask_prob = max(t, eps), weight 1 / mask_prob (the usual guard against t = 0)."""

    eps: float = 1e-5
    t_min = 0.0

    def mask_prob(self, t: Tensor) -> Tensor:
        return t.clamp(min=self.eps)

    def weight(self, t: Tensor) -> Tensor:
        return 1 / self.mask_prob(t)


@dataclass(frozen=True)
class Power(ByMaskProb):
    """mask_prob = t^power (BD3: 1, its log-linear; 2, square; 0.5, square root)."""

    power: float = 1.0
    eps: float = 1e-3

    def mask_prob(self, t: Tensor) -> Tensor:
        return (t**self.power).clamp(min=self.eps if self.power != 1 else 0.0)

    def weight(self, t: Tensor) -> Tensor:
        return self.power * t ** (self.power - 1) / self.mask_prob(t)


@dataclass(frozen=True)
class Log(ByMaskProb):
    """mask_prob = log2(1 + t) (BD3)."""

    def mask_prob(self, t: Tensor) -> Tensor:
        return torch.log1p(t) / math.log(2)

    def weight(self, t: Tensor) -> Tensor:
        return 1 / ((1 + t) * torch.log1p(t))


def clamp_sigma(noise: Noise, sigma: Tensor) -> Tensor:
    """sigma (B,) -> float32 (B,) within the range that a network sees in training."""
    low, high = noise.total(torch.tensor([SAMPLE_EPS, 1.0])).tolist()
    return sigma.float().clamp(low, high if math.isfinite(high) else -math.log(1e-3))


def importance(noise: "LogLinear | Linear", u: Tensor) -> tuple[Tensor, float]:
    """u (...) in [0, 1] -> times t whose density is proportional to the weight, u = 0 at the end,
    and the weight that every masked token then has (MDLM, its importance sampling). mask_prob is
    log-uniform between 1 - e^-sigma_min, sigma_min = 1e-3, and its maximum."""
    log_max = noise.mask_prob(torch.ones(())).log()
    log_min = math.log(-math.expm1(-1e-3))
    return noise.time_of_mask_prob(torch.exp(u * log_max + (1 - u) * log_min)), -log_min


NOISES: dict[str, Callable[..., Noise]] = {
    "loglinear": LogLinear,
    "affine": Affine,
    "clamped": Clamped,
    "linear": Linear,
    "cosine": Cosine,
    "cosine_squared": lambda: Cosine(2),
    "geometric": Geometric,
    "exponential": Exponential,
    "square": lambda: Power(2.0),
    "square_root": lambda: Power(0.5),
    "log": Log,
}


def noise_schedule(cfg: Config) -> Noise:
    """The noise schedule of a config. Raises UserError for a name that is not in NOISES."""
    if cfg.noise not in NOISES:
        raise UserError(f"config error: noise must be {one_of(NOISES)}, got {cfg.noise!r}")
    return NOISES[cfg.noise](*((cfg.sigma_min, cfg.sigma_max) if has_limits(cfg) else ()))


def has_limits(cfg: Config) -> bool:
    """Does the noise schedule go from sigma_min to sigma_max?"""
    return cfg.noise in ("geometric", "exponential") or cfg.objective == "idlm"


# ==================================================================================================
# 2. Graphs: which tokens noise turns a token into, and steps of the reverse process
# ==================================================================================================


def _one_hot(i: Tensor, states: int) -> Tensor:
    return F.one_hot(i, states).double()


class Uniform:
    """Q = 11^T / n - I: a token moves to any token, itself included. States: the n tokens."""

    absorbing = False

    def __init__(self, n: int):
        self.n = self.states = n

    def rate(self, i: Tensor) -> Tensor:
        """Columns of Q at ids (...) -> (..., V); Q is symmetric."""
        return 1 / self.n - _one_hot(i, self.n)

    transp_rate = rate

    def transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        """exp(sigma Q)[:, i] = P(x_sigma = . | x_0 = i): ids (...), sigma broadcast -> (..., V)."""
        stay = torch.exp(-sigma.double())[..., None]
        return stay * _one_hot(i, self.n) + (1 - stay) / self.n

    transp_transition = transition

    def move(self, x0: Tensor, sigma: Tensor, u: Tensor, other: Tensor) -> Tensor:
        """Sample x_sigma: where u < 1 - e^-sigma, a token becomes `other` (uniform ids)."""
        return torch.where(u < -torch.expm1(-sigma), other, x0)

    def staggered_score(self, score: Tensor, dsigma: Tensor) -> Tensor:
        """exp(-dsigma Q) score: the score at sigma - dsigma under Tweedie's rule (SEDD, Thm 4.2).
        score (..., V) with 1 at the current token."""
        grow = torch.exp(dsigma)[..., None]
        return grow * score + (1 - grow) / self.n * score.sum(-1, keepdim=True)

    def score_entropy(
        self, log_score: Tensor, x: Tensor, x0: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score entropy (SEDD, Def. 3.1 with Thm 3.6) of log_score (R, n) in the states x (R,), to
        which sigma (R,) has brought x0 (R,); and the sum of the scores, each (R,).

            1/n sum over y != x of s_y - r_y log s_y + r_y (log r_y - 1)

        with the true ratio r_y = p(y | x0) / p(x | x0). That is rho = e / (e + n), e = e^sigma - 1,
        where x = x0; elsewhere it is 1 at all y but x0, and 1 / rho at x0. (Computed as
        1 - n / (e + n), rho would lose every digit at n = 50257, sigma = 1e-4.) Overwrites
        log_score.
        """
        n, e, same = self.n, torch.expm1(sigma.double()), x == x0
        log_rho = e.log() - (e + n).log()
        r = torch.where(same, log_rho, 0.0).exp()
        row = torch.arange(len(x), device=x.device)[:, None]
        at_x, at_x0 = log_score[row, torch.stack([x, x0], 1)].unbind(1)
        others = log_score.sum(1) - at_x
        score = log_score.scatter_(1, x[:, None], -torch.inf).exp().sum(1)
        excess = torch.where(same, 0.0, n / e)  # r at x0 less r at the other y
        const = torch.where(
            same, (n - 1) * r * (log_rho - 1), (-log_rho - 1) / log_rho.exp() - (n - 2)
        )
        r, excess, const = (v.to(log_score.dtype) for v in (r, excess, const))
        return (score - r * others - excess * at_x0 + const) / n, score

    def prior_nats(self, sigma: Tensor) -> Tensor:
        """KL(x_sigma | x_0 || uniform) of one token, float64 nats."""
        moved = -torch.expm1(-sigma.double()) / self.n
        same = torch.exp(-sigma.double()) + moved
        return math.log(self.n) + same * same.log() + (self.n - 1) * moved * moved.log()


class Absorbing:
    """A token moves to MASK and stays there. States: the n tokens and MASK, by default the last."""

    absorbing = True

    def __init__(self, n: int, mask_id: int | None = None):
        self.n, self.states = n, n + 1
        self.mask_id = n if mask_id is None else mask_id

    def rate(self, i: Tensor) -> Tensor:
        """Columns of Q at ids (...) -> (..., V)."""
        return _one_hot(torch.full_like(i, self.mask_id), self.states) - _one_hot(i, self.states)

    def transp_rate(self, i: Tensor) -> Tensor:
        """Rows of Q at ids (...) -> (..., V)."""
        return (i == self.mask_id).double()[..., None] - _one_hot(i, self.states)

    def transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        """exp(sigma Q)[:, i] = P(x_sigma = . | x_0 = i): ids (...), sigma broadcast -> (..., V)."""
        stay = torch.exp(-sigma.double())[..., None]
        mask = _one_hot(torch.full_like(i, self.mask_id), self.states)
        return stay * _one_hot(i, self.states) + (1 - stay) * mask

    def transp_transition(self, i: Tensor, sigma: Tensor) -> Tensor:
        """exp(sigma Q)[i, :] = P(x_sigma = i | x_0 = .)."""
        stay = torch.exp(-sigma.double())[..., None]
        masked = (i == self.mask_id).double()[..., None]
        return stay * _one_hot(i, self.states) + (1 - stay) * masked

    def move(self, x0: Tensor, sigma: Tensor, u: Tensor, other: Tensor | None = None) -> Tensor:
        """Sample x_sigma: where u < 1 - e^-sigma, a token becomes MASK."""
        return x0.masked_fill(u < -torch.expm1(-sigma), self.mask_id)

    def staggered_score(self, score: Tensor, dsigma: Tensor) -> Tensor:
        """exp(-dsigma Q) score, as in Uniform; score (..., V)."""
        grow = torch.exp(dsigma)[..., None]
        out = grow * score
        out[..., self.mask_id] += ((1 - grow) * score.sum(-1, keepdim=True))[..., 0]
        return out

    def score_entropy(
        self, log_score: Tensor, x: Tensor, x0: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Score entropy (SEDD, Eq. 10) of log_score (R, V) at masked positions, the only ones with
        a score entropy, and the sum of the scores, each (R,); x0, sigma (R,).

            sum over y of s_y - r log s_x0 + r (log r - 1)

        with the true ratio r = 1 / (e^sigma - 1) at x0, and 0 elsewhere; y is not MASK, whose
        log_score is -inf.
        """
        log_r = -torch.expm1(sigma.double()).log()
        r, const = (v.to(log_score.dtype) for v in (log_r.exp(), log_r.exp() * (log_r - 1)))
        at_x0 = log_score.gather(1, x0[:, None])[:, 0]
        score = log_score.exp().sum(1)
        return score - r * at_x0 + const, score


Graph = Uniform | Absorbing


def reverse_rate(graph: Graph, x: Tensor, score: Tensor) -> Tensor:
    """Rate of the reversed chain from x (...) to every state: (..., V), rows sum to 0."""
    rate = (graph.transp_rate(x) * score).scatter(-1, x[..., None], 0.0)
    return rate.scatter_add(-1, x[..., None], -rate.sum(-1, keepdim=True))


def euler_weights(graph: Graph, x: Tensor, score: Tensor, dsigma: Tensor) -> Tensor:
    """One tau-leaping step of dsigma = dt sigma'(t): weights (..., V) of the next state. The entry
    of x itself may be negative when the step is too long."""
    return _one_hot(x, graph.states) + dsigma[..., None] * reverse_rate(graph, x, score)


def analytic_weights(graph: Graph, x: Tensor, score: Tensor, dsigma: Tensor) -> Tensor:
    """One step of dsigma = sigma(t) - sigma(t - dt) by Tweedie's rule (SEDD, Thm 4.2)."""
    return graph.staggered_score(score, dsigma) * graph.transp_transition(x, dsigma)


STEPS: dict[str, Callable] = {"euler": euler_weights, "analytic": analytic_weights}


def denoise_weights(graph: Graph, x: Tensor, score: Tensor, sigma: Tensor) -> Tensor:
    """The last step, all of the remaining noise at once: no MASK may be left."""
    weights = analytic_weights(graph, x, score, sigma)
    if graph.absorbing:
        weights[..., graph.mask_id] = 0
    return weights


# ==================================================================================================
# 3. Score entropy: SEDD, and RADD on the absorbing graph
# ==================================================================================================


class Noisy(NamedTuple):
    """A corrupted batch, on the CPU: B rows of T positions."""

    x0: Tensor  # (B, T) int64: the text
    xt: Tensor  # (B, T) int64: the corrupted text, the input of the network
    scored: Tensor  # (B, T) bool: positions that the loss is a sum over
    sigma: Tensor  # (B,) total noise
    weight: Tensor  # (B,) factor of the loss at every scored position
    count: int = 0  # divisor of the loss, such as the number of target positions
    inside: Tensor | None = None  # (B, 1, T) bool: positions that may be attended to; None: all
    clean: Tensor | None = None  # block diffusion: uncorrupted rows, of which xt has the blocks


def uniform_graph_levels(u: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """u (B,) in [0, 1) -> m (B,), probabilities below 1 - e^-end that a token has been replaced,
    and their density (B,); float64. `end` () is the total noise at t = 1.

    Importance sampling for the bound on the uniform graph. Its integrand over m has a second moment
    that grows as 1 / m towards 0, where the few tokens that moved cost 1 / m each, and, unless the
    network is perfect, as 1 / (1 - m)^2 towards 1. With uniform m its variance would be infinite,
    or as good as: the standard error of a few thousand rows would be far too small. Half of the
    levels have a density that falls as m^-1/2, and half are uniform in sigma.
    """
    m_max = -torch.expm1(-end)
    low = m_max * (2 * u).square()
    high = -torch.expm1(-end * (2 * u - 1))
    m = torch.where(u < 0.5, low, high).clamp(1e-12, float(m_max))
    return m, 0.25 / (m * m_max).sqrt() + 0.5 / ((1 - m) * end)


def require_finite_end(noise: Noise, name: str, what: str) -> None:
    """Raise UserError for noise without end: the bound on the uniform graph is an integral over all
    of it."""
    if not noise.total(torch.tensor(1.0, dtype=torch.float64)).isfinite():
        raise UserError(
            f"{what} needs noise that is finite at t = 1, and {name} is not; "
            "loglinear, linear, cosine, geometric and exponential are"
        )


class ScoreEntropy(Objective):
    """SEDD on either graph; with normalize=True on the absorbing one, RADD.

    The network gives log p_sigma(y) / p_sigma(x). On the absorbing graph, scale_by_sigma takes
    log(e^sigma - 1) + log n off its output, so that 0 is the uniform guess; normalize takes a
    log-softmax first, which is the form of the true score (RADD, Thm 1) and turns score entropy
    into cross entropy weighted by 1 / (e^sigma - 1). Padding is a token like any other: the model
    learns it, and so where a text ends.
    """

    def __init__(
        self, graph: Graph, noise: Noise, scale_by_sigma: bool = True, normalize: bool = False
    ):
        assert graph.absorbing or not normalize, "only masked positions have a softmax for a score"
        self.graph, self.noise = graph, noise
        self.scaled, self.normalize = scale_by_sigma and graph.absorbing, normalize
        self.mask_id = graph.mask_id if graph.absorbing else None
        self.network_kwargs = {"causal": False, "time": True, "vocab_size": graph.states}
        first, *others = SAMPLERS
        self.samplers = (first, *GRIDS, *others) if graph.absorbing else GRIDS  # chapters 7 and 8
        term = "k of n tokens masked" if graph.absorbing else "plus the prior KL at t = 1"
        self.estimator = f"variational bound of score entropy (SEDD, theorem 3.6), {term}"

    config_fields = "noise sigma_min sigma_max graph scale_by_sigma normalize".split()

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        if cfg.graph == "uniform":
            if cfg.normalize:
                raise UserError("normalize=True needs graph=absorb: only MASK has a softmax")
            if not cfg.time_input:
                raise UserError("graph=uniform needs time_input=True: its score depends on sigma")
            require_finite_end(noise_schedule(cfg), cfg.noise, "graph=uniform")
            graph = Uniform(vocab_size)
        else:
            mask = specials.get("mask")
            graph = Absorbing(vocab_size) if mask is None else Absorbing(vocab_size - 1, mask)
        if not cfg.time_input and not (cfg.normalize or cfg.scale_by_sigma):
            raise UserError(
                "time_input=False needs normalize or scale_by_sigma: scores grow as 1/t"
            )
        return cls(graph, noise_schedule(cfg), cfg.scale_by_sigma, cfg.normalize)

    # -- loss --

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Noisy:
        """One t per row, low-discrepancy; the prompt stays."""
        x0, t_min = batch.ids, self.noise.t_min
        t = t_min + (1 - t_min) * low_discrepancy_uniform(len(x0), rng)
        sigma, rate = self.noise.total(t), self.noise.rate(t)
        xt = self.perturb(x0, batch.prompt_mask, sigma, rng)
        return self.noisy(x0, xt, ~batch.prompt_mask, sigma, rate)

    def perturb(
        self, x0: Tensor, prompt_mask: Tensor, sigma: Tensor, rng: torch.Generator
    ) -> Tensor:
        """x_sigma from x0 (B, T); sigma (B,); the prompt stays."""
        u = torch.rand(x0.shape, generator=rng)
        other = None
        if not self.graph.absorbing:
            other = torch.randint(self.graph.n, x0.shape, generator=rng)
        return torch.where(prompt_mask, x0, self.graph.move(x0, sigma[:, None], u, other))

    def noisy(
        self, x0: Tensor, xt: Tensor, target_mask: Tensor, sigma: Tensor, weight: Tensor
    ) -> Noisy:
        """x0, xt, target_mask (B, T), sigma and weight (B,). On the absorbing graph only masked
        positions have a score."""
        scored = target_mask & (xt == self.mask_id) if self.graph.absorbing else target_mask
        return Noisy(x0, xt, scored, sigma, weight, int(target_mask.sum()))

    def loss(self, net: Any, noisy: Noisy) -> Loss:
        """Denoising score entropy, integrated over t with one t per row (SEDD, Eq. 10), summed.
        Nats; divided by `count` it bounds the nats per target position, padding included."""
        total, losses, _, ce = self.score_entropy(net, noisy)
        return Loss(total, noisy.count, {} if ce is None else {"ce": metric(ce, len(losses))})

    def score_entropy(self, net: Any, noisy: Noisy) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Score entropy times weight at the scored positions -> (sum (), per position (R,), its row
        (R,), sum () of the unweighted cross entropy or None)."""
        device = net.head.weight.device
        time = self.condition(net, noisy.sigma, device)
        h, row, col = features_at(net, noisy.xt, noisy.scored, time)
        sigma, weight = noisy.sigma.double()[row], noisy.weight.double()[row]
        shift = self.shift(sigma)
        x, x0 = (to_device(ids[row, col], device) for ids in (noisy.xt, noisy.x0))
        sigma = to_device(sigma, device)
        if self.normalize:  # the score is a softmax, and score entropy a weighted cross entropy
            weight = to_device(weight, device) / torch.expm1(sigma)
            total, losses = chunked_cross_entropy(net.head, h, x0, weight.float(), self.mask_id)
            return total, losses, row, (losses / weight).sum()
        weight = to_device(weight.float(), device)
        shift = None if shift is None else to_device(shift.float(), device)
        ce = torch.zeros((), device=device)

        def loss_fn(logits: Tensor, part: slice) -> Tensor:
            log_score = logits if shift is None else logits.sub_(shift[part, None])
            at_x0 = log_score.detach().gather(1, x0[part, None])[:, 0]
            loss, score = self.graph.score_entropy(log_score, x[part], x0[part], sigma[part])
            ce.add_((score.detach().log() - at_x0).sum())
            return weight[part] * loss

        total, losses = chunked_loss(net.head, h, loss_fn, banned=self.mask_id)
        return total, losses, row, ce if self.graph.absorbing else None

    def condition(self, net: Any, sigma: Tensor, device: torch.device) -> Tensor | None:
        """sigma (B,) clamped to the range of the sampling grid, or None for a network without
        time."""
        if net.time is None:
            return None
        return to_device(clamp_sigma(self.noise, sigma), device)

    def shift(self, sigma: Tensor) -> Tensor | None:
        """(R,) to subtract from the network's output to make it a log-score; None for nothing."""
        if not (self.normalize or self.scaled):
            return None
        log_e = torch.expm1(sigma.double()).log()
        return log_e if self.normalize else log_e + math.log(self.graph.n)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: the evidence bound of the chain (SEDD, Thm 3.6). It does not depend on
        the noise schedule: the integral runs over m = 1 - e^-sigma, the probability that a token
        has been replaced. The network gets sigma clamped to the range that it was trained on."""
        bounds = [self._bound_once(net, batch, rng, i, samples) for i in range(samples)]
        return torch.stack(bounds).mean(0)

    def _bound_once(self, net: Any, batch: Batch, rng: Any, i: int, samples: int) -> Tensor:
        x0, target_mask = batch.ids, ~batch.prompt_mask
        count = target_mask.sum(1)
        u_row = (i + torch.rand(len(x0), generator=rng, dtype=torch.float64)) / samples
        if self.graph.absorbing:
            masked, k, m = mask_k_tokens(target_mask, u_row, rng)
            xt = x0.masked_fill(masked, self.mask_id)
            weight, prior = count / k.double() * m / (1 - m), torch.zeros(len(x0)).double()
        else:
            end = self.noise.total(torch.tensor(1.0, dtype=torch.float64))
            m, density = uniform_graph_levels(u_row, end)
            u = torch.rand(x0.shape, generator=rng, dtype=torch.float64)
            other = torch.randint(self.graph.n, x0.shape, generator=rng)
            moved = self.graph.move(x0, -torch.log1p(-m)[:, None], u, other)
            xt = torch.where(target_mask, moved, x0)
            weight, prior = 1 / (1 - m) / density, count * self.graph.prior_nats(end)
        noisy = self.noisy(x0, xt, target_mask, -torch.log1p(-m), weight)
        _, losses, row, _ = self.score_entropy(net, noisy)
        return prior + torch.zeros(len(x0)).double().index_add_(0, row, losses.double().cpu())

    # -- sampling --

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        """analytic and euler on a grid of `steps`, on both graphs; on the absorbing graph also the
        samplers of masked text."""
        if options.sampler not in GRIDS:
            return MaskedSampler
        return AbsorbingSampler if self.graph.absorbing else UniformSampler

    def log_score(self, net: Any, h: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """h (R, C), x (R,), sigma (R,) -> log-score (R, V) float32, 0 at the current token."""
        z = net.logits(h).float()
        if self.normalize:
            z[:, self.mask_id] = -torch.inf
            z = z.log_softmax(-1)
        shift = self.shift(sigma)
        if shift is not None:
            z = z - shift.float()[:, None]
        return z.scatter(1, x[:, None], 0.0)


# --------------------------------------------------------------------------------------------------
# Uniform-state diffusion: the uniform graph with a network that predicts the clean token
#
# With alpha = e^-sigma and mu the network's distribution of a clean token, the noisy token has the
# distribution
#
#     q(y) = alpha mu(y) + (1 - alpha) / n,      q(y | x0) = alpha [y = x0] + (1 - alpha) / n,
#
# and q(y) / q(x) is the score. Put into SEDD's theorem 3.6, this gives the continuous-time bound of
# UDLM, here as a sum of two terms that are not negative, per token and unit of sigma:
#
#     1 / (n p_x) [ p_x / q_x - 1 - log(p_x / q_x) + KL(q(. | x0) || q) ],      p_x = q(x | x0)
#
# No q is below (1 - alpha) / n, so towards noise the bracket falls as alpha^2 whatever the network
# says: with a free score nothing holds it there, and the spread of SEDD's bound has no limit.
#
# The minimum is at the leave-one-out posterior: mu_i is the distribution of the clean token i given
# all noisy tokens but i. What is usually called the denoiser, given token i as well, is
# d(y) ~ mu(y) q(x | y). Each follows from the other, and d must not be put in the place of mu: mu
# goes into the loss and the reverse step, temperature acts on mu, and alpha mu + (1 - alpha) / n is
# the conditional q(x_i | all others) from which the corrector draws, a step of Gibbs sampling. A
# network may give the logits of either (`predict`): d may repeat the token that it sees, as surely
# as the noise level allows; mu has to do as if it had not seen it. Which is learnt sooner depends
# on the task (docs/results.md).
#
#     UDLM  Schiff et al. 2024, Simple Guidance Mechanisms for Discrete Diffusion Models,
#           arXiv 2412.10193
#     Duo   Sahoo et al. 2025, The Diffusion Duality, arXiv 2506.10892: greedy_tail
#     LOO   Gourevitch et al. 2026, Uniform Diffusion Models Revisited, arXiv 2605.22765
# --------------------------------------------------------------------------------------------------


class UDLM(ScoreEntropy):
    """Uniform-state diffusion: noise, corruption and levels of SEDD's uniform graph, and a network
    that predicts the clean token: as `denoiser`, or as `leave_one_out` posterior (UDLM's)."""

    samplers = ("ancestral", "greedy_tail")

    def __init__(self, graph: Uniform, noise: Noise, predict: str = "denoiser"):
        super().__init__(graph, noise, scale_by_sigma=False)
        self.samplers, self.predict = UDLM.samplers, predict
        self.sigma_min = float(noise.total(torch.tensor(noise.t_min)))  # the least in training
        self.estimator = "variational bound of uniform-state diffusion (UDLM), plus the prior KL"

    config_fields = "noise sigma_min sigma_max predict".split()

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        noise = noise_schedule(cfg)
        require_finite_end(noise, cfg.noise, "objective=udlm")
        return cls(Uniform(vocab_size), noise, cfg.predict)

    def condition(self, net: Any, sigma: Tensor, device: torch.device) -> Tensor | None:
        """As SEDD's, but no level below those of training: what it says at the lowest of them is
        right for all that are lower, as mu hardly changes there."""
        return super().condition(net, sigma.clamp(min=self.sigma_min), device)

    def log_mu(self, logits: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits (R, n) of the network in the states x (R,) at sigma (R,) -> log of the
        leave-one-out posterior: mu(y) ~ d(y) / q(x | y)."""
        if self.predict == "denoiser":
            sigma = sigma.double().clamp(min=self.sigma_min)
            ratio = torch.log1p(self.graph.n / torch.expm1(sigma))  # of q(x | x) to the others
            logits = logits.scatter_add(1, x[:, None], -ratio.to(logits.dtype)[:, None])
        return logits.log_softmax(1)

    def score_entropy(self, net: Any, noisy: Noisy) -> tuple[Tensor, Tensor, Tensor, None]:
        """The bracket above times weight / (n p_x) at the target positions -> (sum (), per position
        (R,), its row (R,), None)."""
        device, n = net.head.weight.device, self.graph.n
        time = self.condition(net, noisy.sigma, device)
        h, row, col = features_at(net, noisy.xt, noisy.scored, time)
        x, x0 = (to_device(ids[row, col], device) for ids in (noisy.xt, noisy.x0))
        sigma, weight = (to_device(v.double()[row], device) for v in (noisy.sigma, noisy.weight))
        alpha, floor = torch.exp(-sigma), -torch.expm1(-sigma) / n
        p_x = floor + alpha * (x == x0)
        neg_entropy = (alpha + floor).xlogy(alpha + floor) + (n - 1) * floor.xlogy(floor)
        weight, log_p_x = (weight / (n * p_x)).float(), p_x.log().float()
        alpha, floor, neg_entropy = alpha.float(), floor.float(), neg_entropy.float()

        def loss_fn(logits: Tensor, part: slice) -> Tensor:
            mu = self.log_mu(logits, x[part], sigma[part]).exp()
            log_q = (alpha[part, None] * mu + floor[part, None]).log()
            at_x, at_x0 = (log_q.gather(1, ids[part, None])[:, 0] for ids in (x, x0))
            kl = neg_entropy[part] - floor[part] * log_q.sum(1) - alpha[part] * at_x0
            log_ratio = log_p_x[part] - at_x
            return weight[part] * (log_ratio.exp() - 1 - log_ratio + kl)

        total, losses = chunked_loss(net.head, h, loss_fn)
        return total, losses, row, None

    def log_score(self, net: Any, h: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """h (R, C), x (R,), sigma (R,) -> log q(y) / q(x) (R, V), 0 at the current token."""
        log_q = self.log_marginal(self.log_mu(net.logits(h).double(), x, sigma), sigma)
        return log_q - log_q.gather(1, x[:, None])

    def log_marginal(self, log_mu: Tensor, sigma: Tensor) -> Tensor:
        """log q (R, V) of a noisy token, given all others, at sigma (R,)."""
        sigma = sigma.double()[:, None]
        floor = (-torch.expm1(-sigma)).log() - math.log(self.graph.n)
        return torch.logaddexp(log_mu - sigma, floor)

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        return LeaveOneOutSampler


# ==================================================================================================
# 4. Masked diffusion: text is destroyed by masking tokens and learnt by predicting them
#
# At time t each token outside the prompt is replaced by MASK with probability mask_prob(t); the
# network sees the rest in both directions and predicts the masked tokens. The loss, weight(t) times
# their cross entropy, integrates to an upper bound on -log p(text) (MDLM, eq. 10). The published
# models differ only in these options:
#
#     noise        loglinear (MDLM), affine (LLaDA), clamped (t >= 1e-5), linear, cosine, geometric
#     time_input   whether the network has an input for sigma; zero_time: it is always 0 (MDLM)
#     loss_per     token: mean over target positions (MDLM, LLaDA); answer: mean over rows of the
#                  mean of each row (LLaDA's fine-tuning); sequence: mean over rows of their sums
#     padding      learn: a token like any other; crop: the same, up to the longest row of the
#                  batch; ignore: neither seen nor scored
#     random_length  LLaDA cuts 1 % of its batches to a random length
#
#     MDLM   Sahoo et al. 2024, Simple and Effective Masked Diffusion Language Models,
#            arXiv 2406.07524
#     LLaDA  Nie et al. 2025, Large Language Diffusion Models, arXiv 2502.09992
#     RADD   Ou et al. 2024, arXiv 2406.03736, which derives the same loss from score entropy
# ==================================================================================================


def answer_counts(n: int, copies: int, k: int) -> Tensor:
    """(copies,) int64: how many of n positions to mask in each copy of a row: k in 1..n, then equal
    steps of n / copies modulo n. Halves are rounded to even, so even numbers are a little too
    frequent where steps end in .5 (LLaDA's evaluation)."""
    steps = k + torch.arange(copies, dtype=torch.float64) * n / copies
    return (steps.round().long() - 1) % n + 1


class Guided:
    """A network with classifier-free guidance towards the prompt: (1 + cfg) times its logits, less
    cfg times its logits with the prompt (B, T) masked (LLaDA). The features of both are
    concatenated, (B, T, 2C)."""

    def __init__(self, net: Any, prompt_mask: Tensor, mask_id: int, cfg: float):
        self.net, self.prompt_mask, self.mask_id, self.cfg = net, prompt_mask, mask_id, cfg
        self.time = net.time

    def features(
        self,
        ids: Tensor,
        time: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """As Transformer.features; a cache has twice the rows, those of the masked prompts last."""
        options: dict[str, Any] = {} if mask is None else {"mask": torch.cat([mask, mask])}
        if cache is not None:
            cache.rows = torch.cat([cache.rows, cache.rows + cache.size[0] // 2])
            options["cache"] = cache
        blind = ids.masked_fill(self.prompt_mask.to(ids.device), self.mask_id)
        time = None if time is None else torch.cat([time, time])
        h = self.net.features(torch.cat([ids, blind]), time, **options)
        return torch.cat(h.chunk(2), -1)

    def logits(self, h: Tensor) -> Tensor:
        """(..., 2C) -> (..., V), at least float32."""
        seen, blind = (
            z if z.dtype == torch.float64 else z.float()
            for z in map(self.net.logits, h.chunk(2, -1))
        )
        return blind + (1 + self.cfg) * (seen - blind)

    @property
    def head(self) -> SimpleNamespace:
        """The head as one matrix (V, 2C), for chunked_loss."""
        weight, bias = self.net.head.weight, self.net.head.bias
        return SimpleNamespace(
            weight=torch.cat([(1 + self.cfg) * weight, -self.cfg * weight], 1), bias=bias
        )


class Masked(Objective):
    """MDLM, LLaDA and the like. `n` real tokens; MASK is the last id unless it is among them."""

    normalize = True  # outputs are logits of p(x0 | xt)
    estimator = "variational bound of masked diffusion, k of n tokens masked"

    def __init__(
        self,
        vocab_size: int,
        mask_id: int | None = None,
        noise: Noise | None = None,
        *,
        zero_time: bool = False,
        loss_per: str = "token",
        padding: str = "learn",
        random_length: float = 0.0,
        by_importance: bool = False,
    ):
        states = vocab_size if mask_id is not None else vocab_size + 1
        self.mask_id = vocab_size if mask_id is None else mask_id
        self.noise, self.zero_time = noise, zero_time
        self.loss_per, self.padding = loss_per, padding
        self.random_length, self.by_importance = random_length, by_importance
        self.network_kwargs = {"causal": False, "time": True, "vocab_size": states}

    config_fields = (
        "noise sigma_min sigma_max zero_time loss_per padding random_length importance token_noise"
    ).split()

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        noise = noise_schedule(cfg)
        if cfg.importance and not hasattr(noise, "time_of_mask_prob"):
            raise UserError(
                "importance=True needs a noise schedule with time_of_mask_prob; "
                f"noise={cfg.noise} has none"
            )
        options = {
            "zero_time": cfg.zero_time,
            "loss_per": cfg.loss_per,
            "padding": cfg.padding,
            "random_length": cfg.random_length,
            "by_importance": cfg.importance,
        }
        if not cfg.token_noise:
            return cls(vocab_size, specials.get("mask"), noise, **options)
        if cfg.loss_per != "token":
            raise UserError("token_noise: a loss per token; leave loss_per out")
        return TokenNoise(cfg.token_noise, vocab_size, specials.get("mask"), noise, **options)

    @property
    def samplers(self) -> tuple[str, ...]:
        return tuple(SAMPLERS)  # chapter 7

    # -- the target positions, without padding --

    def target_mask(self, batch: Batch) -> Tensor:
        if self.padding == "learn":
            return ~batch.prompt_mask
        if self.padding == "ignore":
            return ~batch.prompt_mask & self.inside(batch)
        return ~batch.prompt_mask & (torch.arange(batch.ids.shape[1]) < batch.length.max())

    def inside(self, batch: Batch) -> Tensor:
        return torch.arange(batch.ids.shape[1]) < batch.length[:, None]  # (B, T)

    def cut(self, batch: Batch, rng: torch.Generator | None) -> Batch:
        """The batch without columns of padding only, unless padding="learn". With an rng (in
        training), cut to a random length with probability `random_length` (LLaDA, appendix
        B.1)."""
        T = batch.ids.shape[1]
        if self.padding != "learn":
            T = max(1, int(batch.length.max()))
        if rng is not None and self.random_length:
            chance, length = torch.rand(2, generator=rng).tolist()
            T = 1 + int(length * T) if chance < self.random_length else T
        return Batch(batch.ids[:, :T], batch.prompt_mask[:, :T], batch.length.clamp(max=T))

    # -- loss --

    def times(self, B: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """t (B,), one in each of B strata of the schedule's range, and its weights (B,)."""
        t_min = self.noise.t_min
        t = t_min + (1 - t_min) * low_discrepancy_uniform(B, rng)
        if not self.by_importance:
            return t, self.weight(t)
        t, weight = importance(self.noise, t)
        return t, torch.full_like(t, weight)

    def weight(self, t: Tensor) -> Tensor:
        """Factor of the cross entropy of the masked tokens at t (B,), in training:
        alpha'(t) / (1 - alpha(t)) (MDLM, eq. 10)."""
        return self.noise.weight(t)

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Noisy:
        """Each target token is masked with probability mask_prob(t), t drawn for each row. Divided
        by `count`, the loss is the mean that `loss_per` defines."""
        batch = self.cut(batch, rng)
        t, weight = self.times(len(batch.ids), rng)
        target_mask, u = self.target_mask(batch), torch.rand(batch.ids.shape, generator=rng)
        masked = target_mask & (u < self.noise.mask_prob(t)[:, None])
        lengths, count = target_mask.sum(1), int(target_mask.sum())
        if self.loss_per != "token":
            count = int((lengths > 0).sum())
            weight = weight / lengths.clamp(min=1) if self.loss_per == "answer" else weight
        return self.noisy(batch, masked, weight, self.noise.total(t), count)

    def noisy(
        self, batch: Batch, masked: Tensor, weight: Tensor, sigma: Tensor, count: int = 0
    ) -> Noisy:
        """`batch` is the result of `cut`; masked (B, T) bool, weight and sigma (B,)."""
        inside = self.inside(batch)[:, None] if self.padding == "ignore" else None
        xt = batch.ids.masked_fill(masked, self.mask_id)
        return Noisy(batch.ids, xt, masked, sigma, weight, count, inside)

    def loss(self, net: Any, noisy: Noisy) -> Loss:
        """weight(t) times the cross entropy of the masked tokens, summed; nats (MDLM, eq. 10)."""
        total, losses, row = self.cross_entropy(net, noisy)
        unweighted = (losses / to_device(noisy.weight[row], losses.device)).sum()
        return Loss(total, noisy.count, {"ce": metric(unweighted, len(losses))})

    def features(self, net: Any, noisy: Noisy) -> tuple[Tensor, Tensor, Tensor]:
        """Features at the masked positions -> (h (R, C), row (R,), column (R,))."""
        time = self.condition(net, noisy.sigma, net.head.weight.device)
        return features_at(net, noisy.xt, noisy.scored, time, noisy.inside)

    def cross_entropy(self, net: Any, noisy: Noisy) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy times weight at the masked positions -> (sum (), per position (R,), its row
        (R,))."""
        h, row, col = self.features(net, noisy)
        target = to_device(noisy.x0[row, col], h.device)
        weight = to_device(noisy.weight[row].float(), h.device)
        return *chunked_cross_entropy(net.head, h, target, weight, self.mask_id), row

    def condition(self, net: Any, sigma: Tensor, device: torch.device) -> Tensor | None:
        """sigma (B,) clamped to the range seen in training, or None for a network without time."""
        if net.time is None:
            return None
        if self.zero_time:
            return torch.zeros(len(sigma), device=device)
        return to_device(clamp_sigma(self.noise, sigma), device)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats. The integral over t does not depend on the schedule: it is a mean
        over the number of masked tokens, exactly k of n, with weight n / k (LLaDA, eq. 14)."""
        batch, bounds = self.cut(batch, None), []
        for i in range(samples):
            u = torch.rand(len(batch.ids), generator=rng, dtype=torch.float64)
            masked, k, mask_prob = mask_k_tokens(self.target_mask(batch), (i + u) / samples, rng)
            weight = self.target_mask(batch).sum(1) / k.double()
            noisy = self.noisy(batch, masked, weight, -torch.log1p(-mask_prob))
            bounds.append(self.nats_by_row(net, noisy))
        return torch.stack(bounds).mean(0)

    def nats_by_row(self, net: Any, noisy: Noisy) -> Tensor:
        """The loss of each row: (B,) float64."""
        _, losses, row = self.cross_entropy(net, noisy)
        total = torch.zeros(len(noisy.x0), dtype=torch.float64)
        return total.index_add_(0, row, losses.double().cpu())

    @torch.no_grad()
    def discrete_bound(
        self, net: Any, batch: Batch, rng: torch.Generator, T: int, samples: int = 1
    ) -> Tensor:
        """(B,) float64 nats: the bound of the `ancestral` sampler with T steps (MDLM, eq. 8), on
        its own grid of noise levels and told what it is told. Places are unmasked independently,
        each in a step drawn from the grid; the step that is looked at is drawn in the same way, so
        that its weight is 1 over the share that is still masked. For equal shares it decreases to
        `bound` as T grows."""
        batch, bounds = self.cut(batch, None), []
        target_mask = self.target_mask(batch)
        levels = ancestral_grid(self.noise, self.steps_of(batch, target_mask, T))
        for i in range(samples):
            u = (i + torch.rand(len(batch.ids), generator=rng, dtype=torch.float64)) / samples
            mask_prob = levels.gather(1, unmask_step(levels, u[:, None]))[:, 0]
            share = mask_prob / levels[:, 0]  # of the places, which all are masked at first
            u = torch.rand(batch.ids.shape, generator=rng, dtype=torch.float64)
            masked = target_mask & (u < share[:, None])
            sigma = -torch.log1p(-mask_prob)
            bounds.append(self.nats_by_row(net, self.noisy(batch, masked, 1 / share, sigma)))
        return torch.stack(bounds).mean(0)

    def steps_of(self, batch: Any, target_mask: Tensor, steps: int) -> Tensor:
        """(B,) int64: how many of the sampler's steps each row of the result of `cut` has."""
        return torch.full((len(target_mask),), steps)

    @torch.no_grad()
    def likelihood(
        self,
        net: Any,
        ids: Tensor,
        prompt_mask: Tensor,
        rng: torch.Generator,
        samples: int = 128,
        batch_size: int = 16,
        cfg: float = 0.0,
    ) -> float:
        """Estimate, in nats, of a lower bound on log p(answer | prompt) of one row ids (T,), whose
        answer is what lies outside prompt_mask (T,). `samples`, a multiple of batch_size, is the
        number of maskings; each masks an exact number of positions, from `answer_counts`. This is
        the protocol of published scores (LLaDA, appendix B.5). Without guidance its mean is that of
        -`bound`, but for the rounding in `answer_counts`."""
        assert samples % batch_size == 0 and not prompt_mask.all(), (
            samples,
            batch_size,
            prompt_mask,
        )
        batch = Batch(*(x.expand(batch_size, -1) for x in (ids, prompt_mask)), None)
        batch = batch._replace(length=torch.full((batch_size,), len(ids)))
        net = Guided(net, batch.prompt_mask, self.mask_id, cfg) if cfg else net
        total, n = 0.0, int((~prompt_mask).sum())
        for _ in range(samples // batch_size):
            masked = torch.zeros_like(batch.prompt_mask)
            masked[:, ~prompt_mask] = self.answer_masks(n, batch_size, rng)
            k = masked.sum(1).double()
            # any function of k would do as the time input: the bound holds for all of them
            sigma = -torch.log1p(-k / (n + 1))
            noisy = self.noisy(batch, masked, n / k, sigma)
            total += float(self.nats_by_row(net, noisy).mean())
        return -total * batch_size / samples

    def answer_masks(self, n: int, copies: int, rng: torch.Generator) -> Tensor:
        """(copies, n) bool: which positions of an answer to mask in each copy."""
        k = int(torch.randint(1, n + 1, (), generator=rng))
        order = torch.rand(copies, n, generator=rng).argsort(1)
        return order < answer_counts(n, copies, k)[:, None]

    # -- sampling --

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        return MaskedSampler


class TokenNoise(Masked):
    """Masked diffusion that also learns to see what is wrong: a share `token_noise` of the visible
    target tokens are replaced by others, and the network predicts the right token at every target
    place, visible or masked. With it written text can be edited (`remask=edit`). The mixture of
    masks and wrong tokens is that of GIDD (von Rütte et al. 2025, arXiv 2503.04482), whose wrong
    tokens are uniform; here they are drawn from the targets of the batch, as often as they occur,
    which are the mistakes that a sampler makes. The loss is not GIDD's bound: visible tokens weigh
    1 each. `bound` is that of masked diffusion, on texts without wrong tokens."""

    def __init__(self, token_noise: float, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.token_noise = token_noise

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Noisy:
        noisy = super().corrupt(batch, rng)
        target = self.target_mask(batch)[:, : noisy.x0.shape[1]]
        if not target.any():
            return noisy
        wrong = torch.rand(noisy.x0.shape, generator=rng) < self.token_noise
        tokens = noisy.x0[target]
        other = tokens[torch.randint(len(tokens), noisy.x0.shape, generator=rng)]
        xt = torch.where(target & ~noisy.scored & wrong, other, noisy.xt)
        return noisy._replace(xt=xt, scored=target)

    def loss(self, net: Any, noisy: Noisy) -> Loss:
        """weight(t) times the cross entropy of the masked tokens, and that of the visible ones;
        nats, summed."""
        h, row, col = self.features(net, noisy)
        masked = to_device(noisy.xt[row, col] == self.mask_id, h.device)
        target, weight = (to_device(v, h.device) for v in (noisy.x0[row, col], noisy.weight[row]))
        weight = torch.where(masked, weight.float(), 1.0)
        total, losses = chunked_cross_entropy(net.head, h, target, weight, self.mask_id)
        each = losses / weight
        return Loss(
            total,
            noisy.count,
            {
                "ce": metric(each[masked].sum(), int(masked.sum())),
                "visible_ce": metric(each[~masked].sum(), int((~masked).sum())),
            },
        )

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        return EditSampler if options.remask == "edit" else MaskedSampler


class MaskedTokens(Masked):
    """The loss of masked language models: the mean cross entropy of the masked tokens, with the
    same weight at every t. The network has no time input; samplers and bound are those of masked
    diffusion."""

    def __init__(self, vocab_size: int, mask_id: int | None, noise: Noise, **options: Any):
        super().__init__(vocab_size, mask_id, noise, **options)
        self.network_kwargs["time"] = False

    config_fields = "noise sigma_min sigma_max padding random_length".split()

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        if cfg.importance or cfg.loss_per != "token":
            raise UserError(
                "objective=mlm: a mean over masked tokens, no importance, loss_per=token"
            )
        noise, mask_id = noise_schedule(cfg), specials.get("mask")
        options = {"padding": cfg.padding, "random_length": cfg.random_length}
        return cls(vocab_size, mask_id, noise, **options)

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Noisy:
        noisy = super().corrupt(batch, rng)
        weight = torch.ones_like(noisy.weight)
        return noisy._replace(weight=weight, count=int(noisy.scored.sum()))

    def loss(self, net: Any, noisy: Noisy) -> Loss:
        """Sum of the cross entropy of the masked tokens in nats, and their number."""
        total, _, _ = self.cross_entropy(net, noisy)
        return Loss(total, noisy.count, {})


# ==================================================================================================
# 5. Block diffusion: blocks from left to right, each by masked diffusion given all before it
#
#     BD3  Arriola et al. 2025, Block Diffusion: Interpolating Between Autoregressive and Diffusion
#          Language Models, arXiv 2503.09573
#
# log p(x) = sum_b log p(x_b | x_<b), and each term has the bound of masked diffusion (BD3). A
# block as long as the row is masked diffusion; blocks of one token, which are always masked, are
# an autoregressive model. Prompt tokens are clean wherever they stand, but no block sees those in
# the blocks to its right: infilling works within a block only, continuation anywhere.
# ==================================================================================================


WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of clipped ranges of t, moved in steps of 0.05 (BD3)


@lru_cache(8)
def block_mask(T: int, length: int, device: torch.device) -> Tensor:
    """(2T, 2T) bool: may query attend to key, for T noised tokens followed by the same T clean ones
    (BD3): to its own block in its own half, and to the clean blocks before it."""
    place = torch.arange(2 * T, device=device)
    block, clean = place % T // length, place >= T
    same = (block[:, None] == block) & (clean[:, None] == clean)
    return same | ((block[:, None] > block) & clean)


class Cells(NamedTuple):
    """A batch whose rows are blocks, B times as many as a row has, for masked diffusion. The last
    block of a row is filled up with positions that count as prompt."""

    ids: Tensor  # (B nb, L) int64
    prompt_mask: Tensor  # (B nb, L) bool
    length: Tensor  # (B nb,) int64
    rows: Batch  # the batch itself


def cells(batch: Batch, length: int) -> Cells:
    """The blocks of a batch, row by row; length 0: whole rows."""
    T = batch.ids.shape[1]
    size = min(length or T, T)
    fill = -T % size
    ids, prompt_mask = F.pad(batch.ids, (0, fill)), F.pad(batch.prompt_mask, (0, fill), value=True)
    start = torch.arange(0, T, size)
    lengths = (batch.length[:, None] - start).clamp(0, size)
    return Cells(ids.view(-1, size), prompt_mask.view(-1, size), lengths.flatten(), batch)


class NoisyAndClean:
    """A network that sees each noised block with the clean blocks before it, in one pass over 2T
    positions, 0 to T - 1 twice. The time input of clean tokens is `clean_time`, the lowest level;
    with `per_row` all tokens of a row get the same time."""

    def __init__(self, net: Any, x0: Tensor, clean_time: Tensor | None, per_row: bool):
        self.net, self.x0, self.clean_time, self.per_row = net, x0, clean_time, per_row
        self.head, self.time = net.head, net.time

    def features(self, xt: Tensor, time: Tensor | None, inside: Tensor | None = None) -> Tensor:
        """xt (B nb, L), time (B nb,), inside (B nb, 1, L) bool keys -> features (B nb, L, C)."""
        size, (B, T) = xt.shape[1], self.x0.shape
        x0 = to_device(self.x0, xt.device)
        both = torch.cat([xt.view(B, -1)[:, :T], x0], 1)
        mask = block_mask(T, size, xt.device)[None]
        if inside is not None:
            mask = mask & inside.view(B, 1, -1)[..., :T].repeat(1, 1, 2)
        if time is not None and self.per_row:
            time = time[:B]
        elif time is not None:
            level = time.view(B, -1).repeat_interleave(size, 1)[:, :T]
            time = torch.cat([level, self.clean_time.expand(B, T)], 1)
        positions = torch.arange(T, device=xt.device).repeat(2)[None]
        h = self.net.features(both, time, mask, positions)[:, :T]
        return F.pad(h, (0, 0, 0, -T % size)).reshape(len(xt), size, -1)


class BlockDiffusion(Masked):
    """Masked diffusion of blocks of `length` tokens (0: the whole row); the last may be short.

    Every block has its own t, in training from [low, high]: the loss has less variance where
    neither very few nor almost all tokens are masked (BD3). Bounds are over the whole range of t
    whatever was trained. Published models have no time input; a network with time gets the level of
    each token, and the lowest one for clean tokens.
    """

    estimator = "sum over blocks of the variational bound of masked diffusion"

    def __init__(
        self,
        vocab_size: int,
        mask_id: int | None = None,
        noise: Noise | None = None,
        *,
        length: int = 0,
        low: float = 0.0,
        high: float = 1.0,
        **options: Any,
    ):
        super().__init__(vocab_size, mask_id, noise, **options)
        assert self.loss_per == "token" and not self.by_importance, "bd3: one t per block"
        # an unmasked single token has no loss, so always masking it estimates without variance
        self.length, self.low, self.high = length, 1.0 if length == 1 else low, high
        if length == 1:
            self.exact, self.estimator = True, "exact likelihood, blocks of one token"

    config_fields = (
        "noise sigma_min sigma_max zero_time padding random_length block_length t_low t_high"
    ).split()

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        if cfg.importance or cfg.loss_per != "token":
            raise UserError("objective=bd3 has one t per block: no importance, loss_per=token")
        if cfg.block_length == 1 and (cfg.t_low, cfg.t_high) != (0.0, 1.0):
            raise UserError("t_low, t_high: blocks of one token are always masked")
        return cls(
            vocab_size,
            specials.get("mask"),
            noise_schedule(cfg),
            length=cfg.block_length,
            low=cfg.t_low,
            high=cfg.t_high,
            zero_time=cfg.zero_time,
            padding=cfg.padding,
            random_length=cfg.random_length,
        )

    def cut(self, batch: Batch, rng: torch.Generator | None) -> Cells:
        """The batch as blocks instead of rows."""
        return cells(super().cut(batch, rng), self.length)

    def times(self, B: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One t in each of B strata of [low, high], in random order, so that t does not depend on
        where a block stands in the row."""
        low = max(self.low, self.noise.t_min)
        t = (
            low
            + (self.high - low) * low_discrepancy_uniform(B, rng)[torch.randperm(B, generator=rng)]
        )
        return t, self.weight(t)

    def noisy(self, batch: Cells, *args: Any) -> Noisy:
        return super().noisy(batch, *args)._replace(clean=batch.rows.ids)

    def features(self, net: Any, noisy: Noisy) -> tuple[Tensor, Tensor, Tensor]:
        both = NoisyAndClean(net, noisy.clean, self.clean_time(net), self.zero_time)
        return super().features(both, noisy)

    def condition(self, net: Any, sigma: Tensor, device: torch.device) -> Tensor | None:
        """As Masked's. Blocks of one token are always masked, and in training always at t = 1:
        whatever level a bound or a sampler has drawn, the network gets that of t = 1."""
        if self.length == 1:
            sigma = self.noise.total(torch.ones(len(sigma)))
        return super().condition(net, sigma, device)

    def clean_time(self, net: Any) -> Tensor | None:
        """(1,) time input of a clean token."""
        return super().condition(net, torch.zeros(1), net.head.weight.device)

    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: the sum of the bounds of the blocks, each given the clean ones before
        it, with independent numbers of masked tokens. Exact for blocks of one token."""
        return super().bound(net, batch, rng, samples).view(len(batch.ids), -1).sum(1)

    def discrete_bound(
        self, net: Any, batch: Batch, rng: torch.Generator, T: int, samples: int = 1
    ) -> Tensor:
        """As Masked's, T steps for all blocks together."""
        nats = super().discrete_bound(net, batch, rng, T, samples)
        return nats.view(len(batch.ids), -1).sum(1)

    def steps_of(self, batch: Cells, target_mask: Tensor, steps: int) -> Tensor:
        """The sampler shares them out among the blocks up to the last that it writes."""
        writes = target_mask.any(1).view(len(batch.rows.ids), -1)  # (B, nb)
        k = torch.arange(writes.shape[1])
        return steps_of_block(steps, k, (writes * (k + 1)).amax(1, keepdim=True)).flatten()

    @torch.no_grad()
    def clip_search(
        self, net: Any, batches: Iterable[Batch], rng: torch.Generator
    ) -> list[tuple[float, float, float]]:
        """Ranges of t by the variance of a block's loss in them, smallest first: (variance of the
        nats per target token, low, high). All ranges are measured on the same blocks, each with a t
        from the whole range (after BD3's search for clipped schedules)."""
        t_min, times, losses = self.noise.t_min, [], []
        for batch in batches:
            batch = self.cut(batch, None)
            target_mask, u = self.target_mask(batch), torch.rand(batch.ids.shape, generator=rng)
            t = t_min + (1 - t_min) * torch.rand(len(batch.ids), generator=rng)
            masked = target_mask & (u < self.noise.mask_prob(t)[:, None])
            noisy = self.noisy(batch, masked, self.weight(t), self.noise.total(t))
            nats = self.nats_by_row(net, noisy)
            keep = target_mask.any(1)
            times.append(t[keep])
            losses.append((nats / target_mask.sum(1).clamp(min=1))[keep])
        t, loss = torch.cat(times), torch.cat(losses)
        ranges = [(t_min, 1.0)]
        for width in WIDTHS:
            ranges += [(k / 20, k / 20 + width) for k in range(round(20 * (1 - width)) + 1)]
        each = [(loss[(t >= a) & (t <= b)], a, b) for a, b in ranges]
        return sorted((float(some.var()), a, b) for some, a, b in each if len(some) > 1)

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        """Those of masked text, within each block."""
        return BlockSampler


# ==================================================================================================
# 6. Which masked places are written next: how many, which, and which are masked again
#
# Pure functions; chapter 7 runs them. Scores are in [0, 1], 1 for certainty.
#
#     MaskGIT    Chang et al. 2022, arXiv 2202.04200     LLaDA  Nie et al. 2025, arXiv 2502.09992
#     Fast-dLLM  Wu et al. 2025, arXiv 2505.22618        Dream  Ye et al. 2025, arXiv 2508.15487
#     ReMDM      Wang et al. 2025, arXiv 2503.00307
#     EB-Sampler Ben-Hamu et al. 2025, arXiv 2505.24857
# ==================================================================================================


# ---- how many ----------------------------------------------------------------------------------


def _uniform(left: Tensor, step: int, steps: int) -> Tensor:
    """Equal shares, the larger ones first (LLaDA)."""
    return -(-left // (steps - step))


def _by_share(text: Callable[[Tensor], Tensor]) -> Callable:
    """As many as takes the share of written places from text(t) to text(s), in equal steps. In
    float32, as published (dllm): where that is half a place, its rounding decides."""

    def count(left: Tensor, step: int, steps: int) -> Tensor:
        masked = 1 - text(torch.tensor([steps - step, steps - step - 1]) / steps)
        moves = (1 - masked[1] / masked[0]).item()
        return (left.double() * moves).round().long() if step < steps - 1 else left

    return count


SCHEDULES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "uniform": _uniform,
    "linear": _by_share(lambda t: 1 - t),
    "cosine": _by_share(lambda t: 1 - torch.cos(math.pi / 2 * (1 - t))),  # few at first (MaskGIT)
}


def num_transfer_tokens(count: Tensor, steps: int, schedule: str) -> Tensor:
    """count (B,) masked places -> (B, steps) int64: how many are written in each step."""
    left, parts = count, []
    for step in range(steps):
        parts.append(SCHEDULES[schedule](left, step, steps).clamp(max=left))
        left = left - parts[-1]
    return torch.stack(parts, 1)


TIE = 2e-6  # scores that are no further apart are equal: float32 rounding is not an order


def ranks(row: Tensor, value: Tensor, tie: float = 0.0) -> Tensor:
    """row (R,) ascending, value (R,) -> (R,) int64: 0 for the highest value of each row; ties go
    to the first. Values that follow one another at distances of at most `tie` are ties."""
    by_value = value.argsort(descending=True, stable=True)
    order = by_value[row[by_value].argsort(stable=True)]  # by row, then by value
    sizes = torch.bincount(row)
    start = sizes.cumsum(0) - sizes
    if tie:  # then by group of ties, and within one as they stand
        r, v = row[order], value[order]
        begins = (r[1:] != r[:-1]) | (v[:-1] - v[1:] > tie)
        group = torch.empty_like(row).index_put((order,), F.pad(begins.long(), (1, 0)).cumsum(0))
        order = group.argsort(stable=True)
    rank = torch.arange(len(row), device=row.device) - start[row]
    return torch.empty_like(row).index_put((order,), rank)


# An adaptive schedule says which of the masked places (R,) are written: as many as score well. It
# sees their rows, ascending, their scores, the option of its own name, and the entropies of their
# tokens in nats.


def above_threshold(row: Tensor, score: Tensor, threshold: float, nats: Any = None) -> Tensor:
    """(R,) bool: places that score at least `threshold`, and the best of each row (Fast-dLLM)."""
    return (score >= threshold) | (ranks(row, score, TIE) == 0)


def within_factor(row: Tensor, score: Tensor, factor: float, nats: Any = None) -> Tensor:
    """(R,) bool: the r best of each row, as long as the r-th scores at least 1 - factor / (r + 1);
    always the best (Fast-dLLM)."""
    rank = ranks(row, score, TIE)
    fails = (score < 1 - factor / (rank + 2)) & (rank > 0)
    first = torch.full_like(torch.bincount(row), len(row))
    first = first.scatter_reduce(0, row, torch.where(fails, rank, len(row)), "amin")
    return rank < first[row]


def within_entropy_bound(row: Tensor, score: Tensor, bound: float, nats: Tensor) -> Tensor:
    """(R,) bool: the r best of each row, as long as their entropies but for the largest sum to at
    most `bound` nats; always the best (EB-Sampler). Tokens that are drawn in one step are drawn as
    if they were independent. What that costs is the KL divergence of their joint law from the
    product of their own laws, sum H - H(joint), and H(joint) is at least the largest H. A bound of
    0 writes one place per step, and what is certain beside it."""
    rank = ranks(row, score, TIE)
    by_rank = nats.new_zeros(int(row.max()) + 1, int(rank.max()) + 1, dtype=torch.float64)
    by_rank[row, rank] = nats.double()
    cost = by_rank.cumsum(1) - by_rank.cummax(1).values  # of the r best; grows with r
    return (cost <= bound)[row, rank] | (rank == 0)


ADAPTIVE: dict[str, Callable[[Tensor, Tensor, float, Tensor], Tensor]] = {
    "threshold": above_threshold,
    "factor": within_factor,
    "entropy_bound": within_entropy_bound,
}


# ---- which -------------------------------------------------------------------------------------


# An order gives a score to every masked place, in [0, 1], from logp (R, V), normalised, of the
# places at (row, col) (R,) of the canvas, and masked (B, T), what is still to be written in it.


def confidence(logp: Tensor, row: Tensor, col: Tensor, masked: Tensor) -> Tensor:
    """Probability of the best token (R,)."""
    return logp.amax(1).exp()


def margin(logp: Tensor, row: Tensor, col: Tensor, masked: Tensor) -> Tensor:
    """Probability of the best token less that of the second."""
    first, second = logp.topk(2).values.exp().unbind(1)
    return first - second


def entropy(logp: Tensor, row: Tensor, col: Tensor, masked: Tensor) -> Tensor:
    """e^-H, H the entropy."""
    return entropy_nats(logp).neg().exp()


def entropy_nats(logp: Tensor) -> Tensor:
    """Entropy in nats (R,) of the distributions logp (R, V), normalised."""
    return torch.special.entr(logp.exp()).sum(1)


ORDERS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None] = {
    "random": None,  # these two do not depend on the logits
    "left_to_right": None,
    "confidence": confidence,
    "margin": margin,
    "entropy": entropy,
}
BLIND = ("random", "left_to_right")  # orders that look at no token


# ---- masking again -------------------------------------------------------------------------------


class RemaskStep(NamedTuple):
    """ReMDM: shares of text at the ends of a step, and the probability of masking it again."""

    alpha_t: float
    alpha_s: float
    sigma: Tensor  # (B, T) float64

    def unmask_prob(self) -> Tensor:
        """Probability (B, T) that a masked place is written in this step (ReMDM, eq. 4)."""
        kept = (1 - self.sigma) * self.alpha_t
        return (self.alpha_s - kept) / (1 - self.alpha_t)


# A remasking rule is one step from t to s, the share of text 1 - t. confidence (B, T) float64: the
# probability that each token had when it was written, infinite where it is MASK or given; eta
# scales.


def most_remasked(t: float, s: float) -> float:
    """The largest probability with which a step from t to s may mask a token again."""
    return min(1.0, s / (1 - t)) if t < 1 else 1.0


def cap(t: float, s: float, eta: float, confidence: Tensor) -> RemaskStep:
    return RemaskStep(1 - t, 1 - s, torch.full_like(confidence, min(eta, most_remasked(t, s))))


def rescale(t: float, s: float, eta: float, confidence: Tensor) -> RemaskStep:
    return RemaskStep(1 - t, 1 - s, torch.full_like(confidence, eta * most_remasked(t, s)))


def by_confidence(t: float, s: float, eta: float, confidence: Tensor) -> RemaskStep:
    """The least confident tokens first; no eta."""
    share = confidence.neg().softmax(1).nan_to_num()
    return RemaskStep(1 - t, 1 - s, share * most_remasked(t, s))


LOOP_ON, LOOP_OFF, LOOP_ALPHA = 0.55, 0.05, 0.9  # ReMDM's loop on OpenWebText


LOOP_MOST = (1 - LOOP_ALPHA) / LOOP_ALPHA  # largest eta: `most_remasked` at that share


def loop(t: float, s: float, eta: float, confidence: Tensor) -> RemaskStep:
    """Write down to a share of 0.9, then mask and rewrite at that share, then finish."""

    def alpha(time: float) -> float:
        if time > LOOP_ON:
            return (1 - time) * LOOP_ALPHA / (1 - LOOP_ON)
        return LOOP_ALPHA if time > LOOP_OFF else 1 - time * (1 - LOOP_ALPHA) / LOOP_OFF

    looping = LOOP_OFF < t <= LOOP_ON
    sigma = torch.full_like(confidence, eta if looping else 0.0)
    return RemaskStep(alpha(t), LOOP_ALPHA if looping else alpha(s), sigma)


def edit(t: float, s: float, eta: float, confidence: Tensor) -> RemaskStep:
    """Every token whose probability under the present text is below eta. EditSampler keeps that in
    `confidence`."""
    return RemaskStep(1 - t, 1 - s, (confidence < eta).double())


class RemaskRule(NamedTuple):
    step: Callable[[float, float, float, Tensor], RemaskStep]
    eta: float  # ReMDM's choice; edit: ours


REMASKING: dict[str, RemaskRule] = {
    "cap": RemaskRule(cap, 0.008),
    "rescale": RemaskRule(rescale, 0.015),
    "conf": RemaskRule(by_confidence, 0.0),
    "loop": RemaskRule(loop, 0.02),
    "edit": RemaskRule(edit, 0.1),
}

# what the options of samplers may be: the names of these registries
CHOICES["unmask_schedule"] = ChainMap(ADAPTIVE, SCHEDULES)
CHOICES["remask"] = ChainMap(REMASKING, {"none": None})


# ==================================================================================================
# 7. How a masked canvas is written: the one sampler of every model that predicts masked tokens
#
# Four choices compose. Which places are next (`sampler`), how many at a time (`unmask_schedule`),
# within which part of the text (`block_length`), and whether written ones are masked again
# (`remask`):
#
#     first_hitting  the reverse process in continuous time, a place at a time (FHS)
#     ancestral      the same on a grid of `steps`, whose idle ones are skipped (MDLM)
#     random         so many places, anywhere
#     confidence     the places whose best token is most probable first (MaskGIT, LLaDA)
#     margin         ... whose best two tokens are furthest apart (Dream)
#     entropy        ... whose distribution has the least entropy (Dream)
#
# A place is chosen before its token is drawn, in float64: truncated float32 noise would change the
# law. (LLaDA draws at all places and keeps the tokens that happen to be probable: the same at
# temperature 0, and nearly greedy above it.) MASK is never drawn. Ties (TIE) go to the left, those
# of delayed tokens (`delay`: EOS) to the right, so that a text ends before its tail.
#
#     FHS    Zheng et al. 2024, Masked Diffusion Models are Secretly Time-Agnostic Masked Models,
#            arXiv 2409.02908; the others are named in chapter 6
# ==================================================================================================


class MaskedSampler(Sampler):
    """The canvas x (B, T), which `run` writes: features of the network at the masked places, which
    of these places are written now (a rule of SAMPLERS), their logits, tokens drawn from them.

    `objective` has mask_id, noise, normalize, and condition(net, sigma, device), which turns the
    total noise into the network's time input.
    """

    reads = (*Sampler.reads, "block_length", "cfg", "cache", "stop", "wrap", "length")

    @classmethod
    def options_read(cls, objective: Any, o: SampleOptions) -> set[str]:
        return {*cls.reads, *rule_of(o).reads}

    @classmethod
    def without_effect(cls, objective: Any, o: SampleOptions) -> set[str]:
        unused = {name for name in ADAPTIVE if name != o.unmask_schedule}
        if o.unmask_schedule in ADAPTIVE:
            unused |= {"steps", "remask"}  # as many steps as it takes, and none goes back
        if o.sampler in BLIND:
            unused |= {"delay", *ADAPTIVE}
        if o.sampler in BLIND and o.unmask_schedule in ADAPTIVE:
            unused |= {"unmask_schedule"}
        if o.remask == "none" or not REMASKING[o.remask].eta:
            unused |= {"eta"}
        return unused

    def __init__(
        self, objective: Any, net: Any, ids: Tensor, prompt_mask: Tensor, rng: Any, o: Any
    ):
        super().__init__(o, rng)
        self.objective, self.net, self.prompt_mask = objective, net, prompt_mask
        self.mask_id = objective.mask_id
        self.x = torch.where(prompt_mask, ids, self.start(ids))
        self.editable = ~prompt_mask
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)  # (B, T)
        self.inside = None  # (B, 1, T): rows of unequal length do not attend beyond their ends
        if o.length is not None and bool((o.length < ids.shape[1]).any()):
            self.inside = (places < o.length[:, None])[:, None]
        self.first = torch.where(prompt_mask, ids.shape[1], places).amin(1, keepdim=True)  # (B, 1)
        width = o.block_length or ids.shape[1]
        self.block = (places - self.first).clamp(min=0) // width  # (B, T)
        self.blocks = int(torch.where(self.editable, self.block, 0).max()) + 1
        self.current_block = self.blocks - 1  # the last block that may be written
        self.cache: Cache | None = None
        self.remask: RemaskStep | None = None  # of the present step
        self.remasked = torch.zeros_like(prompt_mask)  # (B, T): are masked again in it
        # (B, T): probability that each token had when it was written
        self.confidence = torch.full(ids.shape, torch.inf, device=ids.device, dtype=torch.float64)
        self.entropies: Tensor | None = None  # (R,) nats: of the places of the last `scores`
        self._check()

    def _check(self) -> None:
        o, adaptive = self.o, self.o.unmask_schedule in ADAPTIVE
        problems = {
            f"remask={o.remask} needs an unmask_schedule with a number of steps": o.remask != "none"
            and adaptive,
            f"unmask_schedule={o.unmask_schedule} needs a sampler that uses probabilities": adaptive
            and o.sampler in BLIND,
            "remask=edit needs a model that was trained with token_noise": o.remask == "edit"
            and not isinstance(self, EditSampler),
            f"cache={o.cache} does not go with remask": o.cache != "none" and o.remask != "none",
            f"cache={o.cache} needs prompts of one length in a batch": o.cache != "none"
            and (self.inside is not None or bool((self.first != self.first[0]).any())),
            f"cache={o.cache} needs our own network": o.cache != "none"
            and not isinstance(self.net, Transformer),
        }
        for problem, present in problems.items():
            if present:
                raise UserError(problem)
        if o.remask == "loop" and (o.eta or 0) > LOOP_MOST + 1e-9:
            raise UserError(
                f"remask=loop with eta={o.eta}: at most {LOOP_MOST:.4f}, as 1 - alpha is that much "
                f"of alpha = {LOOP_ALPHA} (ReMDM)"
            )

    def start(self, ids: Tensor) -> Tensor:
        """What stands at the places that are not given."""
        return torch.full_like(ids, self.mask_id)

    def run(self) -> Iterator[None]:
        """Write all blocks, from left to right; yields after each step. `steps` are shared out
        among the blocks that a row has, so that a row does not depend on its neighbours."""
        remasks = self.o.remask != "none"
        blocks = torch.where(self.editable, self.block + 1, 0).amax(1).clamp(min=1)  # (B,)
        for k in range(self.blocks):
            self.current_block, self.cache = k, None
            self.confidence.fill_(torch.inf)  # tokens of other blocks stay
            steps = steps_of_block(self.o.steps, k, blocks)
            rule = rule_of(self.o)(self, steps)
            for step in itertools.islice(itertools.count(), rule.limit):
                row, col = self.masked_positions()
                if len(row) == 0 and not remasks:
                    break
                if remasks:
                    self.draw_remasked(step, rule.steps)
                mask_prob = rule.mask_prob(step, row, col)
                if len(row) and mask_prob is not None:
                    h = self.forward(row, col, mask_prob)
                    chosen = rule.choose(step, row, col, h)
                    self.unmask(row[chosen], col[chosen], h[chosen])
                if remasks:
                    self.mask_again()
                else:
                    self.finish()
                yield
            if remasks and self.finish():
                yield

    # -- places --

    def masked_positions(self) -> tuple[Tensor, Tensor]:
        """Row and column (R,) of each MASK up to the present block, row by row."""
        masked = self.editable & (self.x == self.mask_id) & (self.block <= self.current_block)
        return masked.nonzero(as_tuple=True)

    def count(self, row: Tensor) -> Tensor:
        """row (R,) of some places -> (B,): how many of them each row has."""
        return torch.bincount(row, minlength=len(self.x))

    def uniforms(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=self.x.device, dtype=torch.float64)

    def draw_remasked(self, step: int, steps: int) -> None:
        """Which tokens of the present block become MASK again at the end of this step."""
        rule = REMASKING[self.o.remask]
        eta = rule.eta if self.o.eta is None else self.o.eta
        self.remask = rule.step(1 - step / steps, 1 - (step + 1) / steps, eta, self.confidence)
        written = self.editable & (self.x != self.mask_id) & (self.block == self.current_block)
        drawn = self.uniforms(*self.x.shape) < self.remask.sigma
        self.remasked = written & drawn & (step < steps - 1)  # the last step leaves no MASK

    def mask_again(self) -> None:
        self.x[self.remasked] = self.mask_id
        self.confidence[self.remasked] = torch.inf

    def finish(self) -> bool:
        """Once a row has written `stop` and nothing before it is masked, the rest of it is `stop`.
        Returns whether that changed anything."""
        if self.o.stop is None:
            return False
        masked, before = self.x == self.mask_id, self.x
        ends = ~self.prompt_mask & (before == self.o.stop) & (masked.cumsum(1) == 0)
        self.x = before.masked_fill((ends.cumsum(1) > 0) & ~self.prompt_mask, self.o.stop)
        return not torch.equal(self.x, before)

    # -- the network --

    def forward(self, row: Tensor, col: Tensor, mask_prob: Tensor) -> Tensor:
        """Features (R, C) at places (R,) in row order. The network runs on the rows that have
        some; its time input follows from mask_prob (B,), the share of the present block that is
        masked."""
        rows, slot = torch.unique_consecutive(row, return_inverse=True)
        sigma = -torch.log1p(-self.overall(mask_prob)[rows])
        time = self.objective.condition(self.net, sigma, rows.device)
        h, start = self.features(rows, time)  # (r, W, C)
        return h[slot, col - start]

    def overall(self, mask_prob: Tensor) -> Tensor:
        """Share (B,) of the present block -> share of all written places that are masked."""
        if self.blocks == 1:
            return mask_prob
        later = (self.editable & (self.block > self.current_block)).sum(1)
        present = (self.editable & (self.block == self.current_block)).sum(1)
        return (later + present * mask_prob) / self.editable.sum(1).clamp(min=1)

    def network(self, rows: Tensor | slice = slice(0), columns: slice = slice(None)) -> Any:
        """The network for these rows and columns, in what the options wrap it in."""
        net = self.net if self.o.wrap is None else self.o.wrap(self.net, rows)
        if self.o.cfg:
            net = Guided(net, self.prompt_mask[rows][:, columns], self.mask_id, self.o.cfg)
        return net

    def features(self, rows: Tensor, time: Tensor | None) -> tuple[Tensor, int]:
        """Features (r, W, C) of a window of some canvases, and the column where it begins."""
        if self.o.cache != "none":
            return self.features_cached(rows, time)
        masks = [] if self.inside is None else [self.inside[rows]]
        return self.network(rows).features(self.x[rows], time, *masks), 0

    def features_cached(self, rows: Tensor, time: Tensor | None) -> tuple[Tensor, int]:
        """The first pass of a block runs all columns and keeps their keys and values; those after
        it run the columns from the block on (prefix), or the block alone (dual), against what was
        kept of the others. An approximation: what was kept does not see what is written since
        (Fast-dLLM, section 3.2)."""
        T = self.x.shape[1]
        width = self.o.block_length or T
        first = int(self.first[0]) + self.current_block * width
        end = min(first + width, T) if self.o.cache == "dual" else T
        if self.cache is None:
            self.cache, first, end = Cache(len(self.x) * (2 if self.o.cfg else 1), T), 0, T
        window = slice(first, end)
        self.cache.at, self.cache.rows = window, rows
        net = self.network(rows, window)
        return net.features(self.x[rows][:, window], time, cache=self.cache), first

    # -- tokens --

    def logits(self, h: Tensor, *place: Tensor) -> Tensor:
        """Features (r, C) of places, at these rows and columns (r,) -> (r, V), at least float32;
        MASK and what may not be written there at -inf."""
        z = self.network().logits(h)
        z = z if z.dtype == torch.float64 else z.float()
        z[:, self.never()] = -torch.inf
        z = self.forbid(z, *place)
        return z.log_softmax(-1) if self.objective.normalize else z

    def never(self) -> list[int]:
        """Ids that are not written anywhere, whatever the options."""
        return [self.mask_id]

    def parts(self, rows: int) -> Iterator[slice]:
        """Slices of so many features whose logits fit the memory at once."""
        weight = self.net.head.weight
        return chunks(rows, len(weight), weight.device)

    def unmask(self, row: Tensor, col: Tensor, h: Tensor) -> None:
        """Draw and write the tokens of these places (R,) from features (R, C)."""
        for part in self.parts(len(row)):
            z = self.logits(h[part], row[part], col[part])
            token = self.token(row[part], col[part], z)
            self.write(row[part], col[part], token)
            if self.o.remask == "conf":
                p = z.double().log_softmax(-1).gather(1, token[:, None])[:, 0].exp()
                self.confidence[row[part], col[part]] = p

    def token(self, row: Tensor, col: Tensor, z: Tensor) -> Tensor:
        """Ids (r,) to write at these places (r,), from their logits (r, V)."""
        return self.sample_categorical(z)

    def write(self, row: Tensor, col: Tensor, token: Tensor) -> None:
        self.x[row, col] = token
        self.place(row, col)

    def scores(self, row: Tensor, col: Tensor, h: Tensor) -> Tensor:
        """How sure the network is of each place, (R,) in [0, 1]. A place whose best token is to be
        delayed is below 0, the leftmost lowest, and no other counts that token's probability.
        Leaves in `entropies` (R,), in nats, those of the tokens that it would draw there at
        temperature 1, delayed ones among them, for adaptive schedules."""
        order, late = ORDERS[self.o.sampler], torch.tensor(self.o.delay, device=col.device)
        masked = self.x == self.mask_id
        scores, nats = [h.new_empty(0)], [h.new_empty(0)]
        for part in self.parts(len(row)):
            logp = self.logits(h[part], row[part], col[part]).log_softmax(-1)
            if self.o.unmask_schedule in ADAPTIVE:
                nats.append(entropy_nats(logp))
            delayed = torch.isin(logp.argmax(1), late) if len(late) else None
            if delayed is not None:
                logp = logp.index_fill(1, late, -torch.inf).log_softmax(-1)
            score = order(logp, row[part], col[part], masked)
            if delayed is not None:
                score = torch.where(delayed, col[part] / self.x.shape[1] - 1, score)
            scores.append(score)
        self.entropies = torch.cat(nats)
        return torch.cat(scores)


# ---- which places are written in a step ---------------------------------------------------------


class Unmasking:
    """A rule of SAMPLERS, for one block of a canvas. Row b has steps[b] of the (B,) steps.

    In each step the loop first asks for mask_prob (B,), the share of the block that is masked: the
    noise level at which the network is called. Then `choose` says which of the masked places (R,)
    are written, (R,) bool.
    """

    reads: tuple[str, ...] = ()  # options, beside those that every rule reads
    limit: int | None = None  # steps after which the block ends; None: when nothing is masked

    def __init__(self, canvas: MaskedSampler, steps: Tensor):
        self.canvas, self.steps, self.o = canvas, int(steps.max()), canvas.o
        one = torch.ones((), dtype=torch.float64)
        self.highest = float(canvas.objective.noise.mask_prob(one))  # mask_prob at t = 1

    def mask_prob(self, step: int, row: Tensor, col: Tensor) -> Tensor | None:
        """None: nothing is written in this step, and the network is not called."""
        raise NotImplementedError

    def choose(self, step: int, row: Tensor, col: Tensor, h: Tensor) -> Tensor:
        raise NotImplementedError


class Ancestral(Unmasking):
    """The reverse process on a grid of times (MDLM). The step in which a place is unmasked does not
    depend on the network, so it is drawn first, and each row goes from one of its own events to
    the next: T (1 - (1 - 1/T)^L) calls per row instead of T. (MDLM skips a call when the whole
    batch is idle.)"""

    reads = ("steps", "remask")

    def __init__(self, canvas: MaskedSampler, steps: Tensor):
        super().__init__(canvas, steps)
        self.grid = ancestral_grid(canvas.objective.noise, steps)
        self.unmask_step = unmask_step(self.grid, canvas.uniforms(*canvas.x.shape))

    def mask_prob(self, step: int, row: Tensor, col: Tensor) -> Tensor:
        due = self.unmask_step[row, col]
        self.next = self.unmask_step.amax(1).scatter_reduce(0, row, due, "amin")
        return self.grid.gather(1, self.next[:, None])[:, 0]

    def choose(self, step: int, row: Tensor, col: Tensor, h: Tensor) -> Tensor:
        return self.unmask_step[row, col] == self.next[row]


def ancestral_grid(noise: Noise, steps: Tensor) -> Tensor:
    """mask_prob (B, S + 1) float64, falling, at the ends of the steps of rows that have steps (B,)
    of them, the longest S; a row that has fewer stays where it ends."""
    done = torch.arange(int(steps.max()) + 1, device=steps.device) / steps[:, None].double()
    return noise.mask_prob(1 - (1 - SAMPLE_EPS) * done.clamp(max=1))


def steps_of_block(steps: int, k: "int | Tensor", blocks: Tensor) -> Tensor:
    """How many of all steps block k of so many `blocks` (B,) of each row has, at least 1."""
    blocks = blocks.clamp(min=1)
    return (steps * (k + 1) // blocks - steps * k // blocks).clamp(min=1)


def unmask_step(mask_prob: Tensor, u: Tensor) -> Tensor:
    """mask_prob (B, S + 1), falling; u (B, T) uniform -> (B, T) int64: the step that unmasks each
    place, which is the one that takes mask_prob below a uniform level; else the last."""
    level = u * mask_prob[:, :1]
    return mask_prob.shape[1] - 1 - torch.searchsorted(mask_prob.flip(1), level)


class RemaskingAncestral(Unmasking):
    """The reverse process with remasking (ReMDM, eq. 4): a step at a time."""

    reads = ("steps", "remask", "eta")

    def __init__(self, canvas: MaskedSampler, steps: Tensor):
        super().__init__(canvas, steps)
        self.limit = self.steps

    def mask_prob(self, step: int, row: Tensor, col: Tensor) -> Tensor:
        masked = min(1 - self.canvas.remask.alpha_t, self.highest)
        return torch.full_like(self.canvas.confidence[:, 0], masked)

    def choose(self, step: int, row: Tensor, col: Tensor, h: Tensor) -> Tensor:
        p = self.canvas.remask.unmask_prob()[row, col]
        return (self.canvas.uniforms(len(row)) < p) | (step == self.steps - 1)


class FirstHitting(Unmasking):
    """The continuous-time limit of the grid, one place per step (FHS, Prop. 4.1): with k places
    masked, mask_prob falls by a factor u^(1/k) until the next one is unmasked."""

    def __init__(self, canvas: MaskedSampler, steps: Tensor):
        super().__init__(canvas, steps)
        self.now = torch.full_like(canvas.confidence[:, 0], self.highest)

    def mask_prob(self, step: int, row: Tensor, col: Tensor) -> Tensor:
        k = self.canvas.count(row).clamp(min=1)
        self.now = self.now * self.canvas.uniforms(len(self.now)) ** (1 / k)
        return self.now

    def choose(self, step: int, row: Tensor, col: Tensor, h: Tensor) -> Tensor:
        return ranks(row, self.canvas.uniforms(len(row))) == 0


class Ordered(Unmasking):
    """So many places per step, by a fixed schedule or as many as score well, the best of an order
    first. The network sees the noise level at which as many places are masked."""

    reads = ("steps", "unmask_schedule", *ADAPTIVE, "remask", "eta", "delay")

    def __init__(self, canvas: MaskedSampler, steps: Tensor):
        super().__init__(canvas, steps)
        self.lowest = float(canvas.objective.noise.mask_prob(torch.tensor(SAMPLE_EPS)))
        self.begun = canvas.count(canvas.masked_positions()[0])  # (B,)
        self.plan = None  # (B, S): how many places each row writes in each step
        if self.o.unmask_schedule in SCHEDULES:
            self.limit = self.steps
            self.plan = self.begun.new_zeros(len(steps), self.steps)
            for n in steps.unique().tolist():
                tokens = num_transfer_tokens(self.begun[steps == n], n, self.o.unmask_schedule)
                self.plan[steps == n, :n] = tokens

    def mask_prob(self, step: int, row: Tensor, col: Tensor) -> Tensor | None:
        left = self.canvas.count(row)
        if self.plan is not None:
            self.number = self.plan[:, step]
            if self.o.remask != "none":  # as many more as become MASK; the last step writes all
                more = self.canvas.remasked.sum(1)
                self.number = left if step == self.steps - 1 else self.number + more
            if not (self.number[row] > 0).any():
                return None
        return (left / self.begun.clamp(min=1)).double().clamp(self.lowest, self.highest)

    def choose(self, step: int, row: Tensor, col: Tensor, h: Tensor) -> Tensor:
        tie = TIE
        if self.o.sampler == "random":
            score, tie = self.canvas.uniforms(len(row)), 0.0
        elif self.o.sampler == "left_to_right":
            score, tie = -col.double(), 0.0
        else:
            score = self.canvas.scores(row, col, h)
        if self.plan is not None:
            return ranks(row, score, tie) < self.number[row]
        name = self.o.unmask_schedule
        return ADAPTIVE[name](row, score, getattr(self.o, name), self.canvas.entropies)


# (canvas, steps (B,) int64 of each row in the present block) -> rule; the default first
SAMPLERS: dict[str, type[Unmasking]] = {
    "first_hitting": FirstHitting,
    "ancestral": Ancestral,
    **dict.fromkeys(ORDERS, Ordered),
}


def rule_of(o: SampleOptions) -> type[Unmasking]:
    """The rule of SAMPLERS; the reverse process has another one with remasking."""
    rule = SAMPLERS[o.sampler]
    return RemaskingAncestral if rule is Ancestral and o.remask != "none" else rule


# ---- editing what is written ---------------------------------------------------------------------


class EditSampler(MaskedSampler):
    """`remask=edit`, for models that learnt from wrong tokens (TokenNoise): each of `steps` calls
    of the network reads the whole canvas. Of the masked places it writes the next, so many as the
    schedule says of those that are masked now, in the order of `sampler`; and every written token
    whose probability at its place is below eta becomes MASK, but in the last call, which writes all
    that is left. Both follow from the same canvas. The rest of the calls is left out once nothing
    is masked and no token is below eta: they would change nothing. A draft is a canvas where all is
    written."""

    reads = (
        *(*Sampler.reads, "steps", "unmask_schedule", "remask", "eta", "delay"),
        *("draft", "cfg", "wrap", "length"),
    )

    @classmethod
    def options_read(cls, objective: Any, o: SampleOptions) -> set[str]:
        return {*cls.reads} - ({"remask"} if o.sampler not in ORDERS else set())

    def start(self, ids: Tensor) -> Tensor:
        return ids if self.o.draft else super().start(ids)

    def run(self) -> Iterator[None]:
        row, col = self.editable.nonzero(as_tuple=True)
        places, steps = self.editable.sum(1).clamp(min=1), self.o.steps
        rule = Ordered(self, torch.full_like(places, steps))
        for step in range(steps if len(row) else 0):
            masked = self.x[row, col] == self.mask_id
            left = self.count(row[masked])
            share = (left / places).double().clamp(rule.lowest, rule.highest)
            h = self.forward(row, col, share)
            self.reread(row[~masked], col[~masked], h[~masked])
            self.draw_remasked(step, steps)
            rule.number = SCHEDULES[self.o.unmask_schedule](left, step, steps).clamp(max=left)
            chosen = rule.choose(step, row[masked], col[masked], h[masked])
            self.unmask(*(v[masked][chosen] for v in (row, col, h)))
            self.mask_again()
            yield
            if not (left.any() or self.remasked.any()):
                return

    def reread(self, row: Tensor, col: Tensor, h: Tensor) -> None:
        """Keep the probability of the tokens at these written places (W,) under the present
        text."""
        for part in self.parts(len(row)):
            at = row[part], col[part]
            p = self.logits(h[part], *at).double().softmax(1)
            self.confidence[at] = p.gather(1, self.x[at][:, None])[:, 0]


# ==================================================================================================
# 8. Samplers on a grid of times: SEDD's, on both graphs
# ==================================================================================================


GRIDS = ("analytic", "euler")


def grid(steps: int) -> Tensor:
    """Times 1 = t_0 > ... > t_steps = SAMPLE_EPS, float64; the denoiser acts at the last."""
    return torch.linspace(1, SAMPLE_EPS, steps + 1, dtype=torch.float64)


class UniformSampler(MaskedSampler):
    """Samplers of the uniform graph: any place may change in any step, so all of them are
    projected, a chunk at a time. Euler or analytic steps, then the denoiser."""

    reads = (*Sampler.reads, "steps", "wrap", "length")

    @classmethod
    def options_read(cls, objective: Any, o: SampleOptions) -> set[str]:
        return {*cls.reads}

    def start(self, ids: Tensor) -> Tensor:
        """Random text of ids that may be written there."""
        n, x = self.objective.graph.n, torch.empty_like(ids)
        every = Allowed(torch.ones(1, n, dtype=torch.bool, device=ids.device))
        lists, at = self.o.allowed or every
        at = torch.zeros_like(ids) if at is None else at
        for k in range(len(lists)):
            may = [i for i in lists[k, :n].nonzero()[:, 0].tolist() if i not in self.o.banned]
            size = (int((at == k).sum()),)
            noise = torch.randint(len(may), size, generator=self.rng, device=ids.device)
            x[at == k] = torch.tensor(may, device=ids.device)[noise]
        return x

    def run(self) -> Iterator[None]:
        times, (row, col) = grid(self.o.steps), self.editable.nonzero(as_tuple=True)
        if len(row) == 0:
            return
        noise = self.objective.noise
        sigma = noise.total(times)
        for i in range(self.o.steps + 1):
            if i == self.o.steps:
                step, dsigma = denoise_weights, sigma[i]
            elif self.o.sampler == "euler":
                step, dsigma = euler_weights, (times[i] - times[i + 1]) * noise.rate(times[i])
            else:
                step, dsigma = analytic_weights, sigma[i] - sigma[i + 1]
            h = self.forward(row, col, -torch.expm1(-sigma[i]).expand(len(self.x)))
            x, drawn = self.x[row, col], []
            for part in self.parts(len(row)):
                weights = self.step_weights(h[part], x[part], sigma[i], step, dsigma)
                drawn.append(self.draw(weights, x[part], row[part], col[part]))
            self.write(row, col, torch.cat(drawn))
            yield

    def step_weights(
        self, h: Tensor, x: Tensor, sigma: Tensor, step: Callable, dsigma: Tensor
    ) -> Tensor:
        """Weights (r, V) float64 of the next state, from features h (r, C) and states x (r,)."""
        each = sigma.to(x.device).expand(len(x))
        score = self.objective.log_score(self.network(), h, x, each).double().exp()
        return step(self.objective.graph, x, score, dsigma.to(x.device).expand(len(x)))

    def draw(self, weights: Tensor, x: Tensor, row: Tensor, col: Tensor) -> Tensor:
        """Step weights (r, V) -> ids (r,); temperature, top-k and top-p act on the whole row. Where
        nothing that may be written has weight, a place stays what it is, x (r,)."""
        z = self.forbid(weights.clamp(min=0).log(), row, col)
        stuck = (z == -torch.inf).all(1)
        z[stuck, x[stuck]] = 0.0
        return self.sample_categorical(z)


class LeaveOneOutSampler(UniformSampler):
    """The reverse process of UDLM: `steps` from noise, or from a draft, then the denoiser.

    ancestral    every step draws from p(x_s | x_t) ~ q(x_s) q(x_t | x_s), with q of mu, the
                 leave-one-out posterior: Bayes' rule, one token at a time
    greedy_tail  the same, and the denoiser takes the best token (Duo)

    temperature, top_k and top_p act on mu. After each step, `corrector_steps` times some tokens
    are drawn anew, `corrector_places` of each row, from q(x_i | all others) at the same noise
    level: Gibbs sampling, which leaves the law of the noisy text as it is if one place is drawn at
    a time and `corrector_order` is random; margin prefers those whose token falls furthest behind
    the best other one (LOO). With a draft, the process begins at time `draft_time`, from the text,
    noised to that time if `renoise`.
    """

    reads = (
        *UniformSampler.reads,
        *("draft", "draft_time", "renoise"),
        *("corrector_steps", "corrector_places", "corrector_order"),
    )

    @classmethod
    def without_effect(cls, objective: Any, o: SampleOptions) -> set[str]:
        unused = set() if o.draft else {"draft_time", "renoise"}
        return unused if o.corrector_steps else unused | {"corrector_places", "corrector_order"}

    def start(self, ids: Tensor) -> Tensor:
        noise = super().start(ids)
        if not self.o.draft:
            return noise
        sigma = self.objective.noise.total(torch.tensor(self.o.draft_time, dtype=torch.float64))
        u = torch.rand(ids.shape, generator=self.rng, device=ids.device, dtype=torch.float64)
        return self.objective.graph.move(ids, sigma, u, noise) if self.o.renoise else ids

    def run(self) -> Iterator[None]:
        row, col = self.editable.nonzero(as_tuple=True)
        if len(row) == 0:
            return
        first = self.o.draft_time if self.o.draft else 1.0
        sigma = self.objective.noise.total(first * grid(self.o.steps)).to(self.x.device)
        for now, then in itertools.pairwise(sigma):
            self.step(row, col, now, now - then)
            yield
            for _ in range(self.o.corrector_steps):
                self.correct(row, col, then)
                yield
        self.step(row, col, sigma[-1], sigma[-1])
        yield

    def log_mu(self, h: Tensor, row: Tensor, col: Tensor, sigma: Tensor) -> Tensor:
        """Features (r, C) of places, at these rows and columns (r,), and sigma () -> (r, V)
        float64: log of the leave-one-out posterior, at temperature, top_k and top_p of the options;
        what may not be written there at -inf."""
        x, z = self.x[row, col], self.network().logits(h).double()
        z = self.forbid(self.objective.log_mu(z, x, sigma.expand(len(x))), row, col)
        return process_logits(z, self.o).log_softmax(1)

    def log_q(self, log_mu: Tensor, row: Tensor, col: Tensor, sigma: Tensor) -> Tensor:
        """(r, V): q(x_i | all others) at sigma (). What may not be written is no noise either."""
        log_q = self.objective.log_marginal(log_mu, sigma.expand(len(log_mu)))
        return self.forbid(log_q, row, col)

    def step(self, row: Tensor, col: Tensor, sigma: Tensor, dsigma: Tensor) -> None:
        """Draw all places (R,) at sigma - dsigma, by Bayes' rule; dsigma = sigma in the last
        step."""
        last, drawn = bool(dsigma == sigma), []
        h = self.forward(row, col, -torch.expm1(-sigma).expand(len(self.x)))
        for part in self.parts(len(row)):
            at = row[part], col[part]
            log_mu = self.log_mu(h[part], *at, sigma)
            log_q = log_mu if last else self.log_q(log_mu, *at, sigma - dsigma)
            to_x = self.objective.graph.transition(self.x[at], dsigma.expand(len(log_q)))
            greedy = last and self.o.sampler == "greedy_tail"
            drawn.append(self.draw_from(log_q + to_x.log(), greedy))
        self.write(row, col, torch.cat(drawn))

    def correct(self, row: Tensor, col: Tensor, sigma: Tensor) -> None:
        """Draw `corrector_places` tokens of each row anew, at sigma (). Noise takes their places
        first: what is drawn does not depend on the tokens that stood there, but a network that
        sees them is not so exact as to leave them out."""
        doubt = -self.uniforms(len(row)).log().neg().log()  # Gumbel noise: a draw by e^doubt
        if self.o.corrector_order == "margin":
            doubt = doubt + self.behind(row, col, sigma)
        chosen = ranks(row, doubt) < self.o.corrector_places
        row, col = row[chosen], col[chosen]
        self.x[row, col] = super().start(self.x)[row, col]
        h = self.forward(row, col, -torch.expm1(-sigma).expand(len(self.x)))
        for part in self.parts(len(row)):
            at = row[part], col[part]
            log_mu = self.log_mu(h[part], *at, sigma)
            self.write(*at, self.draw_from(self.log_q(log_mu, *at, sigma)))

    def behind(self, row: Tensor, col: Tensor, sigma: Tensor) -> Tensor:
        """(R,) how far the token at each place falls behind the best other one, in nats."""
        h, parts = self.forward(row, col, -torch.expm1(-sigma).expand(len(self.x))), []
        for part in self.parts(len(row)):
            at = row[part], col[part]
            log_q = self.log_q(self.log_mu(h[part], *at, sigma), *at, sigma)
            x = self.x[at][:, None]
            parts.append(log_q.scatter(1, x, -torch.inf).amax(1) - log_q.gather(1, x)[:, 0])
        return torch.cat(parts)

    def draw_from(self, log_weights: Tensor, greedy: bool = False) -> Tensor:
        """ids (r,) from log-weights (r, V), in which temperature, top_k and top_p have had their
        part, or the best ones."""
        if greedy:
            ids = log_weights.argmax(1)
        else:
            weights = (log_weights - log_weights.amax(1, keepdim=True)).exp()
            ids = categorical(weights, self.uniforms(len(weights)))
        self.keep(log_weights, ids)
        return ids


class AbsorbingSampler(MaskedSampler):
    """Samplers of the absorbing graph whose events depend on the scores: Euler or analytic steps,
    then the denoiser. In a step, a masked place is unmasked with probability gain * (sum of its
    scores), clipped to 1: the total weight of all moves in `analytic_weights` (gain = e^dsigma - 1)
    or `euler_weights` (gain = dt sigma'(t)). Then its token is drawn from the scores. The same law
    as a draw over all V states, and only what is still MASK is projected."""

    reads = (*Sampler.reads, "steps", "wrap", "length")

    @classmethod
    def options_read(cls, objective: Any, o: SampleOptions) -> set[str]:
        return {*cls.reads}

    def run(self) -> Iterator[None]:
        times, noise = grid(self.o.steps), self.objective.noise
        sigma = noise.total(times)
        for i in range(self.o.steps + 1):
            row, col = self.masked_positions()
            if len(row) == 0:
                return
            h = self.forward(row, col, -torch.expm1(-sigma[i]).expand(len(self.x)))
            if i == self.o.steps:
                self.unmask(row, col, h)
            elif self.o.sampler == "euler":
                gain = (times[i] - times[i + 1]) * noise.rate(times[i])
                self.step(row, col, h, sigma[i], gain.item())
            else:
                gain = torch.expm1(sigma[i] - sigma[i + 1])
                self.step(row, col, h, sigma[i], gain.item())
            yield

    def step(self, row: Tensor, col: Tensor, h: Tensor, sigma: Tensor, gain: float) -> None:
        for part in self.parts(len(row)):
            z = self.logits(h[part], row[part], col[part])
            shift = self.objective.shift(sigma)
            total = z.logsumexp(1).double() - (0 if shift is None else shift.item())
            moves = self.uniforms(len(z)) < gain * total.exp()
            token = self.sample_categorical(z[moves])
            self.write(row[part][moves], col[part][moves], token)


# ==================================================================================================
# 9. The sampler of blocks: one after another, with a cache of keys and values
# ==================================================================================================


class BlockSampler(MaskedSampler):
    """Any sampler within a block. Keys and values of finished blocks are kept, so that a step is a
    pass over one block; the first step of a block also stores the one before it, and the first of
    all the prompt, under the mask of training: what a step computes is what training computed.
    Blocks lie where they lay in training, at multiples of their length, and `steps` are shared out
    among all of them, given ones included: a row does not depend on its neighbours' prompts."""

    reads = tuple(name for name in MaskedSampler.reads if name not in ("cfg", "cache"))

    def __init__(
        self,
        objective: BlockDiffusion,
        net: Any,
        ids: Tensor,
        prompt_mask: Tensor,
        rng: Any,
        o: Any,
    ):
        super().__init__(objective, net, ids, prompt_mask, rng, o)
        B, T = ids.shape
        self.size = min(objective.length or T, T)
        self.block = torch.arange(T, device=ids.device).expand_as(ids) // self.size
        self.blocks = (T - 1) // self.size + 1
        self.kept, self.stored = Cache(B, T), 0  # clean columns below `stored` are in the cache
        if o.block_length not in (0, objective.length):
            raise UserError(f"block_length: this model was trained with {objective.length}")

    def overall(self, share: Tensor) -> Tensor:
        """Every block has a noise level of its own."""
        return share

    def features(self, rows: Tensor, time: Tensor | None) -> tuple[Tensor, int]:
        """Features (r, W, C) of the present block, and the column where it begins."""
        T, kept, device = self.x.shape[1], self.kept, rows.device
        start = self.current_block * self.size
        kept.at = slice(self.stored, min(start + self.size, T))
        kept.visible, clean, self.stored = kept.at.stop, start - self.stored, start
        every = torch.arange(len(self.x), device=device) if clean else rows
        kept.rows, mask = None if clean else rows, None
        if clean:  # all rows, from where the stored columns end
            mask = block_mask(T, self.size, device)[None, T:, T:][:, kept.at, : kept.visible]
        if self.inside is not None:
            inside = self.inside[every, :, : kept.visible]
            mask = inside if mask is None else mask & inside
        if time is not None:
            time = self.levels(rows, time, start)[every]
        h = self.network(every).features(self.x[every, kept.at], time, mask, cache=kept)
        return h[rows, clean:] if clean else h, start

    def levels(self, rows: Tensor, time: Tensor, start: int) -> Tensor:
        """Time input of the columns of this pass: time (r,) in the present block, that of clean
        tokens in the others."""
        clean, width = self.objective.clean_time(self.net), self.kept.visible - self.kept.at.start
        if self.objective.zero_time:
            return clean.repeat(len(self.x))
        levels = clean.repeat(len(self.x), width)
        levels[rows, start - self.kept.at.start :] = time[:, None]
        return levels


# ==================================================================================================
# 10. Likelihood in an order: the same samplers, made to write a text that is given
#
# A sampler of ORDERS that writes one place per call, at temperature 1, chooses the place by the
# canvas alone, then draws its token from p(token | canvas). So the places at which it writes a text
# x follow from x, and
#
#     -log p(x) = - sum over calls of log p(x at the chosen place | canvas)
#
# is a law of texts, of this sampler with this order: the chain rule. It holds for left_to_right,
# and as well where places are chosen by confidence, margin or entropy of what is written so far,
# which is a decision tree over canvases: every text has one path. A random order is drawn: p(x) is
# then a mean over orders, and the mean of -log p(x | order) is an upper bound on -log p(x) (by
# Jensen's inequality), which is that of masked diffusion where the network knows no time (Ou et
# al. 2024, RADD, arXiv 2406.03736).
# ==================================================================================================


class Forced:
    """Put before a sampler of masked text: it writes `text` (B, T) instead of what it would draw,
    and counts in `nats` (B,) what that costs."""

    text: Tensor
    nats: Tensor

    def token(self, row: Tensor, col: Tensor, z: Tensor) -> Tensor:
        token = self.text[row, col]
        logp = z.double().log_softmax(-1).gather(1, token[:, None])[:, 0]
        self.nats.index_add_(0, row, -logp)
        return token


class ForcedText(Forced, MaskedSampler):
    """MaskedSampler, forced."""


class ForcedBlocks(Forced, BlockSampler):
    """BlockSampler, forced."""


def written_in_order(objective: Any) -> bool:
    """Has this objective the samplers of chapter 7?"""
    if isinstance(objective, ScoreEntropy):
        return objective.graph.absorbing
    return isinstance(objective, Masked)


@torch.no_grad()
def order_nats(
    objective: Any, net: Any, batch: Batch, rng: torch.Generator, order: str, samples: int = 1
) -> Tensor:
    """(B,) float64 nats: -log p of the texts of a batch under `objective`, which has the samplers
    of chapter 7, in this of ORDERS, a token per call. Exact, and `samples` is then without effect;
    but for a random order the mean over so many of them, an estimate of an upper bound. rng: on
    the device of the network."""
    if isinstance(objective, Masked):
        batch = Masked.cut(objective, batch, None)
    device = net.head.weight.device
    text = batch.ids.to(device)
    given = ~objective.target_mask(batch).to(device)
    ignores = getattr(objective, "padding", "learn") == "ignore"
    # so many steps that none writes two places, and as many for every block
    size = getattr(objective, "length", 0) or text.shape[1]
    o = SampleOptions(
        sampler=order,
        steps=size * -(-text.shape[1] // size),
        length=batch.length.to(device) if ignores else None,
    )
    kind = ForcedBlocks if isinstance(objective, BlockDiffusion) else ForcedText
    total = torch.zeros(len(text), dtype=torch.float64, device=device)
    samples = samples if order == "random" else 1
    for _ in range(samples):
        walk = kind(objective, net, text, given, rng, o)
        walk.text, walk.nats = text, total
        for _ in walk.run():
            pass
    return (total / samples).cpu()
