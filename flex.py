"""FlexMDM: a text grows by MASK tokens that are inserted, and is written by unmasking them.

Time runs from 0, what is given, to 1, the text. Every written token has a time at which it is
inserted as MASK, uniform on [0, 1], and one at which it is unmasked, uniform on what is left of it;
what is given and the EOS behind the text are there at all times. So at time t a token that is
missing comes with rate 1 / (1 - t), and so is one unmasked that is not. The network sees what is
there, in both directions, with t, and predicts the token behind every MASK and, for every token,
how many are missing between it and the one to its left: that gap is named by it.

    expectation    their mean, as length * softplus(readout); the loss is the deviance of a rate
    distribution   classes 0, 1, ... of a readout, and their cross entropy

The samplers leap through time. In a leap of length d, what is missing or masked should come with
probability c = d / (1 - t). A row that would not hold all of its new MASK tokens gets none of them.

    ancestral     a gap that lacks y gets c y of them, rounded up or down at random so that the mean
                  is right; each MASK is unmasked with probability c
    confidence    the same, but of the MASK tokens those whose best token is the most probable
    tau           Poisson numbers, as published: of mean c y for a gap, and of mean c for a MASK,
                  which is unmasked if there is exactly one. Coarser where steps are few

    FlexMDM  Kim et al. 2025, Any-Order Flexible Length Masked Diffusion, arXiv 2509.01025
"""

import math
from typing import Any, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import UserError
from corpus import Batch
from inserter import GROWTH, Inserter
from objective import (
    Frame,
    Loss,
    Objective,
    SampleOptions,
    bucket,
    categorical,
    choose_sampler,
    chunks,
    cross_entropy_rule,
    draw_tokens,
    features_at,
    metric,
    scored_rows,
    stratified,
    to_device,
    with_spare,
)
from order import ranks

TIME_SCALE = 10.0  # of t as an input, as sigma ranges; star graphs stay unlearnt at 1 and 1000
LATEST = 1 - 1e-6  # of training, as published: the weight is 1 / (1 - t)
END = 1 - 1e-5  # of leaps, as published; the last step unmasks what is left
LEAST = 1e-6  # tokens that a gap lacks at least, as published: its logarithm is taken


class Rows(NamedTuple):
    """Whole rows on the CPU, each with EOS behind it."""

    ids: Tensor  # (B, T) int64
    length: Tensor  # (B,) int64, EOS included
    free: Tensor  # (B, T) bool: written by the model, EOS apart
    open: Tensor  # (B, T) bool: tokens beside which, to the left, the model may write


class Noised(NamedTuple):
    """Rows at some time, on the CPU: what is there, moved together."""

    ids: Tensor  # (B, W) int64: tokens, MASK, padding
    length: Tensor  # (B,) int64
    source: Tensor  # (B, W) int64: the place in the row that a column comes from; 0 behind
    target: Tensor  # (B, W) int64: the token there
    masked: Tensor  # (B, W) bool
    open: Tensor  # (B, W) bool: columns whose left-hand gap may lack something
    gap: Tensor  # (B, W) int64: how many tokens it lacks


def noised(
    rows: Rows, insert: Tensor, unmask: Tensor, time: Tensor, mask_id: int, pad_id: int
) -> Noised:
    """Rows at time (B,), of which the free tokens come at `insert` and are seen at `unmask`
    (B, T)."""
    T, t = rows.ids.shape[1], time[:, None]
    keep = (torch.arange(T) < rows.length[:, None]) & ~(rows.free & (t < insert))
    hidden = rows.free & keep & (t < unmask)
    length = keep.sum(1)
    W = bucket(int(length.max()), T)
    order = (~keep).long().argsort(dim=1, stable=True)[:, :W]  # (B, W): kept places, in order
    behind = torch.arange(W) >= length[:, None]
    target = rows.ids.gather(1, order).masked_fill(behind, pad_id)
    masked = hidden.gather(1, order) & ~behind
    gap = order - F.pad(order, (1, 0), value=-1)[:, :W] - 1
    return Noised(
        target.masked_fill(masked, mask_id),
        length,
        order.masked_fill(behind, 0),
        target,
        masked,
        rows.open.gather(1, order) & ~behind,
        gap.masked_fill(behind, 0),
    )


def deviance(rate: Tensor, count: Tensor) -> Tensor:
    """y - x + x ln(x / y) for rates y (...) > 0 and counts x (...): 0 where they are equal."""
    return rate - count + torch.xlogy(count, count) - count * rate.log()


