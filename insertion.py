"""Insertion models: text is destroyed by dropping tokens and learnt by putting them back.

A row is CLS, what is given, and what is left of the written tokens. The gap to the right of every
token is named by that token. What was dropped is a count c[g, v] for each gap g and token v: order
within a gap does not matter, since any of its tokens may come back first. EOS is no token here: a
readout at CLS decides whether the text is complete (ILM), or how many tokens it lacks.

    ilm    n ~ U{0..L} of L tokens are dropped; one softmax over all pairs of gap and token, and a
           readout that says when to stop (ILM, section 3)
    it     the same rows; a softmax for every gap, and EOS where nothing is missing (Insertion
           Transformer, uniform loss)

Insertion in continuous time is in idlm.py, the samplers of all of them in inserter.py.

    ILM  Patel et al. 2025, Insertion Language Models, arXiv 2505.05755
    IT   Stern et al. 2019, Insertion Transformer, arXiv 1902.03249
"""

from typing import Any, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import UserError
from corpus import Batch
from inserter import Inserter
from objective import (
    Frame,
    Loss,
    Objective,
    Rule,
    SampleOptions,
    bucket,
    choose_sampler,
    chunks,
    exponentiate_,
    metric,
    scored_rows,
    to_device,
)


class Rows(NamedTuple):
    """Rows after dropping, on the CPU: kept tokens moved together, and what is missing."""

    ids: Tensor  # (B, W) int64: CLS, kept tokens, padding
    length: Tensor  # (B,) int64, CLS included
    gaps: Tensor  # (B, W) bool: columns whose right-hand gap is open to insertion
    L: Tensor  # (B,) int64: tokens that could be dropped
    n: Tensor  # (B,) int64: tokens that were
    row: Tensor  # (D,) int64: of each dropped token, in order of row and column, its row,
    col: Tensor  # (D,) int64: the column of the kept token to its left,
    token: Tensor  # (D,) int64: and its id


def compact(ids: Tensor, droppable: Tensor, length: Tensor, drop: Tensor, pad_id: int) -> Rows:
    """Drop the places `drop` (B, T) bool of ids (B, T), CLS in column 0, rows `length` (B,) long.

    Open are the gaps beside places that may be dropped; of a row that has none, none.
    """
    T = ids.shape[1]
    inside = torch.arange(T) < length[:, None]
    keep = inside & ~drop
    row, place = (drop & inside).nonzero(as_tuple=True)
    col = (keep.long().cumsum(1) - 1)[row, place]
    kept = keep.sum(1)
    W = bucket(int(kept.max()), T)
    order = (~keep).long().argsort(dim=1, stable=True)[:, :W]  # (B, W): kept places, in order
    behind = torch.arange(W) >= kept[:, None]
    gaps = (droppable | F.pad(droppable[:, 1:], (0, 1))).gather(1, order) & ~behind
    short = ids.gather(1, order).masked_fill(behind, pad_id)
    n, L = drop.sum(1), droppable.sum(1)
    return Rows(short, kept, gaps, L, n, row, col, ids[row, place])


def pick(droppable: Tensor, n: Tensor, rng: torch.Generator) -> Tensor:
    """(B, T) bool: exactly n (B,) of the droppable places (B, T), any of them alike."""
    u = torch.rand(droppable.shape, generator=rng).masked_fill(~droppable, 2.0)
    return (u.argsort(1).argsort(1) < n[:, None]) & droppable


def joint_rule(
    group: Tensor, row: Tensor, token: Tensor, weight: Tensor, device: torch.device
) -> Rule:
    """Cross entropy with several targets under one softmax for a group of scored rows:

        sum over targets d of weight_d (logsumexp of the group - z[row_d, token_d])

    group (R,) numbers the groups 0, 1, ... in order; row (D,), in order, are scored rows; weight
    (D,) float32. All on the CPU. A part that the rule is given must be made of whole groups. The
    loss of a group is spread over its rows; only their sum means something.
    """
    first = torch.searchsorted(group, torch.arange(int(group[-1]) + 1 if len(group) else 0))
    total = torch.zeros(len(first)).index_add_(0, group[row], weight)
    moved = [to_device(x, device) for x in (group, row, token, weight, first, total)]
    group_, row_, token_, weight_, first_, total_ = moved

    def rule(z: Tensor, part: slice) -> Tensor:
        g = slice(int(group[part.start]), int(group[part.stop - 1]) + 1)
        d = slice(*torch.searchsorted(row, torch.tensor([part.start, part.stop])).tolist())
        own = group_[part] - g.start
        at, ids, w = row_[d] - part.start, token_[d], weight_[d]
        losses = z.new_zeros(len(z)).index_add_(0, at, -w * z[at, ids])
        norm, mass = (x[:, 0] for x in exponentiate_(z))
        top = norm.new_full((g.stop - g.start,), -torch.inf).scatter_reduce_(0, own, norm, "amax")
        share = torch.zeros_like(top).index_add_(0, own, (norm - top[own]).exp())
        whole = top + share.log()  # of each group
        losses.index_add_(0, first_[g] - part.start, total_[g] * whole)
        z.mul_((total_[g][own] * (norm - whole[own]).exp() / mass)[:, None])
        z.index_put_((at, ids), -w, accumulate=True)
        return losses

    return rule


