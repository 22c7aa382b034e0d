"""Insertion diffusion: tokens are dropped in continuous time, and inserted in its reverse.

At rate sigma(t) one of the remaining tokens is dropped, any of them alike, so that at time t
n = min(N, L) of L are missing, N ~ Poisson(total noise). In reverse, with n missing, they come back
at rate n sigma / total all together; where all L are missing, at that rate divided by S(L, total),
since N may have been larger. The network predicts the mean of n from what is left (a readout at
CLS), and which token is missing in which gap, as ILM does (insertion.py).

    IDLM  Insertion Diffusion Language Models, arXiv 2606.10199. Its log-linear noise is
          `exponential` here, its Poisson(sigma, c) is `linear` from c to c + sigma
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from corpus import Batch
from insertion import Insertion, Rows, compact, pick
from noise import Exponential, Noise
from objective import Loss, SampleOptions, metric, stratified, to_device

TIME_SCALE = 10.0  # of t as an input; at 1000 its sinusoids drown the tokens (measured)
MOST_WEIGHT = 100.0  # of rate / total in the loss, as published


def log_factor(n: Tensor, total: Tensor) -> Tensor:
    """log S(n, x), S = P(N >= n) / P(N = n) = sum over k of n! x^k / (n + k)!, N ~ Poisson(x), for
    real n >= 0 and x > 0, float64.

    By the incomplete gamma function, exact where a sum of terms would need hundreds. Where it
    underflows, n is so far above x that the series has ended after a few.
    """
    n, x = torch.broadcast_tensors(n.double(), total.double())
    tail = torch.special.gammainc(n.clamp(min=1e-12), x)
    exact = tail.clamp(min=1e-300).log() + x - n * x.log() + torch.lgamma(n + 1)
    term, series = torch.ones_like(x), torch.ones_like(x)
    for k in range(1, 40):
        term = term * x / (n + k)
        series = series + term
    return torch.where(tail > 1e-280, exact, series.log())


def truncated_factor(n: Tensor, total: Tensor) -> Tensor:
    """log of the first 21 terms of S: what the authors' code computes."""
    n, x = torch.broadcast_tensors(n.double(), total.double())
    term, series = torch.ones_like(x), torch.ones_like(x)
    for k in range(1, 21):
        term = term * x / (n + k)
        series = series + term
    return series.log()


