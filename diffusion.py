"""Diffusion over discrete tokens: graphs, score entropy, reverse steps, samplers on a grid.

The forward process moves every token by a Markov chain, dp/dsigma = Q p, run up to the total noise
sigma(t), t from 0 (text) to 1 (noise). A network estimates the ratios p_sigma(y) / p_sigma(x), the
concrete score, and the chain is run backwards with them.

    SEDD   Lou, Meng & Ermon 2024, Discrete Diffusion Modeling by Estimating the Ratios of the
           Data Distribution, arXiv 2310.16834
    RADD   Ou et al. 2024, Your Absorbing Discrete Diffusion Secretly Models the Conditional
           Distributions of Clean Data, arXiv 2406.03736

n is the number of real tokens; the absorbing graph has one more state, MASK, and V = n + 1.
"""

import math
from typing import Any, Callable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import UserError
from corpus import Batch
from decode import SAMPLERS, At, Decoder
from noise import SAMPLE_EPS, Noise, told
from objective import (
    Frame,
    Loss,
    Objective,
    Rule,
    SampleOptions,
    choose_sampler,
    cross_entropy_rule,
    draw_tokens,
    exponentiate_,
    features_at,
    frames,
    mask_exactly,
    metric,
    scored_rows,
    stratified,
    to_device,
)

# ---- graphs ------------------------------------------------------------------------------------