def whole_groups(group: Tensor, vocab_size: int) -> list[slice]:
    """Slices of the scored rows, of whole groups (R,), about as many rows as `chunks` takes."""
    if not len(group):
        return []
    size = next(chunks(1 << 40, vocab_size)).stop
    ends = torch.nonzero(F.pad(group[1:] != group[:-1], (0, 1), value=True))[:, 0] + 1
    parts, start, end = [], 0, 0
    for stop in ends.tolist():
        if end > start and stop - start > size:
            parts.append(slice(start, end))
            start = end
        end = stop
    return [*parts, slice(start, end)] if end > start else parts


class Insertion(Objective):
    """ILM: which token is missing in which gap, and whether any is.

    stop: `stop`, a readout of two classes, complete or not, whose cross entropy has stop_weight
    and, per class, class_weight and 1 - class_weight; `length`, one of how many are missing.
    close_prompt leaves the gaps between given tokens out of the softmax in training also; samplers
    always do. Raises UserError for tokenizers without a pad id.
    """

    grows = ragged = True
    samplers = ("threshold", "ancestral", "parallel")
    estimator = "bound of insertion (ILM) over all orders of the tokens, n of L missing"

    def __init__(
        self,
        vocab_size: int,
        specials: dict[str, int],
        *,
        stop: str = "stop",
        stop_weight: float = 1.0,
        class_weight: float | None = None,
        close_prompt: bool = False,
        longest: int = 0,
    ):
        if "pad" not in specials:
            raise UserError("insertion needs rows, and a tokenizer with a pad id")
        self.cls_id = specials.get("cls", vocab_size)
        self.pad_id, self.eos_id = specials["pad"], specials.get("eos", -1)
        names = ("cls", "bos", "eos", "pad", "mask")
        self.never = [i for k, i in specials.items() if k in names] + [self.cls_id]
        self.stop, self.stop_weight, self.class_weight = stop, stop_weight, class_weight
        self.close_prompt = close_prompt
        self.needs = {
            "causal": False,
            "time": False,
            "vocab_size": max(vocab_size, self.cls_id + 1),
            "heads": {"stop": 2} if stop == "stop" else {"length": longest + 1},
        }

    # -- rows --

    def written(self, batch: Batch) -> Tensor:
        return ~batch.given & (torch.arange(batch.ids.shape[1]) < batch.length[:, None])

    def framed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A batch with CLS in front and without EOS -> ids (B, T + 1), droppable (B, T + 1), length
        (B,). Raises UserError for a row that nothing given begins."""
        if not batch.given[:, 0].all():
            raise UserError(
                "insertion needs rows that begin with a given token, such as BOS; "
                "prepare_pretrain.py --packing=rows makes them"
            )
        ids = F.pad(batch.ids, (1, 0), value=self.cls_id)
        last = batch.length.clamp(min=1) - 1  # of a row of the batch
        ends = batch.ids.gather(1, last[:, None])[:, 0] == self.eos_id
        ends &= ~batch.given.gather(1, last[:, None])[:, 0]
        length = batch.length + 1 - ends.long()
        droppable = F.pad(~batch.given, (1, 0)) & (torch.arange(ids.shape[1]) < length[:, None])
        return ids, droppable, length

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Rows:
        """n of a row's L tokens dropped, n uniform on 0..L."""
        ids, droppable, length = self.framed(batch)
        n = (torch.rand(len(ids), generator=rng) * (droppable.sum(1) + 1)).long()
        return compact(ids, droppable, length, pick(droppable, n, rng), self.pad_id)

    # -- the network --

    def look(
        self, net: Any, rows: Rows, time: Tensor | None, gaps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the rows -> at CLS (B, C), at the gaps (B, W) bool: (R, C), and the number of
        each gap among them (B, W) int64."""
        device = net.head.weight.device
        W = rows.ids.shape[1]
        ids, mask = rows.ids, torch.arange(W) < rows.length[:, None]
        seen = None if mask.all() else to_device(mask[:, None], device)
        h = net.features(to_device(ids, device), time, seen)
        row, col = gaps.nonzero(as_tuple=True)
        number = (gaps.flatten().long().cumsum(0) - 1).view(gaps.shape)
        return h[:, 0], h.flatten(0, 1)[to_device(row * W + col, device)], number

    def token_loss(
        self, net: Any, rows: Rows, weight: Tensor, time: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """weight (B,) times the mean over dropped tokens of -log p(gap, token) -> (sum (), of each
        row (B,) detached, features at CLS (B, C)). Rows with nothing dropped have none (ILM,
        eq. 5)."""
        device = net.head.weight.device
        gaps = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
        gaps[:, 0] = False
        gaps = rows.gaps if self.close_prompt else gaps
        gaps = gaps & (rows.n > 0)[:, None]
        cls, h, number = self.look(net, rows, time, gaps)
        owner = gaps.nonzero()[:, 0]  # (R,) the row of each gap
        group = torch.unique_consecutive(owner, return_inverse=True)[1]
        at = number[rows.row, rows.col]
        each = (weight / rows.n.clamp(min=1)).float()[rows.row]
        rule = joint_rule(group, at, rows.token, each, device)
        nats, losses = scored_rows(net.head, h, rule, whole_groups(group, len(net.head.weight)))
        total = losses.new_zeros(len(rows.ids))
        return nats, total.index_add_(0, to_device(owner, device), losses), cls

    def complete(self, net: Any, cls: Tensor) -> Tensor:
        """Features at CLS (B, C) -> log p(nothing is missing), log p(something is), (B, 2)."""
        z = net.heads[self.stop](cls).log_softmax(-1)
        return z if z.shape[1] == 2 else torch.stack([z[:, 0], z[:, 1:].logsumexp(1)], 1)

    def stop_loss(self, net: Any, cls: Tensor, n: Tensor) -> Tensor:
        """(B,) weighted cross entropy of the readout, n (B,) being the number of missing tokens."""
        n = to_device(n, cls.device)
        z = net.heads[self.stop](cls)
        if self.stop == "length":
            return self.stop_weight * F.cross_entropy(z, n, reduction="none")
        a, missing = self.class_weight, (n > 0).long()
        done, more = (1.0, 1.0) if a is None else (a, 1 - a)
        weight = self.stop_weight * torch.where(missing == 0, done, more)
        return weight * F.cross_entropy(z, missing, reduction="none")

    # -- loss and bound --

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        """Of each row: cross entropy of the missing tokens under one softmax over gaps and tokens,
        and that of the readout; a mean over rows (ILM, eqs. 5 and 6)."""
        rows = self.corrupt(batch, rng)
        asked = self.written(batch).any(1)
        nats, each, cls = self.token_loss(net, rows, asked.double())
        stop = self.stop_loss(net, cls, rows.n) * to_device(asked, cls.device)
        count, some = int(asked.sum()), int((rows.n > 0).sum())
        sums = {"ce": (each.sum(), some), "stop": (stop.sum(), count)}
        metrics = {k: metric(*of) for k, of in sums.items()}
        return Loss(nats + stop.sum(), count, metrics)

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: bound on -log p(written | given) of the `ancestral` sampler, by Jensen
        over all orders in which the L tokens can be inserted. With x_n the row without n of them,

            -log p(stop | x_0) + sum over n = 1..L of
                -log p(go on | x_n) - mean over missing d of log(p(d | x_n) / m_d) - log n

        m_d is how many missing tokens equal d in its gap: inserting any of them is one event. The
        sum is estimated at `samples` values of n, one in each of as many strata.
        """
        ids, droppable, length = self.framed(batch)
        L = droppable.sum(1)
        full = compact(ids, droppable, length, torch.zeros_like(droppable), self.pad_id)
        cls = self.look(net, full, None, full.gaps)[0]
        nats = -self.complete(net, cls)[:, 0].double().cpu()
        for i in range(samples):
            u = (i + torch.rand(len(ids), generator=rng, dtype=torch.float64)) / samples
            n = 1 + (u * L).long().clamp(max=(L - 1).clamp(min=0))
            drop = pick(droppable, n, rng)
            rows = compact(ids, droppable, length, drop, self.pad_id)
            mean, cls = self.mean_missing(net, rows, None)
            cost = mean - self.complete(net, cls)[:, 1].double().cpu() - n.double().log()
            nats += torch.where(L > 0, L * cost, 0.0) / samples
        return nats

    def mean_missing(self, net: Any, rows: Rows, time: Tensor | None) -> tuple[Tensor, Tensor]:
        """-log(p(d) / m_d) under the law of the samplers, on average over the missing tokens d of
        each row (B,) float64, and the features at CLS (B, C)."""
        cls, h, number = self.look(net, rows, time, rows.gaps)
        owner = rows.gaps.nonzero()[:, 0]
        norm, found = _norms(net, h, number[rows.row, rows.col], rows.token, self.never)
        top = torch.full((len(rows.ids),), -torch.inf, dtype=torch.float64)
        top = top.scatter_reduce(0, owner, norm, "amax")
        share = torch.zeros_like(top).index_add_(0, owner, (norm - top[owner]).exp())
        log_p = found - (top + share.log())[rows.row]
        same = torch.stack([rows.row, rows.col, rows.token], 1)
        _, which, times = same.unique(dim=0, return_inverse=True, return_counts=True)
        log_p = log_p - times[which].double().log()
        total = torch.zeros(len(rows.ids), dtype=torch.float64).index_add_(0, rows.row, -log_p)
        return total / rows.n.clamp(min=1), cls

    # -- sampling --

    @torch.no_grad()
    def sample(
        self, net: Any, ids: Tensor, given: Tensor, rng: torch.Generator, options: SampleOptions
    ) -> Iterator[Frame]:
        """inserter.py says what the options do."""
        yield from Inserter(self, net, ids, given, rng, choose_sampler(self, options)).frames()


def _norms(
    net: Any, h: Tensor, at: Tensor, token: Tensor, never: list[int]
) -> tuple[Tensor, Tensor]:
    """Features h (R, C) -> log-sum-exp of the logits of each (R,), and the logits of `token` (D,)
    at the rows `at` (D,), in order; float64, on the CPU. Ids in `never` have no logit."""
    norms, found = [h.new_empty(0).double().cpu()], [h.new_empty(0).double().cpu()]
    for part in chunks(len(h), len(net.head.weight)):
        z = net.logits(h[part]).double()
        z[:, never] = -torch.inf
        norms.append(z.logsumexp(1).cpu())
        here = (at >= part.start) & (at < part.stop)
        place = (at[here] - part.start).to(z.device), token[here].to(z.device)
        found.append(z[place].cpu())
    return torch.cat(norms), torch.cat(found)


class InsertionTransformer(Insertion):
    """A softmax over the tokens for every gap of its own, EOS where nothing is missing: the mean
    over gaps of sum c_v -log p(v | gap) / (c + 1), c being how many tokens the gap lacks, and of
    eos_weight * -log p(EOS | gap) where that is none (Stern et al. 2019, uniform loss; ILM's code).
    """

    bounded = False
    samplers = ("serial", "parallel")

    def __init__(
        self,
        vocab_size: int,
        specials: dict[str, int],
        *,
        eos_weight: float = 1.0,
        close_prompt: bool = False,
    ):
        super().__init__(vocab_size, specials, close_prompt=close_prompt)
        if self.eos_id < 0:
            raise UserError("objective=it needs a tokenizer with an eos id")
        self.eos_weight, self.stop = eos_weight, "slots"
        del self.needs["heads"]

    def loss(self, net: Any, batch: Batch, rng: torch.Generator) -> Loss:
        rows = self.corrupt(batch, rng)
        asked = self.written(batch).any(1)
        gaps = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
        gaps[:, 0] = False
        gaps = (rows.gaps if self.close_prompt else gaps) & asked[:, None]
        _, h, number = self.look(net, rows, None, gaps)
        at, token, weight = self.targets(rows, gaps, number)
        rule = joint_rule(torch.arange(len(h)), at, token, weight, h.device)
        nats, losses = scored_rows(net.head, h, rule)
        metrics = {"ce": metric(losses.sum(), len(h))}
        return Loss(nats, len(h), metrics)

    def targets(self, rows: Rows, gaps: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the gaps (B, W) lack: row among the scored ones (D,), in order; id; weight."""
        at = number[rows.row, rows.col]
        missing = torch.bincount(at, minlength=int(gaps.sum()))
        empty = (missing == 0).nonzero()[:, 0]
        weight = [1 / (missing[at] + 1.0), torch.full(empty.shape, self.eos_weight)]
        at, order = torch.cat([at, empty]).sort(stable=True)
        token = torch.cat([rows.token, torch.full_like(empty, self.eos_id)])
        return at, token[order], torch.cat(weight)[order]