class IDLM(Insertion):
    """Insertion diffusion. `noise` is linear, geometric or exponential; the flags are those of the
    authors' configs. upstream_rules repeats what their code computes where it is not what the model
    means: a rate that is not the derivative of the total noise (exponential), S of 21 terms, and S
    applied to every row that keeps no more tokens, CLS and given ones included, than it lacks.
    """

    samplers = ("steps",)
    estimator = "bound of insertion diffusion (IDLM), relative entropy of two jump processes"

    def __init__(
        self,
        vocab_size: int,
        specials: dict[str, int],
        noise: Noise,
        *,
        longest: int,
        close_prompt: bool = False,
        ce_weight: float = 1.0,
        length_loss_weight: float = 1.0,
        length_loss: str = "diffusion",
        use_diffusion_weight_for_ce: bool = True,
        use_diffusion_weight_for_length_loss: bool = True,
        use_n_drops_for_ce: bool = True,
        use_incomplete_gamma_factor: bool = True,
        send_t_to_model: bool = True,
        upstream_rules: bool = False,
    ):
        super().__init__(
            vocab_size, specials, stop="length", close_prompt=close_prompt, longest=longest
        )
        self.needs["time"] = True
        self.noise, self.longest = noise, longest
        self.ce_weight, self.length_loss_weight = ce_weight, length_loss_weight
        self.length_loss, self.by_n = length_loss, use_n_drops_for_ce
        self.weigh_ce = use_diffusion_weight_for_ce
        self.weigh_length = use_diffusion_weight_for_length_loss
        self.factor, self.send_t = use_incomplete_gamma_factor, send_t_to_model
        self.upstream = upstream_rules
        self.bounded, self.epsilon = not upstream_rules, noise.lowest

    # -- the process --

    def slope(self, time: Tensor) -> Tensor:
        """rate / total at t (...), float64."""
        rate, total = self.noise.rate(time), self.noise.total(time)
        if self.upstream and isinstance(self.noise, Exponential):
            rate = rate * torch.tensor(self.noise.sigma_max / self.noise.sigma_min).log()
        return rate / (total + 1e-6)

    def condition(self, net: Any, time: Tensor) -> Tensor | None:
        """What the network is told at t (B,)."""
        if net.time is None:
            return None
        told = TIME_SCALE * time if self.send_t else self.noise.total(time)
        return to_device(told.float(), net.head.weight.device)

    def times(self, B: int, rng: torch.Generator) -> Tensor:
        """(B,) float64 times in [1e-3, 1), one in each of B strata."""
        low = self.noise.lowest
        return low + (1 - low) * stratified(B, rng).double()

    def at_time(self, batch: Batch, time: Tensor, rng: torch.Generator) -> Rows:
        """The batch with n = min(Poisson(total), L) tokens of each row dropped."""
        ids, droppable, length = self.framed(batch)
        drawn = torch.poisson(self.noise.total(time), generator=rng).long()
        n = torch.minimum(drawn, droppable.sum(1))
        return compact(ids, droppable, length, pick(droppable, n, rng), self.pad_id)

    def mean_missing_count(self, net: Any, cls: Tensor, temperature: float = 1.0) -> Tensor:
        """Features at CLS (B, C) -> the expected number of missing tokens (B,) float32."""
        z = net.heads["length"](cls) / max(temperature, 1e-9)
        return z.softmax(-1) @ torch.arange(z.shape[1], device=z.device, dtype=z.dtype)

    # -- loss --

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        """Of each row, weighted as the flags say: cross entropy of the missing tokens, and of their
        number the deviance of a Poisson rate or the cross entropy; a mean over rows."""
        time = self.times(len(batch.ids), rng)
        rows = self.at_time(batch, time, rng)
        return self.row_loss(net, rows, time, self.written(batch).any(1))

    def row_loss(self, net: Any, rows: Rows, time: Tensor, asked: Tensor) -> Loss:
        """The same for rows that are dropped already; those not `asked` (B,) bool count nothing."""
        one = torch.ones_like(time)
        weight = self.slope(time).clamp(max=MOST_WEIGHT)
        if self.factor:
            weight = weight / self.whole_factor(rows, time)
        ce = self.ce_weight * torch.where(asked, weight if self.weigh_ce else one, 0.0)
        ce = ce * rows.n if self.by_n else ce
        nats, each, cls = self.token_loss(net, rows, ce, self.condition(net, time))
        length = self.length_loss_weight * (weight if self.weigh_length else one)
        length = to_device(torch.where(asked, length, 0.0).float(), cls.device)
        missed = self.count_loss(net, cls, rows.n)
        count = int(asked.sum())
        sums = {"ce": each.sum(), "length": (length * missed).sum()}
        metrics = {k: metric(s, count) for k, s in sums.items()}
        return Loss(nats + (length * missed).sum(), count, metrics)

    def whole_factor(self, rows: Rows, time: Tensor) -> Tensor:
        """(B,) float64: S where all tokens are missing, 1 elsewhere."""
        if self.upstream:
            whole, log_s = rows.length <= rows.n, truncated_factor(rows.n, self.noise.total(time))
        else:
            whole, log_s = rows.n == rows.L, log_factor(rows.n, self.noise.total(time))
        return torch.where(whole & (rows.n > 0), log_s, 0.0).exp()

    def count_loss(self, net: Any, cls: Tensor, n: Tensor) -> Tensor:
        """(B,) loss of the number n (B,) of missing tokens."""
        n = to_device(n, cls.device)
        if self.length_loss == "cross_entropy":
            return F.cross_entropy(net.heads["length"](cls), n, reduction="none")
        mean = self.mean_missing_count(net, cls)
        return mean - n * (mean + 1e-8).log() + torch.lgamma(n + 1.0)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: bound on -log p(written | given) of the reverse process from t = 1,
        nothing written, to t = low = 1e-3.

        It is the relative entropy of two jump processes: that of the model, and the forward process
        that begins at `low` and is known to have dropped all tokens by t = 1. With rates r_d at
        which missing token d comes back in that, and rho p(d) / m_d in the model (m_d as in ILM's
        bound), the integral over t of rho - sum r_d + sum r_d log(r_d m_d / (rho p(d))). The
        estimate goes by s, the total noise since `low`, at squares of even steps: few tokens are
        missing where r_d = 1 / s is large.
        """
        ids, droppable, length = self.framed(batch)
        L, ends = droppable.sum(1), torch.tensor([self.noise.lowest, 1.0], dtype=torch.float64)
        begun, whole = self.noise.total(ends)
        nats = torch.zeros(len(ids), dtype=torch.float64)
        for i in range(samples):
            u = (i + torch.rand(len(ids), generator=rng, dtype=torch.float64)) / samples
            s = (whole - begun) * u.clamp(min=1e-9) ** 2
            step = 2 * (whole - begun) * u / samples  # ds, for each of the samples
            time = self.noise.time_of(begun + s)
            n = self.missing_before_the_end(L, s, whole - begun, rng)
            rows = compact(ids, droppable, length, pick(droppable, n, rng), self.pad_id)
            cost, cls = self.mean_missing(net, rows, self.condition(net, time))
            rho = self.insertion_rate(net, cls, time, rows.n == L).double().cpu()
            rho = rho / self.noise.rate(time)  # for each unit of s
            rate = torch.where(rows.n == L, 1 / (s * log_factor(L, s).exp()), 1 / s)
            jumps = rows.n * rate * ((rate / rho.clamp(min=1e-300)).log() + cost - 1)
            nats += step * (rho + torch.where(rows.n > 0, jumps, 0.0))
        return nats

    def missing_before_the_end(
        self, L: Tensor, total: Tensor, end: Tensor, rng: torch.Generator
    ) -> Tensor:
        """n (B,) where the total noise is `total` (B,), given that where it is `end` () all L (B,)
        are missing: N there is Poisson, but at least L, and so much of it has come by now."""
        u = torch.rand(len(L), generator=rng, dtype=torch.float64)
        # N = L + k with probability x^k L! / (L + k)! / S(L, x): drawn by inversion
        most = int(end + 12 * end.sqrt() + 40)
        k = torch.arange(1, most, dtype=torch.float64)
        steps = torch.log(end) - torch.log(L[:, None] + k)
        terms = F.pad(steps.cumsum(1), (1, 0)) - log_factor(L, end.expand(len(L)))[:, None]
        drawn = L + (terms.exp().cumsum(1) < u[:, None]).sum(1)
        n = torch.binomial(drawn.double(), (total / end).clamp(0, 1), generator=rng).long()
        return torch.minimum(n, L)

    # -- sampling --

    def insertion_rate(
        self,
        net: Any,
        cls: Tensor,
        time: Tensor,
        first: Tensor,
        options: SampleOptions | None = None,
    ) -> Tensor:
        """Tokens per unit of time at t (r,), from features at CLS (r, C); `first` (r,) bool where
        nothing is written yet."""
        o = options or SampleOptions()
        mean = self.mean_missing_count(net, cls, o.length_temperature).double()
        time = time.to(mean.device)
        rate = self.slope(time) * mean
        if not o.first_step_factor:
            return rate
        factor = truncated_factor if self.upstream else log_factor
        log_s = factor(mean, self.noise.total(time))
        return torch.where(first.to(mean.device), rate * (-log_s).exp(), rate)
