"""Textbooks of what we do fast: the published network, losses, training step and samplers.

Score entropy and masked diffusion follow SEDD (arXiv 2310.16834) and MDLM (arXiv 2406.07524): all
scores, as much noise in samplers, an average by a loop, plain AdamW. Insertion follows ILM (arXiv
2505.05755): rows of the whole width, and a dense target for every gap and token. speed.py compares
them with ours, on our weights.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion import LogLinear, grid
from insertion import Rows
from objective import generator, low_discrepancy_uniform

NOISE, LOW = LogLinear(), LogLinear.t_min


def textbook_weights(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of our weights or gradients: a modulation per block, and the last in the output."""
    copies = {k: v.detach().clone() for k, v in named.items() if not k.startswith("modulation")}
    for name in named.keys() - copies.keys():
        for i, part in enumerate(named[name].detach().split(6 * len(named["norm.weight"]))):
            copies[f"blocks.{i}.{name}"] = part.clone()
    return copies


class Textbook:
    """The published network, losses, training step and samplers. V counts MASK, the last id."""

    def __init__(self, ours: Any):
        self.net, self.config, self.objective = ours.net, ours.config, ours.objective
        self.batch, self.x0, self.drawn, self.dropout = ours.batch, ours.x0, 0, 0.0
        self.mask, self.w = ours.net.vocab_size - 1, textbook_weights(ours.net.state_dict())
        self.params, self.updates = [p.requires_grad_() for p in self.w.values()], 0
        self.ema = [p.detach().clone() for p in self.params]
        self.adamw = torch.optim.AdamW(self.params, 3e-4, (0.9, 0.95), weight_decay=0.0)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[name + ".weight"], self.w.get(name + ".bias"))

    def norm(self, name: str, x: Tensor, shift: Any = None, scale: Any = None) -> Tensor:
        x = F.layer_norm(x.float(), x.shape[-1:]) * self.w[name + ".weight"]
        return x if shift is None else x * (1 + scale) + shift

    def logits(self, ids: Tensor, sigma: Tensor) -> Tensor:
        """ids (B, L), noise levels (B,) -> (B, L, V). Its autocast, as theirs, is for GPUs only."""
        with self.autocast(ids):
            return self.linear("head", self.features(ids, sigma)).float()

    def autocast(self, ids: Tensor) -> torch.autocast:
        fast = ids.is_cuda and self.config.dtype == "bfloat16"
        return torch.autocast(ids.device.type, torch.bfloat16, enabled=fast)

    def features(self, ids: Tensor, sigma: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """ids (B, L), mask bool of who attends to whom (B, 1, 1, L) -> (B, L, C)."""
        h, c, last = F.embedding(ids, self.w["embed.weight"]), None, [None] * 2
        if "place.weight" in self.w:
            h = h + self.w["place.weight"][: ids.shape[1]]
        if self.config.time_input:
            c = F.silu(self.linear("time.fc", self.net.time.sinusoids(sigma)))
            c = F.silu(self.linear("time.proj", c))
        cos, sin = self.net.rotation(torch.arange(ids.shape[1], device=ids.device)[None])
        cos, sin = torch.cat([cos, cos], -1).squeeze(), torch.cat([-sin, sin], -1).squeeze()
        for i in range(self.config.n_layer):
            h = self.block(f"blocks.{i}.", h, c, (cos, sin), mask)
        if c is not None:
            last = self.linear(f"blocks.{i + 1}.modulation", c)[:, None].chunk(2, -1)
        return self.norm("norm", h, *last)

    def block(
        self, name: str, h: Tensor, c: Tensor | None, turn: tuple, mask: Tensor | None
    ) -> Tensor:
        (B, L, C), parts, (cos, sin) = h.shape, [None] * 6, turn
        if c is not None:  # shift, scale, gate of both branches, each (B, 1, C)
            parts = self.linear(name + "modulation", c)[:, None].chunk(6, -1)
        x = self.linear(name + "attn.qkv", self.norm(name + "norm1", h, *parts[:2]))
        q, k, v = x.view(B, L, 3, self.config.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, L, C / H)
        if self.config.positions == "rotary":
            swap = partial(torch.roll, shifts=cos.shape[1] // 2, dims=-1)  # of the halves
            q, k = q * cos + swap(q) * sin, k * cos + swap(k) * sin
        x = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(B, L, C)
        x = self.drop(self.linear(name + "attn.proj", x))
        h = h + (x if c is None else parts[2] * x)
        x = self.linear(name + "mlp.fc", self.norm(name + "norm2", h, *parts[3:5]))
        x = self.drop(self.linear(name + "mlp.proj", F.gelu(x, approximate="tanh")))
        return h + (x if c is None else parts[5] * x)

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout else x

    def log_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """SEDD's output (B, L, V): scaled by sigma (B,), and 0 at the token itself."""
        s = self.logits(x, sigma) - torch.expm1(sigma).log()[:, None, None] - math.log(self.mask)
        return s.scatter(-1, x[..., None], 0.0)

    def log_p(self, x: Tensor, sigma: Tensor) -> Tensor:
        """MDLM's output (B, L, V): log-probabilities, none for MASK; what is there stays."""
        logits, there = self.logits(x, sigma), x != self.mask
        logits[..., -1] = -1e6
        log_p = logits - logits.logsumexp(-1, keepdim=True)
        log_p[there] = -1e6
        log_p[there, x[there]] = 0
        return log_p

    def score_entropy(self, xt: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """(B, L): sum_y s_y - r log s_x0 + r (log r - 1) where masked, r = 1 / (e^sigma - 1)."""
        log_score, masked = self.log_score(xt, sigma), xt == self.mask
        log_score, r = log_score[masked], (1 / torch.expm1(sigma))[:, None].expand_as(xt)[masked]
        at_x0 = log_score.gather(-1, x0[masked][:, None])[:, 0]
        entropy = torch.zeros(xt.shape, device=xt.device)
        entropy[masked] += log_score[:, :-1].exp().sum(-1) - r * at_x0 + r * (r.log() - 1)
        return entropy

    def loss(self, x0: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """Sum () over x0 (B, L) at times t (B,); a token is masked where u (B, L) is small."""
        sigma, rate = NOISE.total(t), NOISE.rate(t)[:, None]
        xt = torch.where(u < -torch.expm1(-sigma)[:, None], self.mask, x0)
        if not self.config.normalize:
            return (rate * self.score_entropy(xt, x0, sigma)).sum()
        log_p = self.log_p(xt, sigma).gather(-1, x0[..., None])[..., 0]
        return -(rate / torch.expm1(sigma)[:, None] * log_p).sum()

    def replayed(self, seed: int) -> Tensor:
        """The sum () that our loss of the batch is, with the same draws."""
        rng = generator(seed)
        t, u = low_discrepancy_uniform(len(self.x0), rng), torch.rand(self.x0.shape, generator=rng)
        t, u = (LOW + (1 - LOW) * t).to(self.x0.device), u.to(self.x0.device)
        return self.loss(self.x0, t, u)

    def gradients(self) -> None:
        x0 = self.x0
        t, u = (torch.rand(n, device=x0.device) for n in (len(x0), x0.shape))
        (self.loss(x0, LOW + (1 - LOW) * t, u) / x0.numel()).backward()

    def step(self) -> None:
        self.gradients()
        torch.nn.utils.clip_grad_norm_(self.params, self.config.grad_clip)
        self.adamw.step()
        self.adamw.zero_grad()
        self.average()

    def average(self) -> None:
        self.updates += 1
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        for ema, p in zip(self.ema, self.params, strict=True):
            ema.sub_((1 - decay) * (ema - p.detach()))

    def draw(self, weights: Tensor, rng: torch.Generator) -> Tensor:
        """(B, L, V) -> (B, L): a race of exponential clocks over the vocabulary at every place."""
        u = torch.rand(weights.shape, generator=rng, device=weights.device)
        return (weights / (1e-10 - (u + 1e-10).log())).argmax(-1)

    @torch.no_grad()
    def analytic(self, x: Tensor, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
        """SEDD's Tweedie steps (Thm 4.2) from x (B, L), all MASK; the last one denoises."""
        for now, then in pairwise([*NOISE.total(grid(steps)).tolist(), 0.0]):
            sigma, grow = torch.full(x.shape[:1], now, device=x.device), math.exp(now - then)
            score = self.log_score(x, sigma).exp()
            rest, score = (1 - grow) * score.sum(-1), grow * score
            score[..., -1] += rest
            masked = torch.where(x == self.mask, 1 - 1 / grow, 0.0)[..., None]
            weights = score * (F.one_hot(x, score.shape[-1]) / grow + masked)
            x = self.draw(weights[..., :-1] if then == 0 else weights, rng)
            yield x

    @torch.no_grad()
    def ddpm(self, x: Tensor, steps: int, rng: torch.Generator) -> Iterator[Tensor]:
        """MDLM's ancestral steps from x (B, L), all MASK; what is left takes its best token."""
        for now, then in pairwise((-torch.expm1(-NOISE.total(grid(steps)))).tolist()):
            weights = self.log_p(x, x[:, 0]).exp() * (now - then)  # this network has no time input
            weights[..., -1] = then
            x = torch.where(x == self.mask, self.draw(weights, rng), x)
            yield x
        yield self.log_p(x, x[:, 0]).argmax(-1)


class InsertionTextbook(Textbook):
    """ILM: one softmax over all pairs of gap and token, and a readout that says when to stop."""

    def counts(self, rows: Rows, width: int) -> Tensor:
        """How often each token is missing in each gap, (B, width, V) int64."""
        size = (len(rows.ids), width, self.net.vocab_size)
        counts = torch.zeros(size, dtype=torch.int64, device=rows.row.device)
        places = (rows.row, rows.col, rows.token)
        return counts.index_put_(places, torch.ones_like(rows.row), accumulate=True)

    def missing_loss(self, rows: Rows, width: int) -> Tensor:
        """Sum () over rows, padded to `width`, of both cross entropies."""
        rows = Rows(*(None if x is None else x.to(self.x0.device) for x in rows))
        ids = F.pad(rows.ids, (0, width - rows.ids.shape[1]))
        there = torch.arange(width, device=ids.device) < rows.length[:, None]
        with self.autocast(ids):
            h = self.features(ids, None, there[:, None, None])
            gaps, z = there.clone(), self.linear("head", h).float()
        gaps[:, 0] = False
        target = self.counts(rows, width) / (rows.n + 1e-9)[:, None, None]
        z = z.masked_fill(~gaps[..., None], torch.finfo(z.dtype).min)
        missing = F.cross_entropy(z.flatten(1), target.float().flatten(1), reduction="sum")
        return missing + F.cross_entropy(self.stop(h[:, 0]), (rows.n > 0).long(), reduction="sum")

    def stop(self, h: Tensor) -> Tensor:
        """Features at CLS (B, C) -> (B, 2)."""
        w, name = self.w, "heads.stop."
        x = F.layer_norm(h, h.shape[-1:], w[name + "norm.weight"], w[name + "norm.bias"])
        x = self.linear(name + "proj", torch.tanh(self.linear(name + "fc", x)))
        return self.linear(name + "linear", h + x)

    def replayed(self, seed: int) -> Tensor:
        rows = self.objective.corrupt(self.batch, generator(seed))
        return self.missing_loss(rows, 1 + self.x0.shape[1])

    def gradients(self) -> None:
        self.drawn += 1
        (self.replayed(self.drawn) / len(self.x0)).backward()


def textbook(ours: Any) -> Textbook:
    """The textbook of what bench/speed.py's Ours does."""
    return (InsertionTextbook if ours.config.objective == "ilm" else Textbook)(ours)