class FlexMDM(Objective):
    """FlexMDM with linear schedules. `longest` tokens are in the longest row; gap_loss is
    expectation or distribution. Raises UserError for tokenizers without an eos id or a pad id that
    is another."""

    grows = ragged = True
    samplers = ("ancestral", "confidence", "tau")
    estimator = "bound of FlexMDM, relative entropy of the paths of its sampler"
    epsilon = 1 - END

    def __init__(
        self,
        vocab_size: int,
        specials: dict[str, int],
        *,
        longest: int,
        gap_loss: str = "expectation",
    ):
        if "eos" not in specials or specials.get("pad", specials["eos"]) == specials["eos"]:
            raise UserError("objective=flex needs a tokenizer with an eos id and another pad id")
        self.mask_id = specials.get("mask", vocab_size)
        self.pad_id, self.eos_id = specials["pad"], specials["eos"]
        self.cls_id = self.pad_id  # what an Inserter has in front: never seen by the network
        names = ("cls", "bos", "eos", "pad")
        self.never = [i for k, i in specials.items() if k in names] + [self.mask_id]
        self.longest, self.gap_loss = longest, gap_loss
        self.needs = {
            "causal": False,
            "time": True,
            "vocab_size": max(vocab_size, self.mask_id + 1),
            "heads": {"gaps": 1 if gap_loss == "expectation" else longest},
        }

    # -- rows --

    def written(self, batch: Batch) -> Tensor:
        return ~batch.given & (torch.arange(batch.ids.shape[1]) < batch.length[:, None])

    def framed(self, batch: Batch) -> Rows:
        """The rows of a batch, with EOS behind those that end without. Raises UserError for a row
        that nothing given begins: what its samplers could not start from."""
        if not batch.given[:, 0].all():
            raise UserError(
                "insertion needs rows that begin with a given token, such as BOS; "
                "prepare_pretrain.py --packing=rows makes them"
            )
        last = batch.length.clamp(min=1)[:, None] - 1
        ends = batch.ids.gather(1, last)[:, 0] == self.eos_id
        length = batch.length + (~ends).long()
        ids = F.pad(batch.ids, (0, 1), value=self.pad_id)
        ids = ids.scatter(1, length[:, None] - 1, self.eos_id)
        column, end = torch.arange(ids.shape[1]), length[:, None] - 1
        written = F.pad(self.written(batch), (0, 1))
        beside = (written | F.pad(written, (1, 0))[:, :-1]) & (column <= end)
        return Rows(ids, length, written & (column < end), beside)

    def times(self, rows: Rows, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """When tokens are inserted and when unmasked, (B, T) float64 in [0, 1)."""
        u, v = torch.rand((2, *rows.ids.shape), generator=rng, dtype=torch.float64)
        return u, u + v * (1 - u)

    # -- the network --

    def condition(self, net: Any, time: Tensor) -> Tensor | None:
        """What the network is told at t (B,)."""
        if net.time is None:
            return None
        return to_device((TIME_SCALE * time).float(), net.head.weight.device)

    def look(self, net: Any, x: Noised, time: Tensor) -> tuple[Tensor, Tensor]:
        """Features at the masked places (M, C) and at the open gaps (G, C)."""
        inside = torch.arange(x.ids.shape[1]) < x.length[:, None]
        mask = None if inside.all() else inside[:, None]
        told = self.condition(net, time)
        h, row, col = features_at(net, x.ids, x.masked | x.open, told, mask)
        masked, open_ = (which[row, col].nonzero()[:, 0] for which in (x.masked, x.open))
        return h[to_device(masked, h.device)], h[to_device(open_, h.device)]

    def lacking(self, net: Any, h: Tensor) -> Tensor:
        """Features (..., C) -> how many tokens the gaps lack on average (...), at least LEAST."""
        z = net.heads["gaps"](h)
        if self.gap_loss == "expectation":
            return (self.longest * F.softplus(z[..., 0])).clamp(min=LEAST)
        count = torch.arange(z.shape[-1], device=z.device, dtype=z.dtype)
        return (z.softmax(-1) @ count).clamp(min=LEAST)

    def gap_losses(self, net: Any, h: Tensor, count: Tensor) -> Tensor:
        """(G,) loss of the numbers (G,) of tokens that the gaps with features (G, C) lack."""
        count, G = to_device(count, h.device), len(h)
        h = with_spare(h)
        if self.gap_loss == "distribution":
            return F.cross_entropy(net.heads["gaps"](h)[:G], count, reduction="none")
        return deviance(self.lacking(net, h)[:G], count.float())

    # -- loss --

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        """Of each row, cross entropy of the masked tokens and loss of the gaps, times 1 / (1 - t);
        divided by `count`, rows times the length of the longest, it is the published mean."""
        rows = self.framed(batch)
        time = LATEST * stratified(len(rows.ids), rng).double()
        x = noised(rows, *self.times(rows, rng), time, self.mask_id, self.pad_id)
        return self.row_loss(net, x, time, int(self.written(batch).any(1).sum()))

    def row_loss(self, net: Any, x: Noised, time: Tensor, asked: int) -> Loss:
        """The same of rows at their times (B,); in `asked` of them something is written."""
        masked, gaps = self.look(net, x, time)
        device, weight = masked.device, (1 / (1 - time)).float()
        scale = to_device(weight[x.masked.nonzero()[:, 0]], device)
        target = to_device(x.target[x.masked], device)
        rule = cross_entropy_rule(target, scale, self.mask_id)
        nats, each = scored_rows(net.head, masked, rule)
        lost = self.gap_losses(net, gaps, x.gap[x.open])
        weight = to_device(weight[x.open.nonzero()[:, 0]], device)
        parts = {"ce": each / scale, "gaps": lost}
        metrics = {k: metric(p.sum(), len(p)) for k, p in parts.items()}
        return Loss(nats + (weight * lost).sum(), asked * self.longest, metrics)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: bound on -log p(written | given) of the sampler with infinitely many
        steps and no limit of room, which ends at END.

        A text and the times of its L tokens determine the path of the sampler, gap by gap, and are
        determined by it: there is no multiplicity, and the relative entropy of the paths is a
        bound. The model's have rates y_g / (1 - t) and p(v) / (1 - t); the others must be complete
        by END, so their times are those of training times END and their rates r = 1 / (END - t).
        With x missing and m masked tokens and D = log r (1 - t) it is the integral over t of

            (sum of y_g + m) / (1 - t) - r (x + m)
                + r [sum over missing of (D - log y_g) + sum over masked of (D - log p)]

        t = END (1 - u^2) with uniform u: with a uniform t the spread would be infinite. For the
        true network, whose rates are those of training, it exceeds -log p by 9.3e-4 L at most.
        """
        rows = self.framed(batch)
        nats = torch.zeros(len(rows.ids), dtype=torch.float64)
        for i in range(samples):
            u = (i + torch.rand(len(nats), generator=rng, dtype=torch.float64)) / samples
            left = END * u.clamp(min=1e-6) ** 2
            insert, unmask = (END * s for s in self.times(rows, rng))
            x = noised(rows, insert, unmask, END - left, self.mask_id, self.pad_id)
            nats += 2 * END * u / samples * self.slope(net, x, left)
        return nats

    def slope(self, net: Any, x: Noised, left: Tensor) -> Tensor:
        """The integrand of the bound (B,) float64 at time END - left (B,)."""
        masked, gaps = self.look(net, x, END - left)
        rate, ours = 1 / left, 1 / (left + 1 - END)
        lag = (rate / ours).log()
        surprise, y = -self.log_p(net, masked, x.target[x.masked]), self.lacking(net, gaps)
        wanted, y = x.gap[x.open].double(), y.double().cpu()
        events, found = x.masked.sum(1) + x.gap.sum(1), x.masked.sum(1).double()
        cost = events * lag
        cost = cost.index_add(0, x.masked.nonzero()[:, 0], surprise)
        cost = cost.index_add(0, x.open.nonzero()[:, 0], -wanted * y.log())
        found = found.index_add(0, x.open.nonzero()[:, 0], y)
        return ours * found - rate * events + rate * cost

    def log_p(self, net: Any, h: Tensor, token: Tensor) -> Tensor:
        """log p of token (M,) at features (M, C) under the law of the samplers, (M,) float64."""
        found = [torch.zeros(0, dtype=torch.float64)]
        for part in chunks(len(h), len(net.head.weight)):
            z = net.logits(h[part]).double()
            z[:, self.never] = -torch.inf
            place = token[part, None].to(z.device)
            found.append(z.log_softmax(1).gather(1, place)[:, 0].cpu())
        return torch.cat(found)

    # -- sampling --

    @torch.no_grad()
    def sample(
        self, net: Any, ids: Tensor, given: Tensor, rng: torch.Generator, options: SampleOptions
    ) -> Iterator[Frame]:
        """The canvas is that of inserter.py: holes of unknown length. options.steps leaps, one more
        that ends at END, and a step that unmasks what is left."""
        if (given & (ids == self.mask_id)).any():
            raise UserError("MASK is not text: it cannot be given")
        yield from Leaper(self, net, ids, given, rng, choose_sampler(self, options)).frames()


class Leaper(Inserter):
    """One run of a sampler. The gap behind column c of x, CLS in column 0, is the one to the left
    of column c of what the network sees: x without CLS, and with EOS."""

    def ancestral(self) -> Iterator[None]:
        """Leaps of equal length from time 0 to END, then all at once."""
        steps = self.o.steps + 1
        for k in range(steps):
            time = END * k / steps
            rows = ((self.left > 0) | (self.x == self.process.mask_id).any(1)).nonzero()[:, 0]
            if not len(rows):
                return
            self.leap(rows, time, END / steps / (1 - time), k == steps - 1)
            yield
        rows = (self.x == self.process.mask_id).any(1).nonzero()[:, 0]
        if len(rows):
            h, masked = self.look_at(rows, END)
            self.unmask(rows, h, masked)
            yield

    confidence = tau = ancestral  # other answers to `due` and `arrivals`

    def leap(self, rows: Tensor, time: float, chance: float, last: bool) -> None:
        """Events of rows (r,), each with `chance`: the length of the leap / (1 - time)."""
        h, masked = self.look_at(rows, time)
        more = self.arrivals(rows, h, chance, last)
        self.unmask(rows, h, self.due(h, masked, chance))
        self.insert(rows, more, self.process.mask_id)

    # -- the network --

    def look_at(self, rows: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Features (r, W, C) of some rows (r,), and which of their columns are MASK (r, W)."""
        length, p = self.length[rows], self.process
        W = -(-int(length.max()) // GROWTH) * GROWTH
        W = min(W, self.longest, self.x.shape[1])
        text = F.pad(self.x[rows], (0, 1), value=p.pad_id)[:, 1 : W + 1]
        seen = text.scatter(1, length[:, None] - 1, p.eos_id)
        told = torch.full((len(rows),), time, dtype=torch.float64, device=rows.device)
        inside = torch.arange(W, device=rows.device) < length[:, None]
        h = self.net.features(seen, p.condition(self.net, told), inside[:, None])
        return h, seen == p.mask_id

    # -- unmasking --

    def due(self, h: Tensor, masked: Tensor, chance: float) -> Tensor:
        """(r, W) bool: which of the masked columns (r, W) are unmasked in this leap."""
        p = chance * math.exp(-chance) if self.o.sampler == "tau" else chance
        fires = masked & (self.uniforms(*masked.shape) < p)
        if self.o.sampler != "confidence":
            return fires
        row, col = masked.nonzero(as_tuple=True)
        sure = [h.new_empty(0)]
        for part in chunks(len(row), len(self.net.head.weight)):
            sure.append(self.logits(h[row[part], col[part]]).softmax(-1).amax(-1))
        best = ranks(row, torch.cat(sure)) < fires.sum(1)[row]
        return torch.zeros_like(masked).index_put_((row, col), best)

    def unmask(self, rows: Tensor, h: Tensor, places: Tensor) -> None:
        """Draw tokens at places (r, W) of rows (r,) from features (r, W, C)."""
        row, col = places.nonzero(as_tuple=True)
        for part in chunks(len(row), len(self.net.head.weight)):
            at = rows[row[part]], col[part] + 1
            z = self.logits(h[row[part], col[part]])
            self.x[at], self.fresh[at] = draw_tokens(z, self.o, self.rng), True

    # -- inserting --

    def arrivals(self, rows: Tensor, h: Tensor, chance: float, last: bool) -> Tensor:
        """(r, W) int64: how many MASK tokens go into each gap of rows (r,)."""
        gaps = self.gaps(rows, h.shape[1]) & (self.left[rows] > 0)[:, None]
        mean = torch.zeros(gaps.shape, dtype=torch.float64, device=h.device)
        mean[gaps] = self.process.lacking(self.net, h[gaps]).double()
        if self.o.exact:
            return self.share_out(rows, mean, 1.0 if last else chance)
        mean *= chance
        if self.o.sampler == "tau":
            more = torch.poisson(mean, generator=self.rng).long()
        else:
            more = (mean + self.uniforms(*mean.shape)).long()
        return more * (more.sum(1) <= self.left[rows])[:, None]

    def share_out(self, rows: Tensor, mean: Tensor, chance: float) -> Tensor:
        """`arrivals` where it is known how many tokens each hole lacks: each of them comes with
        `chance`, to a gap of its hole with probability in proportion to the mean (r, W)."""
        row, hole = self.room[rows].nonzero(as_tuple=True)
        times = self.room[rows[row], hole]
        row, hole = row.repeat_interleave(times), hole.repeat_interleave(times)
        come = self.uniforms(len(row)) < chance
        row, hole = row[come], hole[come]
        here = self.hole[rows[row], : mean.shape[1]] == hole[:, None]
        gap = categorical(mean[row] * here, self.uniforms(len(row)))
        one = torch.ones_like(gap)
        return torch.zeros_like(mean).long().index_put_((row, gap), one, accumulate=True)
