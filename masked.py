"""Masked diffusion: text is destroyed by masking tokens and learnt by predicting them.

At time t each written token is replaced by MASK with probability p(t); the network sees the rest in
both directions and predicts what is masked. The loss, weight(t) times the cross entropy of the
masked tokens, integrates to an upper bound on -log p(text) (MDLM, eq. 10). What is published under
different names differs in book-keeping only, and that is what the options are:

    noise        loglinear (MDLM), affine (LLaDA), clamped (t >= 1e-5), linear, cosine, geometric
    time         true, false, or zero: told the noise, not built for it, always told none (MDLM)
    loss_per     token: all written places weigh alike (MDLM, LLaDA); answer: every row does,
                 whatever its length (LLaDA's fine-tuning); sequence: the sum of a row counts
    padding      learn: a token like any other; crop: the same, up to the longest row of the batch;
                 ignore: neither seen nor scored
    random_length  LLaDA cuts 1 % of its batches to a random length

    MDLM   Sahoo et al. 2024, Simple and Effective Masked Diffusion Language Models,
           arXiv 2406.07524
    LLaDA  Nie et al. 2025, Large Language Diffusion Models, arXiv 2502.09992
    RADD   Ou et al. 2024, arXiv 2406.03736, where the same loss is found from the score's side
"""

from types import SimpleNamespace
from typing import Any, Iterator

import torch
from torch import Tensor

from corpus import Batch
from decode import SAMPLERS, Decoder
from noise import Noise, importance, told
from objective import (
    Frame,
    Loss,
    Objective,
    SampleOptions,
    choose_sampler,
    cross_entropy_rule,
    features_at,
    frames,
    mask_exactly,
    metric,
    scored_rows,
    stratified,
    to_device,
)


def answer_counts(n: int, copies: int, k: int) -> Tensor:
    """(copies,) int64: how many of n places to mask in each copy of a row, from k in 1..n on, in
    equal steps around the circle 1..n: spread evenly, whatever k is. Halves are rounded to even, so
    where n / copies has some, even numbers are a little too frequent (LLaDA's evaluation)."""
    steps = k + torch.arange(copies, dtype=torch.float64) * n / copies
    return (steps.round().long() - 1) % n + 1


class Guided:
    """A network with guidance towards the places (B, T) that are given: (1 + cfg) times its logits,
    less cfg times those without them (LLaDA). One matrix makes both from both features."""

    def __init__(self, net: Any, given: Tensor, mask_id: int, cfg: float):
        self.net, self.given, self.mask_id, self.time = net, given, mask_id, net.time
        weight = torch.cat([(1 + cfg) * net.head.weight, -cfg * net.head.weight], 1)  # (V, 2C)
        self.head = SimpleNamespace(weight=weight, bias=net.head.bias)

    def features(self, ids: Tensor, *told: Any) -> Tensor:
        blind = ids.masked_fill(self.given.to(ids.device), self.mask_id)
        return torch.cat([self.net.features(x, *told) for x in (ids, blind)], -1)