class Coefficients(NamedTuple):
    """Score entropy of one row of outputs z as exp_sum * sum_y exp(z_y) + sum * sum_y z_y
    + target * z_x0 + const, each (R,) float64; y runs over all states but `left_out` (R,)."""

    left_out: Tensor
    exp_sum: Tensor
    sum: Tensor | None  # None: zero everywhere
    target: Tensor
    const: Tensor


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

    def entropy(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Coefficients:
        """Score entropy (SEDD, Def. 3.1 with Thm 3.6) for rows in state x from x0, (R,) each.

        Written with e/(e + n), e = e^sigma - 1, the true ratio at an unmoved token, which is exact
        where 1 - n/(e + n) has lost every digit (n = 50257, sigma = 1e-4).
        """
        n, e = self.n, torch.expm1(sigma.double())
        log_r = e.log() - (e + n).log()
        r, same = log_r.exp(), x == x0
        one = torch.ones_like(e)
        const_same = (n - 1) / n * r * (log_r - 1)
        const_moved = ((-log_r - 1) / r - (n - 2)) / n
        return Coefficients(
            left_out=x,
            exp_sum=one / n,
            sum=-torch.where(same, r, one) / n,
            target=torch.where(same, 0 * one, -1 / e),
            const=torch.where(same, const_same, const_moved),
        )

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

    def entropy(self, x: Tensor, x0: Tensor, sigma: Tensor) -> Coefficients:
        """Score entropy of masked rows; every other row has none. The true ratio is 1/e at x0."""
        log_e = torch.expm1(sigma.double()).log()
        w = torch.exp(-log_e)
        return Coefficients(x, torch.ones_like(w), None, -w, w * (-log_e - 1))


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


# ---- score entropy -----------------------------------------------------------------------------


class ScoreEntropy(Objective):
    """SEDD on either graph; with normalize=True on the absorbing one, RADD.

    The network gives log p_sigma(y) / p_sigma(x). On the absorbing graph, scale_by_sigma takes
    log(e^sigma - 1) + log n off its output, so that 0 is the uniform guess; normalize takes a
    log-softmax first, which is the form of the true score (RADD, Thm 1) and turns score entropy
    into cross entropy weighted by 1 / (e^sigma - 1). Padding is a token like any other: it is
    learnt, and tells where a text ends.
    """

    def __init__(
        self, graph: Graph, noise: Noise, scale_by_sigma: bool = True, normalize: bool = False
    ):
        assert graph.absorbing or not normalize, "only masked places have a softmax for a score"
        self.graph, self.noise = graph, noise
        self.scaled, self.normalize = scale_by_sigma and graph.absorbing, normalize
        self.mask_id = graph.mask_id if graph.absorbing else None
        self.needs = {"causal": False, "time": True, "vocab_size": graph.states}
        self.samplers = ("analytic", "euler", *(SAMPLERS if graph.absorbing else ()))
        way = "k of n tokens masked" if graph.absorbing else "and the entropy of its noise at t = 1"
        self.estimator = f"variational bound of score entropy (SEDD, theorem 3.6), {way}"

    # -- loss --

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        """Denoising score entropy, integrated over t with one t per row (SEDD, Eq. 10), summed.
        Nats; divided by `count` it bounds the nats per written position, padding included."""
        x0, written = batch.ids, ~batch.given
        low = self.noise.lowest
        t = low + (1 - low) * stratified(len(x0), rng)
        sigma, rate = self.noise.total(t), self.noise.rate(t)
        xt = self.corrupt(x0, batch.given, sigma, rng)
        nats, _, _, ce = self.entropy(net, x0, xt, written, sigma, rate)
        return Loss(nats, int(written.sum()), {} if ce is None else {"ce": ce})

    def corrupt(self, x0: Tensor, given: Tensor, sigma: Tensor, rng: torch.Generator) -> Tensor:
        """x_sigma from x0 (B, T); sigma (B,); given places stay."""
        u = torch.rand(x0.shape, generator=rng)
        other = None
        if not self.graph.absorbing:
            other = torch.randint(self.graph.n, x0.shape, generator=rng)
        return torch.where(given, x0, self.graph.move(x0, sigma[:, None], u, other))

    def entropy(
        self, net: Any, x0: Tensor, xt: Tensor, written: Tensor, sigma: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Score entropy times weight (B,) at the written places -> (sum (), of each scored place
        (R,), the row that it belongs to (R,), (sum, count) of its plain cross entropy or None)."""
        device = net.head.weight.device
        scored = written & (xt == self.mask_id) if self.graph.absorbing else written
        h, row, col = features_at(net, xt, scored, self.condition(net, sigma, device))
        target = to_device(x0[row, col], device)
        sigma, weight = sigma.double()[row], weight.double()[row]
        if self.normalize:
            scale = to_device((weight / torch.expm1(sigma)).float(), device)
            nats, each = scored_rows(net.head, h, cross_entropy_rule(target, scale, self.mask_id))
            ce = (each / scale).sum() if len(each) else nats
        else:
            terms = self.graph.entropy(xt[row, col], x0[row, col], sigma)
            shift = self.shift(sigma)
            if shift is not None:  # log-score = z - shift: fold it into the coefficients
                terms = terms._replace(
                    exp_sum=terms.exp_sum * torch.exp(-shift),
                    const=terms.const - terms.target * shift,
                )
            ce = torch.zeros((), device=device)
            rule = score_entropy_rule(terms, target, weight, ce if self.graph.absorbing else None)
            nats, each = scored_rows(net.head, h, rule)
        return nats, each, row, metric(ce, len(each)) if self.graph.absorbing else None

    def condition(self, net: Any, sigma: Tensor, device: torch.device) -> Tensor | None:
        """What the network is told of sigma (B,): nothing if it was built without time, and no
        level beyond those of the sampling grid."""
        if net.time is None:
            return None
        return to_device(told(self.noise, sigma), device)

    def shift(self, sigma: Tensor) -> Tensor | None:
        """What is taken off the network's output to make it a log-score; None for nothing."""
        if not (self.normalize or self.scaled):
            return None
        log_e = torch.expm1(sigma.double()).log()
        return log_e if self.normalize else log_e + math.log(self.graph.n)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: the evidence bound of the chain (SEDD, Thm 3.6), whatever the noise
        schedule, which is only a clock. The integral runs over m = 1 - e^-sigma, the share of
        moved tokens; the network is told sigma within the range that it was trained on."""
        bounds = [self._bound_once(net, batch, rng, i, samples) for i in range(samples)]
        return torch.stack(bounds).mean(0)

    def _bound_once(self, net: Any, batch: Batch, rng: Any, i: int, samples: int) -> Tensor:
        x0, written = batch.ids, ~batch.given
        count = written.sum(1)
        pick = (i + torch.rand(len(x0), generator=rng, dtype=torch.float64)) / samples
        if self.graph.absorbing:
            masked, k, m = mask_exactly(written, pick, rng)
            xt = x0.masked_fill(masked, self.mask_id)
            weight, extra = count / k.double() * m / (1 - m), torch.zeros(len(x0)).double()
        else:
            end = self.noise.total(torch.tensor(1.0, dtype=torch.float64))
            top = -torch.expm1(-end)
            m = (top * pick).clamp(min=1e-9)
            u = torch.rand(x0.shape, generator=rng, dtype=torch.float64)
            other = torch.randint(self.graph.n, x0.shape, generator=rng)
            xt = torch.where(written, self.graph.move(x0, -torch.log1p(-m)[:, None], u, other), x0)
            weight, extra = top / (1 - m), count * self.graph.prior_nats(end)
        _, each, row, _ = self.entropy(net, x0, xt, written, -torch.log1p(-m), weight)
        return extra + torch.zeros(len(x0)).double().index_add_(0, row, each.double().cpu())

    # -- sampling --

    @torch.no_grad()
    def sample(
        self, net: Any, ids: Tensor, given: Tensor, rng: torch.Generator, options: SampleOptions
    ) -> Iterator[Frame]:
        """options.sampler: analytic, euler (both graphs, on a grid of `steps`); on the absorbing
        graph also those of decode.py."""
        options = choose_sampler(self, options)
        grids = options.sampler in ("analytic", "euler")
        if grids:
            refuse_unused(options)
        walk = Walk if not self.graph.absorbing else MaskedWalk if grids else Decoder
        yield from frames(walk(self, net, ids, given, rng, options))

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


def score_entropy_rule(
    terms: Coefficients, target: Tensor, weight: Tensor, ce: Tensor | None
) -> Rule:
    """The rule of score entropy (see Coefficients), times weight (R,). Adds the plain cross entropy
    of every row to `ce` () unless it is None."""
    device = target.device
    columns = (
        (weight * terms.exp_sum).log(),  # inside the exponential, where nothing can overflow
        0 * weight if terms.sum is None else weight * terms.sum,
        weight * terms.target,
        weight * terms.const,
    )
    left_out = to_device(terms.left_out[:, None], device)
    packed = to_device(torch.stack(columns, 1).float(), device)  # (R, 4)
    linear = terms.sum is not None

    def rule(z: Tensor, part: slice) -> Tensor:
        a, b, c, d = packed[part].unsqueeze(2).unbind(1)  # each (r, 1)
        place, out = target[part, None], left_out[part]
        at_target = z.gather(1, place)
        loss = d + c * at_target
        if linear:  # in the uniform graph the token itself may be the target: it has no score
            z.scatter_(1, out, 0.0)
            loss = d + c * z.gather(1, place) + b * z.sum(1, keepdim=True)
        z.add_(a).exp_().scatter_(1, out, 0.0)
        total = z.sum(1, keepdim=True)
        if ce is not None:
            ce.add_((total.log() - a - at_target).sum())
        if linear:
            z.add_(b).scatter_(1, out, 0.0)
        z.scatter_add_(1, place, c)
        return (loss + total)[:, 0]

    return rule


# ---- samplers ----------------------------------------------------------------------------------


def grid(steps: int) -> Tensor:
    """Times 1 = t_0 > ... > t_steps = SAMPLE_EPS, float64; the denoiser acts at the last."""
    return torch.linspace(1, SAMPLE_EPS, steps + 1, dtype=torch.float64)


def refuse_unused(options: SampleOptions) -> None:
    """The grids below write the whole text at once, by scores."""
    plain = SampleOptions()
    for key in ("schedule", "block_length", "cfg", "remask", "cache", "stop", "delay"):
        if getattr(options, key) != getattr(plain, key):
            value = getattr(options, key)
            raise UserError(f"sampler={options.sampler} has no use for {key}={value}")


class Walk(Decoder):
    """Samplers of the uniform graph: any place may change in any step, so all of them are
    projected, a chunk at a time. Euler or analytic steps, then the denoiser."""

    def start(self, ids: Tensor) -> Tensor:
        """Random text, equal in both of a mirrored pair."""
        places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        mirror = places if self.o.mirror is None else self.o.mirror
        allowed = [i for i in range(self.process.graph.n) if i not in self.o.banned]
        noise = torch.randint(len(allowed), ids.shape, generator=self.rng, device=ids.device)
        noise = torch.tensor(allowed, device=ids.device)[noise]
        return noise.gather(1, torch.minimum(places, mirror))

    def run(self) -> Iterator[None]:
        times, at = grid(self.o.steps), self.at(self.open)
        if len(at.row) == 0:
            return
        noise = self.process.noise
        total = noise.total(times)
        for i in range(self.o.steps + 1):
            if i == self.o.steps:
                step, dsigma = denoise_weights, total[i]
            elif self.o.sampler == "euler":
                step, dsigma = euler_weights, (times[i] - times[i + 1]) * noise.rate(times[i])
            else:
                step, dsigma = analytic_weights, total[i] - total[i + 1]
            h = self.visit(at, -torch.expm1(-total[i]).expand(len(self.x)))
            drawn = []
            for part in self.parts(at):
                x = self.x[at.row, at.col][part]
                ways = h[part, 0].unbind(1)  # the place, and its partner if it has one
                weights = sum(self.step_weights(way, x, total[i], step, dsigma) for way in ways)
                drawn.append(self.draw(weights, x))
            self.write(at, torch.cat(drawn))
            yield

    def step_weights(
        self, h: Tensor, x: Tensor, sigma: Tensor, step: Callable, dsigma: Tensor
    ) -> Tensor:
        """Weights (r, V) float64 of the next state, from features h (r, C) and states x (r,)."""
        each = sigma.to(x.device).expand(len(x))
        score = self.process.log_score(self.net, h, x, each).double().exp()
        return step(self.process.graph, x, score, dsigma.to(x.device).expand(len(x)))

    def draw(self, weights: Tensor, x: Tensor) -> Tensor:
        """Step weights (r, V) -> ids (r,); temperature, top-k and top-p act on the whole row. Where
        nothing but banned ids has weight, a place stays what it is, x (r,)."""
        weights[:, list(self.o.banned)] = 0
        weights = weights.clamp(min=0)
        weights.scatter_add_(1, x[:, None], (weights.sum(1, keepdim=True) == 0).double())
        return draw_tokens(weights.log(), self.o, self.rng)


class MaskedWalk(Decoder):
    """Samplers of the absorbing graph whose events depend on the scores: Euler or analytic steps,
    then the denoiser. In a step, a masked place is revealed with probability gain * (sum of its
    scores), clipped to 1: the total weight of all moves in `analytic_weights` (gain = e^dsigma - 1)
    or `euler_weights` (gain = dt sigma'(t)). Then its token is drawn from the scores. The same law
    as a draw over all V states, and only what is still MASK is projected."""

    def run(self) -> Iterator[None]:
        times, noise = grid(self.o.steps), self.process.noise
        total = noise.total(times)
        for i in range(self.o.steps + 1):
            at = self.undecided()
            if len(at.row) == 0:
                return
            h = self.visit(at, -torch.expm1(-total[i]).expand(len(self.x)))
            if i == self.o.steps:
                self.reveal(at, h, torch.ones_like(at.row, dtype=torch.bool))
            else:
                gain = torch.expm1(total[i] - total[i + 1])
                if self.o.sampler == "euler":
                    gain = (times[i] - times[i + 1]) * noise.rate(times[i])
                self.step(at, h, total[i], gain.item())
            yield

    def step(self, at: At, h: Tensor, sigma: Tensor, gain: float) -> None:
        for part in self.parts(at):
            z, shift = self.logits(h[part]), self.process.shift(sigma)
            mass = exponentiate_(z)[0][:, 0].double() - (0 if shift is None else shift.item())
            fires = self.uniforms(len(z)) < gain * mass.exp()
            self.write(at[part][fires], draw_tokens(z[fires].log_(), self.o, self.rng))