class Masked(Objective):
    """MDLM, LLaDA and the like. `n` real tokens; MASK is the last id unless it is among them."""

    normalize = True  # outputs are logits of p(x0 | xt)
    samplers = tuple(SAMPLERS)
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
        grown = vocab_size if mask_id is not None else vocab_size + 1
        self.mask_id = vocab_size if mask_id is None else mask_id
        self.noise, self.zero_time = noise, zero_time
        self.loss_per, self.padding = loss_per, padding
        self.random_length, self.by_importance = random_length, by_importance
        self.needs = {"causal": False, "time": True, "vocab_size": grown}

    # -- what is written --

    def written(self, batch: Batch) -> Tensor:
        if self.padding == "learn":
            return ~batch.given
        if self.padding == "ignore":
            return ~batch.given & self.inside(batch)
        return ~batch.given & (torch.arange(batch.ids.shape[1]) < batch.length.max())

    def inside(self, batch: Batch) -> Tensor:
        return torch.arange(batch.ids.shape[1]) < batch.length[:, None]  # (B, T)

    def cut(self, batch: Batch, rng: torch.Generator | None) -> Batch:
        """The batch without the columns that hold nothing but padding, unless that is learnt; and
        now and then, in training, at a random length (LLaDA, appendix B.1)."""
        T = batch.ids.shape[1]
        if self.padding != "learn":
            T = max(1, int(batch.length.max()))
        if rng is not None and self.random_length:
            chance, share = torch.rand(2, generator=rng).tolist()
            T = 1 + int(share * T) if chance < self.random_length else T
        return Batch(batch.ids[:, :T], batch.given[:, :T], batch.length.clamp(max=T))

    # -- loss --

    def times(self, B: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """t (B,), one in each of B strata of the schedule's range, and the weights (B,) there."""
        low = self.noise.lowest
        t = low + (1 - low) * stratified(B, rng)
        if not self.by_importance:
            return t, self.noise.weight(t)
        t, weight = importance(self.noise, t)
        return t, torch.full_like(t, weight)

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        """Weighted cross entropy of the masked tokens, summed; nats (MDLM, eq. 10). Divided by
        `count` it is the mean that `loss_per` asks for."""
        batch = self.cut(batch, rng)
        t, weight = self.times(len(batch.ids), rng)
        written, u = self.written(batch), torch.rand(batch.ids.shape, generator=rng)
        masked = written & (u < self.noise.masked(t)[:, None])
        each, count = written.sum(1), int(written.sum())
        if self.loss_per != "token":
            count = int((each > 0).sum())
            weight = weight / each.clamp(min=1) if self.loss_per == "answer" else weight
        nats, losses, row = self.score(net, batch, masked, weight, self.noise.total(t))
        plain = (losses / to_device(weight[row], losses.device)).sum()
        return Loss(nats, count, {"ce": metric(plain, len(losses))})

    def look(
        self, net: Any, batch: Batch, masked: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features at the masked places (B, T) of a batch, the network told sigma (B,) -> (h
        (R, C), row (R,), column (R,))."""
        device = net.head.weight.device
        mask = self.inside(batch)[:, None] if self.padding == "ignore" else None
        seen = batch.ids.masked_fill(masked, self.mask_id)
        return features_at(net, seen, masked, self.condition(net, sigma, device), mask)

    def score(
        self, net: Any, batch: Batch, masked: Tensor, weight: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross entropy times weight (B,) at the masked places (B, T) of a batch, the network told
        sigma (B,) -> (sum (), of each place (R,), the row that it belongs to (R,))."""
        h, row, col = self.look(net, batch, masked, sigma)
        target = to_device(batch.ids[row, col], h.device)
        scale = to_device(weight[row].float(), h.device)
        nats, each = scored_rows(net.head, h, cross_entropy_rule(target, scale, self.mask_id))
        return nats, each, row

    def condition(self, net: Any, sigma: Tensor, device: torch.device) -> Tensor | None:
        """What the network is told of sigma (B,): no level beyond those of training."""
        if net.time is None:
            return None
        if self.zero_time:
            return torch.zeros(len(sigma), device=device)
        return to_device(told(self.noise, sigma), device)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats. The integral over t does not depend on the schedule: it is a mean
        over the number of masked tokens, exactly k of n, with weight n / k (LLaDA, eq. 14)."""
        batch, bounds = self.cut(batch, None), []
        for i in range(samples):
            u = torch.rand(len(batch.ids), generator=rng, dtype=torch.float64)
            masked, k, share = mask_exactly(self.written(batch), (i + u) / samples, rng)
            weight = self.written(batch).sum(1) / k.double()
            bounds.append(self._nats(net, batch, masked, weight, -torch.log1p(-share)))
        return torch.stack(bounds).mean(0)

    def _nats(self, net: Any, batch: Batch, masked: Tensor, weight: Tensor, sigma: Any) -> Tensor:
        """`score` by row: (B,) float64."""
        _, each, row = self.score(net, batch, masked, weight, sigma)
        total = torch.zeros(len(batch.ids), dtype=torch.float64)
        return total.index_add_(0, row, each.double().cpu())

    @torch.no_grad()
    def discrete_bound(
        self, net: Any, batch: Batch, rng: torch.Generator, T: int, samples: int = 1
    ) -> Tensor:
        """(B,) float64 nats: the bound of the sampler with T steps of equal share (MDLM, eq. 8),
        each place masked by itself. It falls to `bound` as T grows: what fewer steps cost."""
        batch, bounds = self.cut(batch, None), []
        for i in range(samples):
            u = torch.rand(len(batch.ids), generator=rng, dtype=torch.float64)
            step = ((i + u) / samples * T).long()  # from (step + 1) / T to step / T
            share = (step + 1) / T
            places = torch.rand(batch.ids.shape, generator=rng, dtype=torch.float64)
            masked = self.written(batch) & (places < share[:, None])
            sigma = -torch.log1p(-share.clamp(max=1 - 1e-9))
            bounds.append(self._nats(net, batch, masked, 1 / share.double(), sigma))
        return torch.stack(bounds).mean(0)

    @torch.no_grad()
    def likelihood(
        self,
        net: Any,
        ids: Tensor,
        given: Tensor,
        rng: torch.Generator,
        samples: int = 128,
        batch_size: int = 16,
        cfg: float = 0.0,
    ) -> float:
        """Estimate, in nats, of a lower bound on log p(answer | given) of one row: ids (T,), its
        answer all that is not given (T,). `samples`, a multiple of batch_size, maskings of exactly
        so many places, their numbers spread evenly in each batch: the protocol of published scores
        (LLaDA, appendix B.5). Without guidance its mean is that of -`bound`, but for the rounding
        in `answer_counts`."""
        assert samples % batch_size == 0 and not given.all(), (samples, batch_size, given)
        batch = Batch(*(x.expand(batch_size, -1) for x in (ids, given)), None)
        batch = batch._replace(length=torch.full((batch_size,), len(ids)))
        seen = Guided(net, batch.given, self.mask_id, cfg) if cfg else net
        total, n = 0.0, int((~given).sum())
        for _ in range(samples // batch_size):
            masked = torch.zeros_like(batch.given)
            masked[:, ~given] = self.answer_masks(n, batch_size, rng)
            k = masked.sum(1).double()
            # what is told of the noise may depend on k in any way: the bound holds for all of them
            sigma = -torch.log1p(-k / (n + 1))
            total += float(self._nats(seen, batch, masked, n / k, sigma).mean())
        return -total * batch_size / samples

    def answer_masks(self, n: int, copies: int, rng: torch.Generator) -> Tensor:
        """(copies, n) bool: which places of an answer to mask in each copy."""
        k = int(torch.randint(1, n + 1, (), generator=rng))
        order = torch.rand(copies, n, generator=rng).argsort(1)
        return order < answer_counts(n, copies, k)[:, None]

    # -- sampling --

    @torch.no_grad()
    def sample(
        self, net: Any, ids: Tensor, given: Tensor, rng: torch.Generator, options: SampleOptions
    ) -> Iterator[Frame]:
        """decode.py says what the options do."""
        options = choose_sampler(self, options)
        yield from frames(Decoder(self, net, ids, given, rng, options))


class MaskedTokens(Masked):
    """The loss of masked language models: the cross entropy of masked tokens, each of which weighs
    alike whatever the time, averaged over those that are masked. A network without time; samplers
    and bound are those of masked diffusion."""

    def __init__(self, vocab_size: int, mask_id: int | None, noise: Noise, **options: Any):
        super().__init__(vocab_size, mask_id, noise, **options)
        self.needs["time"] = False

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        """Cross entropy of the masked tokens, summed, and how many they are; nats."""
        batch = self.cut(batch, rng)
        t, _ = self.times(len(batch.ids), rng)
        u = torch.rand(batch.ids.shape, generator=rng)
        masked = self.written(batch) & (u < self.noise.masked(t)[:, None])
        sigma = self.noise.total(t)
        nats, _, row = self.score(net, batch, masked, torch.ones_like(t), sigma)
        return Loss(nats, len(row), {})
