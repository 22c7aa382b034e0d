"""Insertion models: tokens are dropped, and the model learns to insert them again.

    1. The sampler         InsertionSampler: inserts tokens into gaps, for all of them
    2. ILM, IT             Insertion, InsertionTransformer; InsertionAndDeletion
    3. Insertion diffusion IDLM: the same in continuous time
    4. FlexMDM             MASK tokens are inserted, then unmasked

A row is CLS, the prompt, and the target tokens that were kept. The gap to the right of a token has
the index of that token. Dropped tokens are a count c[g, v] for each gap g and token v: order within
a gap does not matter, since any of its tokens may be inserted first. EOS is not part of a row: a
readout at CLS predicts whether the text is complete (ILM), or how many tokens are missing (IDLM).

    ilm    n ~ U{0..L} of L tokens are dropped; one softmax over all pairs of gap and token, and a
           readout for when to stop (ILM, section 3)
    it     the same rows; a softmax for every gap, and EOS where nothing is missing (Insertion
           Transformer, uniform loss)

    ILM  Patel et al. 2025, Insertion Language Models, arXiv 2505.05755
    IT   Stern et al. 2019, Insertion Transformer, arXiv 1902.03249
"""

import math
from typing import Any, ClassVar, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import Config, UserError
from corpus import Batch
from diffusion import Exponential, Noise, noise_schedule, ranks
from model import (
    chunk_rows,
    chunked_cross_entropy,
    chunked_loss,
    chunks,
    features_at,
    loss_rows,
    pad_rows,
    to_device,
)
from objective import (
    Frame,
    Loss,
    Objective,
    SampleOptions,
    Sampler,
    categorical,
    low_discrepancy_uniform,
    metric,
    pad_to_multiple,
    sample_categorical,
)

# ==================================================================================================
# 1. The sampler of all insertion models
#
# A canvas is the prompt with holes of unknown length: each run of positions outside the prompt is a
# hole. Tokens are inserted into the gaps of holes only, so the prompt stays in its order. The text
# has room for `capacity` tokens, by default the width of the canvas. With `exact`, every hole gets
# as many tokens as it has positions.
#
#     threshold   a token per step; stops when the readout's probability is high enough (ILM)
#     ancestral   a token per step; stops with the probability of the readout
#     parallel    a token in every gap that is at least `threshold` times as likely as the best one
#     serial      a token per step in a gap that is not finished (Insertion Transformer)
#     steps       a token per row and step of time at most, at the rate of insertion (IDLM)
#
# The gap is drawn first, then its token: from one joint distribution, or, with `gap`, with other
# options for the gap. Complete rows leave the batch before the projection to the vocabulary.
#
# "Greedy insertion" has two readings, which differ where a gap holds many good tokens:
#
#     joint argmax   the likeliest pair of gap and token: temperature=0
#     gap first      the likeliest gap by its marginal, then its likeliest token: temperature=0 and
#                    gap=SampleOptions(temperature=0), on the command line --temperature=0
#                    --second_sampling_method=sample_top_k --second_top=1
# ==================================================================================================


GROWTH = 16  # canvases are widened by multiples of this, so that shapes repeat


class InsertionSampler(Sampler):
    """One run of a sampler. `objective` has cls_id, pad_id, eos_id (or -1), never (ids that are not
    sampled), and the methods that its samplers call.

    x (B, W) is CLS and the text so far, length (B,) its number of columns, written (B, W) bool its
    tokens that were not given; hole (B, W) the number of the hole that the gap after a token
    belongs to, or -1; room (B, H) how many tokens still fit
    into each hole, and left (B,) into each row.
    """

    reads = (*Sampler.reads, "capacity", "exact")
    reads_of: ClassVar = {  # sampler -> what it reads beside these
        "threshold": ("gap", "stop_threshold", "stop_temperature"),
        "ancestral": ("gap", "stop_temperature"),
        "parallel": ("threshold", "stop_threshold", "stop_temperature"),
        "serial": ("gap", "stop_threshold"),
        "steps": ("steps", "gap", "length_temperature", "first_step_factor"),
    }

    @classmethod
    def options_read(cls, objective: Any, o: SampleOptions) -> set[str]:
        return {*cls.reads, *cls.reads_of[o.sampler]}

    @classmethod
    def without_effect(cls, objective: Any, o: SampleOptions) -> set[str]:
        if o.exact:  # a text is complete when its holes are full
            return {"stop_threshold", "stop_temperature"}
        no_readout = getattr(objective, "stop", "") == "slots"
        return {"stop_temperature"} if no_readout else set()

    def __init__(
        self, objective: Any, net: Any, ids: Tensor, prompt_mask: Tensor, rng: Any, o: Any
    ):
        super().__init__(o, rng)
        self.objective, self.net = objective, net
        if not prompt_mask[:, 0].all():
            raise UserError("insertion needs a prompt, such as BOS")
        T = ids.shape[1]
        column = torch.arange(T, device=ids.device)
        # EOS and padding at the end of a canvas are not text
        frame = prompt_mask & ((ids == objective.pad_id) | (ids == objective.eos_id))
        text = ~frame.flip(1).long().cumprod(1).flip(1).bool()
        kept, hole = prompt_mask & text, ~prompt_mask & text
        number = (hole & ~F.pad(hole[:, :-1], (1, 0))).long().cumsum(1) - 1  # of the run
        behind = torch.where(F.pad(hole[:, 1:], (0, 1)), F.pad(number[:, 1:], (0, 1)), -1)
        order = (~kept).long().argsort(dim=1, stable=True)
        size, beyond = kept.sum(1), column >= kept.sum(1)[:, None]
        self.x = self.prepend(ids.gather(1, order).masked_fill(beyond, objective.pad_id))
        self.hole = self.prepend(behind.gather(1, order).masked_fill(beyond, -1), -1)
        self.fresh = torch.zeros_like(self.x, dtype=torch.bool)
        self.written = self.fresh.clone()
        self.length = size + 1
        self.width = max(T, o.capacity)
        ended = (~text & (ids == objective.eos_id)).any(1) & (objective.eos_id != objective.pad_id)
        self.end = torch.full_like(size, o.capacity) if o.capacity else text.sum(1) + ended
        self.room, self.left = self.spaces(size, number, hole)
        self.alive = self.left > 0
        self.longest = int((self.length + self.left).max())  # maximum number of columns

    def prepend(self, x: Tensor, first: int | None = None) -> Tensor:
        """CLS, or `first`, in front of x (B, T)."""
        return F.pad(x, (1, 0), value=self.objective.cls_id if first is None else first)

    def spaces(self, size: Tensor, number: Tensor, hole: Tensor) -> tuple[Tensor, Tensor]:
        """How many tokens fit into each hole (B, H), and into each row (B,); size (B,) tokens are
        kept."""
        holes = int(number.max().clamp(min=0)) + 1
        places = torch.zeros(len(size), holes, dtype=torch.int64, device=size.device)
        places.scatter_add_(1, number.clamp(min=0), hole.long())
        if self.o.exact:
            return places, places.sum(1)
        left = self.end - int(self.objective.eos_id >= 0) - size
        if (hole.any(1) & (left < 0)).any():
            raise UserError(
                f"{int(size.max())} prompt tokens do not fit into {self.width} positions"
            )
        return torch.full_like(places, self.width), torch.where(hole.any(1), left, 0)

    # -- frames --

    def frames(self) -> Iterator[Frame]:
        """The canvas at the start and after every step, with EOS and padding after the text."""
        yield self.frame()
        for _ in getattr(self, self.o.sampler)():
            yield self.frame()
            self.fresh.zero_()

    def frame(self) -> Frame:
        W, end = self.width + 1, self.objective.eos_id
        x = F.pad(self.x, (0, max(0, W - self.x.shape[1])), value=self.objective.pad_id)[:, :W]
        fresh = F.pad(self.fresh, (0, max(0, W - self.fresh.shape[1])))[:, :W]
        if end >= 0:
            is_end = torch.arange(W, device=x.device) == self.length[:, None]
            x = x.masked_fill(is_end, end)
        length = (self.length - 1 + (end >= 0)).clamp(max=self.width)
        if self.unplaced:  # draws are in the order of rows and columns; MASK is not drawn
            mask = -1 if self.objective.mask_id is None else self.objective.mask_id
            row, col = (fresh & (x != mask)).nonzero(as_tuple=True)
            self.place(row, col - 1)
        return Frame(x[:, 1:].clone(), length, fresh[:, 1:].clone(), self.take_draws())

    # -- the network --

    def forward(self, rows: Tensor, time: Tensor | None = None) -> Tensor:
        """Features (r, W, C) of the canvases of rows (r,)."""
        W = -(-int(self.length[rows].max()) // GROWTH) * GROWTH
        W = min(W, self.longest, self.x.shape[1])
        mask = torch.arange(W, device=rows.device) < self.length[rows, None]
        return self.net.features(self.x[rows, :W], time, mask[:, None])

    def gaps(self, rows: Tensor, W: int) -> Tensor:
        """(r, W) bool: gaps into which a token may be inserted."""
        hole = self.hole[rows, :W]
        return (hole >= 0) & (self.room[rows].gather(1, hole.clamp(min=0)) > 0)

    def logits(self, h: Tensor) -> Tensor:
        """Features (R, C) -> (R, V), ids that are never sampled at -inf."""
        z = self.net.logits(h)
        z = z if z.dtype == torch.float64 else z.float()
        z[:, self.objective.never] = -torch.inf
        return self.forbid(z)

    def incomplete(self, cls: Tensor) -> Tensor:
        """Features at CLS (r, C) -> (r,) bool: does the sampler insert another token?"""
        if self.o.exact:
            return torch.ones(len(cls), dtype=torch.bool, device=cls.device)
        z = self.net.heads[self.objective.stop](cls).double()
        p = (z / max(self.o.stop_temperature, 1e-9)).softmax(-1)[:, 0]  # of "complete"
        if self.o.sampler == "ancestral":
            return self.uniforms(len(p)) >= p
        threshold = self.o.stop_threshold
        if threshold is None:
            threshold = 0.9 if self.objective.stop == "stop" else 0.5
        return p < threshold

    def uniforms(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.rng, device=self.x.device, dtype=torch.float64)

    def chunks(self, rows: int) -> Iterator[slice]:
        """Slices of range(rows), whose logits fit in memory."""
        return chunks(rows, len(self.net.head.weight), self.x.device)

    # -- which gap, which token --

    def gap_logits(self, h: Tensor, gaps: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-sum-exp over tokens of the logits, divided by the temperature (0: the largest one),
        at the gaps (r, W) of features (r, W, C) -> (r, W) float64, -inf elsewhere."""
        h_gaps, out = h[gaps], torch.full(gaps.shape, -torch.inf, dtype=torch.float64)
        out, parts = out.to(h.device), [h.new_empty(0).double()]
        for part in self.chunks(len(h_gaps)):
            z = self.logits(h_gaps[part]).double()
            parts.append(z.amax(1) if temperature == 0 else (z / temperature).logsumexp(1))
        out[gaps] = torch.cat(parts)
        return out

    def choose(self, h: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """A gap (r,) and a token (r,) for each row: features (r, W, C), gaps (r, W) bool. At
        temperature 0 the likeliest pair, or with o.gap the gap first."""
        o, row = self.o, torch.arange(len(h), device=h.device)
        if o.gap is None and o.temperature > 0 and (o.top_k or o.top_p < 1):
            return self.choose_jointly(h, gaps)
        if o.gap is None:
            score = self.gap_logits(h, gaps, o.temperature)
            gap = sample_categorical(
                score, SampleOptions(temperature=float(o.temperature > 0)), self.rng
            )
        else:
            gap = sample_categorical(self.gap_logits(h, gaps), o.gap, self.rng)
        return gap, self.sample_categorical(self.logits(h[row, gap]))

    def choose_jointly(self, h: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
        """As `choose`, with top_k or top_p over pairs of gap and token. In chunks of rows, as all
        pairs of a row are sorted."""
        W, V = gaps.shape[1], len(self.net.head.weight)
        size = max(1, chunk_rows(V, h.device) // W)
        pairs = [gaps.new_empty(0, dtype=torch.long)]
        for k in range(0, len(h), size):
            z = self.logits(h[k : k + size].flatten(0, 1)).view(-1, W, V)
            z = z.masked_fill(~gaps[k : k + size, :, None], -torch.inf)
            pairs.append(sample_categorical(z.flatten(1), self.o, self.rng))
            gap = pairs[-1] // V  # frames show the probability of a token given its gap
            self.keep(z[torch.arange(len(z), device=z.device), gap], pairs[-1] % V)
        pair = torch.cat(pairs)
        return pair // V, pair % V

    # -- writing --

    def insert(self, rows: Tensor, more: Tensor, token: Tensor | int) -> None:
        """Insert `more` (r, W) int64 tokens into the gaps of rows (r,): token (R,) in order of row
        and column, or one id for all."""
        self.length[rows] += more.sum(1)
        self.left[rows] -= more.sum(1)
        self.alive &= self.left > 0
        W, need = self.x.shape[1], int(self.length[rows].max())
        if need > W:
            added = (0, -(-need // GROWTH) * GROWTH - W)
            self.x = F.pad(self.x, added, value=self.objective.pad_id)
            self.hole, self.fresh = F.pad(self.hole, added, value=-1), F.pad(self.fresh, added)
            self.written = F.pad(self.written, added)
            W += added[1]
        more = F.pad(more, (0, W - more.shape[1]))
        row, col = more.nonzero(as_tuple=True)
        times, hole = more[row, col], self.hole[rows[row], col]
        self.room.index_put_((rows[row], hole), -times, accumulate=True)
        place = (
            torch.arange(W, device=rows.device) + more.cumsum(1) - more
        )  # new column of each old
        start = (place[row, col] + 1 - (times.cumsum(0) - times)).repeat_interleave(times)
        new = start + torch.arange(len(start), device=rows.device)
        row, hole = row.repeat_interleave(times), hole.repeat_interleave(times)
        place = place.clamp(max=W)  # padding is cut off
        values = {"x": token, "hole": hole, "fresh": True, "written": True}
        for name, blank in self.blank().items():
            state = getattr(self, name)
            moved = state.new_full((len(rows), W + 1), blank)
            moved.scatter_(1, place, state[rows])
            moved[row, new] = values[name]
            state[rows] = moved[:, :W]

    def blank(self) -> dict[str, Any]:
        """What is kept of every column, and its value where there is no token."""
        return {"x": self.objective.pad_id, "hole": -1, "fresh": False, "written": False}

    def insert_one(self, rows: Tensor, gap: Tensor, token: Tensor) -> None:
        """Insert one token (r,) into one gap (r,) of each of the rows (r,)."""
        if len(rows):
            more = torch.zeros(len(rows), self.x.shape[1], dtype=torch.int64, device=rows.device)
            self.insert(rows, more.scatter_(1, gap[:, None], 1), token)

    def running(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows (r,) that are not complete, their features (r, W, C) and editable gaps (r, W), until
        all rows are complete."""
        while len(rows := self.alive.nonzero()[:, 0]):
            h = self.forward(rows)
            gaps = self.gaps(rows, h.shape[1])
            if self.objective.stop == "slots":
                gaps &= ~self.finished(h, gaps)
                on = gaps.any(1)
            else:
                on = self.incomplete(h[:, 0])
            self.alive[rows[~on]] = False
            if on.any():
                yield rows[on], h[on], gaps[on]

    def finished(self, h: Tensor, gaps: Tensor) -> Tensor:
        """(r, W) bool: gaps whose best token is EOS, or with stop_threshold, where EOS is more
        probable than that. With `exact` no gap is finished."""
        done, parts = torch.zeros_like(gaps), [gaps.new_empty(0)]
        if self.o.exact:
            return done
        never = [i for i in self.objective.never if i != self.objective.eos_id]
        for part in self.chunks(len(h_gaps := h[gaps])):
            z = self.net.logits(h_gaps[part]).float()
            z[:, never] = -torch.inf
            z = self.forbid(z)
            if self.o.stop_threshold is None:
                parts.append(z.argmax(1) == self.objective.eos_id)
            else:
                parts.append(z.softmax(1)[:, self.objective.eos_id] > self.o.stop_threshold)
        done[gaps] = torch.cat(parts)
        return done

    # -- samplers --

    def threshold(self) -> Iterator[None]:
        """One token for every row that is not complete (ILM, section 3.3)."""
        for rows, h, gaps in self.running():
            self.insert_one(rows, *self.choose(h, gaps))
            yield

    ancestral = threshold  # differs in `incomplete`
    serial = threshold  # differs in `finished`

    def parallel(self) -> Iterator[None]:
        """A token in each of several gaps, as far as there is room for them."""
        for rows, h, gaps in self.running():
            if self.objective.stop == "slots":  # every gap that is not finished lacks a token
                score = torch.zeros_like(gaps, dtype=torch.float64)
            else:
                score = self.gap_logits(h, gaps)
            self.insert_many(rows, h, gaps, score)
            yield

    def insert_many(self, rows: Tensor, h: Tensor, gaps: Tensor, score: Tensor) -> None:
        """Insert a token into those gaps (r, W) whose score (r, W), a log-probability up to a
        constant, is at least the best of the row plus log(threshold)."""
        best = score.amax(1, keepdim=True)
        into = gaps & (score >= best + torch.tensor(self.o.threshold).clamp(min=1e-30).log())
        row, col = into.nonzero(as_tuple=True)
        hole = self.hole[rows[row], col]
        fits = self.room[rows[row], hole] > ranks(row * self.room.shape[1] + hole, score[row, col])
        row, col = row[fits], col[fits]
        fits = self.left[rows[row]] > ranks(row, score[row, col])
        row, col = row[fits], col[fits]
        more = torch.zeros_like(into, dtype=torch.int64)
        more[row, col] = 1
        tokens = [row.new_empty(0)]
        for part in self.chunks(len(row)):
            tokens.append(self.sample_categorical(self.logits(h[row[part], col[part]])))
        self.insert(rows, more, torch.cat(tokens))

    def steps(self) -> Iterator[None]:
        """Time from 1 down to dt, with at most one token per row and step at the rate of
        `insertion_rate`, and a last step at dt (IDLM)."""
        dt = 1 / (self.o.steps + 1)
        begun = torch.zeros_like(self.alive)  # rows with an inserted token
        for k in [*range(self.o.steps + 1), self.o.steps]:
            rows = self.alive.nonzero()[:, 0]
            if not len(rows):
                return
            time = torch.full((len(rows),), 1 - k * dt, dtype=torch.float64, device=rows.device)
            h = self.forward(rows, self.objective.condition(self.net, time))
            p = dt * self.objective.insertion_rate(self.net, h[:, 0], time, ~begun[rows], self.o)
            fires = self.uniforms(len(rows)) < p
            rows, h = rows[fires], h[fires]
            begun[rows] = True
            self.insert_one(rows, *self.choose(h, self.gaps(rows, h.shape[1])))
            yield


# ==================================================================================================
# 2. ILM and the Insertion Transformer
# ==================================================================================================


class Rows(NamedTuple):
    """Rows after dropping, on the CPU: the kept tokens side by side, and the missing ones."""

    ids: Tensor  # (B, W) int64: CLS, kept tokens, padding
    length: Tensor  # (B,) int64, CLS included
    gaps: Tensor  # (B, W) bool: columns whose right-hand gap is editable
    L: Tensor  # (B,) int64: number of droppable tokens
    n: Tensor  # (B,) int64: number of dropped tokens
    row: Tensor  # (D,) int64: row of each dropped token, in order of row and column
    col: Tensor  # (D,) int64: column of the kept token to its left
    token: Tensor  # (D,) int64: its id
    has_target: Tensor | None = None  # (B,) bool: rows with target positions
    time: Tensor | None = None  # (B,) float64, IDLM only


def drop_tokens(ids: Tensor, droppable: Tensor, length: Tensor, drop: Tensor, pad_id: int) -> Rows:
    """Drop the positions `drop` (B, T) bool of ids (B, T), CLS in column 0, rows `length` (B,)
    long. The editable gaps are those beside droppable positions."""
    T = ids.shape[1]
    inside = torch.arange(T) < length[:, None]
    keep = inside & ~drop
    row, place = (drop & inside).nonzero(as_tuple=True)
    col = (keep.long().cumsum(1) - 1)[row, place]
    kept = keep.sum(1)
    W = pad_to_multiple(int(kept.max()), T)
    order = (~keep).long().argsort(dim=1, stable=True)[:, :W]  # (B, W): kept positions, in order
    behind = torch.arange(W) >= kept[:, None]
    gaps = (droppable | F.pad(droppable[:, 1:], (0, 1))).gather(1, order) & ~behind
    short = ids.gather(1, order).masked_fill(behind, pad_id)
    n, L = drop.sum(1), droppable.sum(1)
    return Rows(short, kept, gaps, L, n, row, col, ids[row, place])


def pick(droppable: Tensor, n: Tensor, rng: torch.Generator) -> Tensor:
    """(B, T) bool: a uniform choice of exactly n (B,) of the droppable positions (B, T)."""
    u = torch.rand(droppable.shape, generator=rng).masked_fill(~droppable, 2.0)
    return (u.argsort(1).argsort(1) < n[:, None]) & droppable


def multi_target_cross_entropy(
    logits: Tensor, group: Tensor, groups: int, row: Tensor, token: Tensor, weight: Tensor
) -> Tensor:
    """Cross entropy with several targets under one softmax for each group of rows, (G,) nats:

        sum over targets d of the group: weight_d (logsumexp of the group - logits[row_d, token_d])

    logits (R, V), which are overwritten; group (R,) numbers the groups 0, 1, ... in order; row,
    token, weight (D,).
    """
    at_target, top = logits[row, token], logits.detach().amax(1, keepdim=True)
    norm = logits.sub_(top).exp().sum(1).log() + top[:, 0]  # torch.logsumexp takes twice the time
    top = norm.new_full((groups,), -torch.inf)
    top = top.scatter_reduce(0, group, norm.detach(), "amax")
    total = torch.zeros_like(top).index_add(0, group, (norm - top[group]).exp())
    log_norm = top + total.log()  # logsumexp of each group
    owner = group[row]
    nll = weight * (log_norm[owner] - at_target)
    return torch.zeros_like(log_norm).index_add(0, owner, nll)


def whole_groups(group: Tensor, rows: int) -> list[slice]:
    """Slices of the rows of `group` (R,), each of whole groups and about `rows` long."""
    if not len(group):
        return []
    ends = torch.nonzero(F.pad(group[1:] != group[:-1], (0, 1), value=True))[:, 0] + 1
    parts, start, end = [], 0, 0
    for stop in ends.tolist():
        if end > start and stop - start > rows:
            parts.append(slice(start, end))
            start = end
        end = stop
    return [*parts, slice(start, end)] if end > start else parts


def grouped_loss(
    net: Any, h: Tensor, group: Tensor, row: Tensor, token: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """`multi_target_cross_entropy` of features h (R, C), in chunks of whole groups -> (sum (), of
    each group (G,) detached). group (R,), and row, token, weight (D,), in order of row, are on the
    CPU."""
    moved = [to_device(x, h.device) for x in (group, row, token, weight.float())]
    parts = whole_groups(group, loss_rows(net.head, h.device))
    groups = int(group[-1]) + 1 if len(group) else 0

    def all_at_once(logits: Tensor, part: slice) -> Tensor:  # nothing is searched: can be compiled
        return multi_target_cross_entropy(logits, moved[0], groups, *moved[1:])

    def loss_fn(logits: Tensor, part: slice) -> Tensor:
        targets = slice(*torch.searchsorted(row, torch.tensor([part.start, part.stop])).tolist())
        groups, rows, token, weight = moved[0][part], *(x[targets] for x in moved[1:])
        first, last = int(group[part.start]), int(group[part.stop - 1])
        return multi_target_cross_entropy(
            logits, groups - first, last - first + 1, rows - part.start, token, weight
        )

    return chunked_loss(net.head, h, all_at_once if len(parts) == 1 else loss_fn, parts)


class Insertion(Objective):
    """ILM: which token is missing in which gap, and whether any is.

    stop: `stop`, a readout of two classes, complete or not, whose cross entropy has stop_weight
    and, per class, class_weight and 1 - class_weight; `length`, a readout of the number of missing
    tokens. close_prompt leaves the gaps between prompt tokens out of the softmax in training, as
    samplers always do. Raises UserError for tokenizers without a pad id.
    """

    inserts = crops_padding = True
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
        self.network_kwargs = {
            "causal": False,
            "time": False,
            "vocab_size": max(vocab_size, self.cls_id + 1),
            "heads": {"stop": 2} if stop == "stop" else {"length": longest + 1},
        }

    config_fields = "stop stop_weight stop_class_weight close_prompt token_noise".split()

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        options = {
            "stop": cfg.stop,
            "stop_weight": cfg.stop_weight,
            "class_weight": cfg.stop_class_weight,
            "close_prompt": cfg.close_prompt,
            "longest": cfg.block_size,
        }
        if not cfg.token_noise:
            return cls(vocab_size, specials, **options)
        return InsertionAndDeletion(cfg.token_noise, vocab_size, specials, **options)

    # -- rows --

    def target_mask(self, batch: Batch) -> Tensor:
        return ~batch.prompt_mask & (torch.arange(batch.ids.shape[1]) < batch.length[:, None])

    def with_cls(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """A batch with CLS in front and without EOS -> ids (B, T + 1), droppable (B, T + 1), length
        (B,). Raises UserError for a row without prompt."""
        if not batch.prompt_mask[:, 0].all():
            raise UserError(
                "insertion needs rows that begin with a prompt, such as BOS; "
                "prepare_pretrain.py --packing=rows makes them"
            )
        ids = F.pad(batch.ids, (1, 0), value=self.cls_id)
        last = batch.length.clamp(min=1) - 1  # of a row of the batch
        ends = batch.ids.gather(1, last[:, None])[:, 0] == self.eos_id
        ends &= ~batch.prompt_mask.gather(1, last[:, None])[:, 0]
        length = batch.length + 1 - ends.long()
        droppable = F.pad(~batch.prompt_mask, (1, 0)) & (
            torch.arange(ids.shape[1]) < length[:, None]
        )
        return ids, droppable, length

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Rows:
        """n of a row's L tokens dropped, n uniform on 0..L."""
        ids, droppable, length = self.with_cls(batch)
        n = (torch.rand(len(ids), generator=rng) * (droppable.sum(1) + 1)).long()
        rows = drop_tokens(ids, droppable, length, pick(droppable, n, rng), self.pad_id)
        return rows._replace(has_target=self.target_mask(batch).any(1))

    # -- the network --

    def gap_features(
        self, net: Any, rows: Rows, time: Tensor | None, gaps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the rows -> at CLS (B, C), at the gaps (B, W) bool: (R, C), and the index of
        each gap in R (B, W) int64."""
        device = net.head.weight.device
        W = rows.ids.shape[1]
        ids, mask = rows.ids, torch.arange(W) < rows.length[:, None]
        seen = None if mask.all() else to_device(mask[:, None], device)
        h = net.features(to_device(ids, device), time, seen)
        row, col = gaps.nonzero(as_tuple=True)
        number = (gaps.flatten().long().cumsum(0) - 1).view(gaps.shape)
        index = to_device(row * W + col, device)
        return h[:, 0], h.flatten(0, 1).index_select(0, index), number

    def token_loss(
        self, net: Any, rows: Rows, weight: Tensor, time: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """weight (B,) times the mean over dropped tokens of -log p(gap, token) -> (sum (), per row
        (B,) detached, features at CLS (B, C)). 0 for rows with nothing dropped (ILM, eq. 5)."""
        device = net.head.weight.device
        gaps = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
        gaps[:, 0] = False
        gaps = rows.gaps if self.close_prompt else gaps
        gaps = gaps & (rows.n > 0)[:, None]
        cls, h, number = self.gap_features(net, rows, time, gaps)
        owner = gaps.nonzero()[:, 0]  # (R,) the row of each gap
        scored, group = torch.unique_consecutive(owner, return_inverse=True)
        gap, scale = number[rows.row, rows.col], (weight / rows.n.clamp(min=1))[rows.row]
        total, losses = grouped_loss(net, h, group, gap, rows.token, scale)
        by_row = losses.new_zeros(len(rows.ids))
        return total, by_row.index_add_(0, to_device(scored, device), losses), cls

    def complete(self, net: Any, cls: Tensor) -> Tensor:
        """Features at CLS (B, C) -> log p(nothing is missing), log p(something is), (B, 2)."""
        z = net.heads[self.stop](cls).log_softmax(-1)
        return z if z.shape[1] == 2 else torch.stack([z[:, 0], z[:, 1:].logsumexp(1)], 1)

    def stop_loss(self, net: Any, cls: Tensor, n: Tensor) -> Tensor:
        """(B,) weighted cross entropy of the readout; n (B,) tokens are missing."""
        n = to_device(n, cls.device)
        z = net.heads[self.stop](cls)
        if self.stop == "length":
            return self.stop_weight * F.cross_entropy(z, n, reduction="none")
        a, missing = self.class_weight, (n > 0).long()
        done, more = (1.0, 1.0) if a is None else (a, 1 - a)
        weight = self.stop_weight * torch.where(missing == 0, done, more)
        return weight * F.cross_entropy(z, missing, reduction="none")

    # -- loss and bound --

    def loss(self, net: Any, rows: Rows) -> Loss:
        """Of each row: cross entropy of the missing tokens under one softmax over gaps and tokens,
        and that of the readout; a mean over rows (ILM, eqs. 5 and 6)."""
        total, losses, cls = self.token_loss(net, rows, rows.has_target.double())
        stop = self.stop_loss(net, cls, rows.n) * to_device(rows.has_target, cls.device)
        count, dropped = int(rows.has_target.sum()), int((rows.n > 0).sum())
        metrics = {"ce": metric(losses.sum(), dropped), "stop": metric(stop.sum(), count)}
        return Loss(total + stop.sum(), count, metrics)

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: bound on -log p(target | prompt) of the `ancestral` sampler, by
        Jensen over all orders in which the L tokens can be inserted. With x_n the row without n of
        them,

            -log p(stop | x_0) + sum over n = 1..L of
                -log p(go on | x_n) - mean over missing d of log(p(d | x_n) / m_d) - log n

        m_d is how many missing tokens in the gap of d equal d: inserting any of them is the same
        event. The sum is estimated at `samples` values of n, one in each of as many strata. 0 for a
        row that is given whole: the sampler asks for nothing there.
        """
        ids, droppable, length = self.with_cls(batch)
        L = droppable.sum(1)
        full = drop_tokens(ids, droppable, length, torch.zeros_like(droppable), self.pad_id)
        cls = self.gap_features(net, full, None, full.gaps)[0]
        nats = -self.complete(net, cls)[:, 0].double().cpu()
        for i in range(samples):
            u = (i + torch.rand(len(ids), generator=rng, dtype=torch.float64)) / samples
            n = 1 + (u * L).long().clamp(max=(L - 1).clamp(min=0))
            drop = pick(droppable, n, rng)
            rows = drop_tokens(ids, droppable, length, drop, self.pad_id)
            mean, cls = self.mean_missing(net, rows, None)
            cost = mean - self.complete(net, cls)[:, 1].double().cpu() - n.double().log()
            nats += torch.where(L > 0, L * cost, 0.0) / samples
        return torch.where(self.target_mask(batch).any(1), nats, 0.0)

    def mean_missing(self, net: Any, rows: Rows, time: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean of -log(p(d) / m_d) under the distribution of the samplers over the missing tokens d
        of each row (B,) float64, and the features at CLS (B, C)."""
        cls, h, number = self.gap_features(net, rows, time, rows.gaps)
        owner = rows.gaps.nonzero()[:, 0]
        norm, at_target = _norms(net, h, number[rows.row, rows.col], rows.token, self.never)
        top = torch.full((len(rows.ids),), -torch.inf, dtype=torch.float64)
        top = top.scatter_reduce(0, owner, norm, "amax")
        total = torch.zeros_like(top).index_add_(0, owner, (norm - top[owner]).exp())
        log_p = at_target - (top + total.log())[rows.row]
        same = torch.stack([rows.row, rows.col, rows.token], 1)
        _, which, times = same.unique(dim=0, return_inverse=True, return_counts=True)
        log_p = log_p - times[which].double().log()
        total = torch.zeros(len(rows.ids), dtype=torch.float64).index_add_(0, rows.row, -log_p)
        return total / rows.n.clamp(min=1), cls

    # -- sampling --

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        return InsertionSampler


def _norms(
    net: Any, h: Tensor, at: Tensor, token: Tensor, never: list[int]
) -> tuple[Tensor, Tensor]:
    """Features h (R, C) -> log-sum-exp of the logits of each (R,), and the logits of `token` (D,)
    at the rows `at` (D,), in order; float64, on the CPU. Ids in `never` have no logit."""
    norms, at_target = [h.new_empty(0).double().cpu()], [h.new_empty(0).double().cpu()]
    for part in chunks(len(h), len(net.head.weight), h.device):
        z = net.logits(h[part]).double()
        z[:, never] = -torch.inf
        norms.append(z.logsumexp(1).cpu())
        inside = (at >= part.start) & (at < part.stop)
        index = (at[inside] - part.start).to(z.device), token[inside].to(z.device)
        at_target.append(z[index].cpu())
    return torch.cat(norms), torch.cat(at_target)


class InsertionTransformer(Insertion):
    """A softmax over the tokens for each gap, with EOS where nothing is missing: the mean over gaps
    of sum c_v -log p(v | gap) / (c + 1), where the gap lacks c tokens, and of
    eos_weight * -log p(EOS | gap) where c = 0 (Stern et al. 2019, uniform loss; ILM's code).
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
        del self.network_kwargs["heads"]

    config_fields = ("eos_weight", "close_prompt")

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        options = {"eos_weight": cfg.eos_weight, "close_prompt": cfg.close_prompt}
        return cls(vocab_size, specials, **options)

    def loss(self, net: Any, rows: Rows) -> Loss:
        gaps = torch.arange(rows.ids.shape[1]) < rows.length[:, None]
        gaps[:, 0] = False
        gaps = (rows.gaps if self.close_prompt else gaps) & rows.has_target[:, None]
        _, h, number = self.gap_features(net, rows, None, gaps)
        targets = self.targets(rows, gaps, number)
        total, losses = grouped_loss(net, h, torch.arange(len(h)), *targets)
        return Loss(total, len(h), {"ce": metric(losses.sum(), len(h))})

    def targets(self, rows: Rows, gaps: Tensor, number: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Targets of the gaps (B, W): index of the gap (D,) ascending, token id, weight."""
        at = number[rows.row, rows.col]
        missing = torch.bincount(at, minlength=int(gaps.sum()))
        empty = (missing == 0).nonzero()[:, 0]
        weight = [1 / (missing[at] + 1.0), torch.full(empty.shape, self.eos_weight)]
        at, order = torch.cat([at, empty]).sort(stable=True)
        token = torch.cat([rows.token, torch.full_like(empty, self.eos_id)])
        return at, token[order], torch.cat(weight)[order]


# ---- with deletions ------------------------------------------------------------------------------
#
# The rows hold wrong tokens as well, which the model learns to delete: one more id, DELETE, in the
# softmax over gaps and tokens. (gap of a token, DELETE) is the deletion of that token. A text is
# complete when nothing is missing and nothing is wrong. What is learnt is the uniform choice among
# all edits that are left, as ILM's is among all insertions.


def add_wrong(rows: Rows, into: Tensor, token: Tensor, delete_id: int, T: int, pad: int) -> Rows:
    """Rows with a wrong token, token (B, W), in each of the gaps `into` (B, W) bool, behind all
    that is missing there, and with its deletion among the targets. T: columns of the longest
    row."""
    more = into.long()
    length = rows.length + more.sum(1)
    W = pad_to_multiple(int(length.max()), T)
    place = torch.arange(into.shape[1]) + more.cumsum(1) - more  # new column of each old token
    owner, gap = into.nonzero(as_tuple=True)
    wrong = place[owner, gap] + 1

    def moved(old: Tensor, blank: Any, new: Any) -> Tensor:
        out = torch.full((len(old), W + into.shape[1]), blank, dtype=old.dtype)
        out.scatter_(1, place, old)[owner, wrong] = new
        return out[:, :W]

    row, col = torch.cat([rows.row, owner]), torch.cat([place[rows.row, rows.col], wrong])
    target = torch.cat([rows.token, torch.full_like(wrong, delete_id)])
    order = (row * W + col).argsort(stable=True)
    return rows._replace(
        ids=moved(rows.ids, pad, token[into]),
        gaps=moved(rows.gaps, False, True),
        length=length,
        n=rows.n + more.sum(1),
        row=row[order],
        col=col[order],
        token=target[order],
    )


class InsertionAndDeletion(Insertion):
    """ILM whose rows hold wrong tokens: in a share `token_noise` of the editable gaps stands one,
    drawn from the targets of the batch. `n` of a row counts all edits that are left. `bound` is
    that of the sampler that deletes nothing, on rows without wrong tokens."""

    samplers = ("threshold", "ancestral")

    def __init__(
        self, token_noise: float, vocab_size: int, specials: dict[str, int], **options: Any
    ):
        super().__init__(vocab_size, specials, **options)
        self.token_noise = token_noise
        self.delete_id = self.network_kwargs["vocab_size"]
        self.network_kwargs["vocab_size"] += 1
        self.never = [*self.never, self.delete_id]
        if self.stop == "length":
            raise UserError("token_noise: needs stop=stop, not a readout of the number of tokens")

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Rows:
        rows, targets = super().corrupt(batch, rng), batch.ids[self.target_mask(batch)]
        targets = targets[~torch.isin(targets, torch.tensor(self.never))]
        if not len(targets):
            return rows
        into = rows.gaps & (torch.rand(rows.gaps.shape, generator=rng) < self.token_noise)
        token = targets[torch.randint(len(targets), into.shape, generator=rng)]
        longest = batch.ids.shape[1] + 1  # what the network has positions for
        into &= into.cumsum(1) <= (longest - rows.length)[:, None]
        return add_wrong(rows, into, token, self.delete_id, longest, self.pad_id)

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        return DeletingSampler


class DeletingSampler(InsertionSampler):
    """In every step an insertion or, as long as a text has had fewer than `delete` of them, the
    deletion of a token that the sampler or the draft has written: drawn from one softmax over all
    of these. top_k and top_p act on the token, once its gap is drawn. A draft is the text to begin
    with."""

    reads_of: ClassVar = {
        "threshold": ("delete", "draft", "stop_threshold", "stop_temperature"),
        "ancestral": ("delete", "draft", "stop_temperature"),
    }

    def __init__(
        self, objective: Any, net: Any, ids: Tensor, prompt_mask: Tensor, rng: Any, o: Any
    ):
        super().__init__(objective, net, ids, prompt_mask, rng, o)
        self.deleted = torch.zeros_like(self.length)
        if o.draft:
            text, first = ~prompt_mask, ~prompt_mask & ~F.pad(~prompt_mask[:, :-1], (1, 0))
            number = (first.long().cumsum(1) - 1).clamp(min=0)  # of the hole that a place is in
            size = torch.zeros_like(self.room).scatter_add_(1, number, text.long())
            more = torch.where(self.hole >= 0, size.gather(1, self.hole.clamp(min=0)), 0)
            self.insert(torch.arange(len(ids), device=ids.device), more, ids[text])
            self.fresh.zero_()

    def threshold(self) -> Iterator[None]:
        for rows, h, gaps in self.running():
            score = self.gap_logits(h, gaps, self.o.temperature)
            may = self.written[rows, : h.shape[1]] & (self.deleted[rows] < self.o.delete)[:, None]
            both = torch.cat([score, self.delete_logits(h, may)], 1)  # (r, 2 W)
            plain = SampleOptions(temperature=float(self.o.temperature > 0))
            at, W = sample_categorical(both, plain, self.rng), h.shape[1]
            here, there = at < W, at >= W
            token = self.sample_categorical(self.logits(h[here, at[here]]))
            self.insert_one(rows[here], at[here], token)
            self.delete(rows[there], at[there] - W)
            yield

    ancestral = threshold

    def delete(self, rows: Tensor, col: Tensor) -> None:
        """Delete the token in column col (r,) of each of the rows (r,)."""
        if not len(rows):
            return
        W, hole = self.x.shape[1], self.hole[rows, col]
        keep = torch.arange(W, device=rows.device) != col[:, None]
        for name, blank in self.blank().items():
            state = getattr(self, name)
            state[rows] = F.pad(state[rows][keep].view(-1, W - 1), (0, 1), value=blank)
        self.length[rows] -= 1
        self.left[rows] += 1
        self.room[rows, hole] += 1
        self.deleted[rows] += 1

    def delete_logits(self, h: Tensor, may: Tensor) -> Tensor:
        """The logit of DELETE, divided by the temperature, at the places `may` (r, W) of features
        (r, W, C) -> (r, W) float64, -inf elsewhere."""
        out = torch.full(may.shape, -torch.inf, dtype=torch.float64, device=h.device)
        parts = [h.new_empty(0).double()]
        for part in self.chunks(len(h_may := h[may])):
            parts.append(self.net.logits(h_may[part])[:, self.objective.delete_id].double())
        out[may] = torch.cat(parts) / (self.o.temperature or 1.0)
        return out


# ==================================================================================================
# 3. Insertion diffusion: tokens are dropped in continuous time, and inserted in its reverse
#
# At rate sigma(t) one of the remaining tokens is dropped, chosen uniformly, so that at time t
# n = min(N, L) of L are missing, N ~ Poisson(total noise). In reverse, with n missing, tokens are
# inserted at rate n sigma / total; where all L are missing, at that rate divided by S(L, total),
# since N may have been larger. The network predicts the mean of n from the kept tokens (a readout
# at CLS), and which token is missing in which gap, as ILM does (chapter 2).
#
#     IDLM  Insertion Diffusion Language Models, arXiv 2606.10199. Its log-linear noise is
#           `exponential` here, its Poisson(sigma, c) is `linear` from c to c + sigma
# ==================================================================================================


TIME_SCALE = 10.0  # factor of t as time input; at 1000 it drowns the tokens (measured)
MAX_WEIGHT = 100.0  # of rate / total in the loss, as published


def log_factor(n: Tensor, total: Tensor) -> Tensor:
    """log S(n, x), S = P(N >= n) / P(N = n) = sum over k of n! x^k / (n + k)!, N ~ Poisson(x), for
    real n >= 0 and x > 0, float64.

    By the incomplete gamma function, as a sum would need hundreds of terms. Where it underflows, n
    is so far above x that 40 terms of the series are enough.
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
    """log of the first 21 terms of S, as in the authors' code."""
    n, x = torch.broadcast_tensors(n.double(), total.double())
    term, series = torch.ones_like(x), torch.ones_like(x)
    for k in range(1, 21):
        term = term * x / (n + k)
        series = series + term
    return series.log()


class IDLM(Insertion):
    """Insertion diffusion. `noise` is linear, geometric or exponential; the flags are those of the
    authors' configs. upstream_rules reproduces three deviations of their code from the model: a
    rate that is not the derivative of the total noise (exponential), S of 21 terms, and S applied
    to every row that keeps no more tokens, CLS and prompt included, than it lacks.
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
        self.network_kwargs["time"] = True
        self.noise, self.longest = noise, longest
        self.ce_weight, self.length_loss_weight = ce_weight, length_loss_weight
        self.length_loss, self.by_n = length_loss, use_n_drops_for_ce
        self.weigh_ce = use_diffusion_weight_for_ce
        self.weigh_length = use_diffusion_weight_for_length_loss
        self.factor, self.send_t = use_incomplete_gamma_factor, send_t_to_model
        self.upstream = upstream_rules
        self.bounded, self.epsilon = not upstream_rules, noise.t_min

    OPTIONS = (
        "ce_weight length_loss_weight length_loss use_diffusion_weight_for_ce "
        "use_diffusion_weight_for_length_loss use_n_drops_for_ce use_incomplete_gamma_factor "
        "send_t_to_model upstream_rules close_prompt"
    ).split()
    config_fields = (*OPTIONS, "noise", "sigma_min", "sigma_max")

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        if cfg.noise not in ("linear", "geometric", "exponential"):
            raise UserError("objective=idlm needs noise=linear, geometric or exponential")
        options = {key: getattr(cfg, key) for key in cls.OPTIONS}
        return cls(vocab_size, specials, noise_schedule(cfg), longest=cfg.block_size, **options)

    # -- the process --

    def slope(self, time: Tensor) -> Tensor:
        """rate / total at t (...), float64."""
        rate, total = self.noise.rate(time), self.noise.total(time)
        if self.upstream and isinstance(self.noise, Exponential):
            rate = rate * torch.tensor(self.noise.sigma_max / self.noise.sigma_min).log()
        return rate / (total + 1e-6)

    def condition(self, net: Any, time: Tensor) -> Tensor | None:
        """Time input (B,) of the network at t (B,), or None for a network without time."""
        if net.time is None:
            return None
        level = TIME_SCALE * time if self.send_t else self.noise.total(time)
        return to_device(level.float(), net.head.weight.device)

    def times(self, B: int, rng: torch.Generator) -> Tensor:
        """(B,) float64 times in [1e-3, 1), one in each of B strata."""
        t_min = self.noise.t_min
        return t_min + (1 - t_min) * low_discrepancy_uniform(B, rng).double()

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Rows:
        """One time per row; `at_time`."""
        return self.at_time(batch, self.times(len(batch.ids), rng), rng)

    def at_time(self, batch: Batch, time: Tensor, rng: torch.Generator) -> Rows:
        """The batch with n = min(Poisson(total), L) tokens of each row dropped; time (B,)."""
        ids, droppable, length = self.with_cls(batch)
        drawn = torch.poisson(self.noise.total(time), generator=rng).long()
        n = torch.minimum(drawn, droppable.sum(1))
        rows = drop_tokens(ids, droppable, length, pick(droppable, n, rng), self.pad_id)
        return rows._replace(has_target=self.target_mask(batch).any(1), time=time)

    def mean_missing_count(self, net: Any, cls: Tensor, temperature: float = 1.0) -> Tensor:
        """Features at CLS (B, C) -> the expected number of missing tokens (B,) float32."""
        z = net.heads["length"](cls) / max(temperature, 1e-9)
        return z.softmax(-1) @ torch.arange(z.shape[1], device=z.device, dtype=z.dtype)

    # -- loss --

    def loss(self, net: Any, rows: Rows) -> Loss:
        """Of each row, weighted as the flags say: cross entropy of the missing tokens, and of their
        number the deviance of a Poisson rate or the cross entropy; a mean over rows."""
        time, has_target = rows.time, rows.has_target
        one = torch.ones_like(time)
        weight = self.slope(time).clamp(max=MAX_WEIGHT)
        if self.factor:
            weight = weight / self.whole_factor(rows, time)
        ce = self.ce_weight * torch.where(has_target, weight if self.weigh_ce else one, 0.0)
        ce = ce * rows.n if self.by_n else ce
        total, losses, cls = self.token_loss(net, rows, ce, self.condition(net, time))
        length_weight = self.length_loss_weight * (weight if self.weigh_length else one)
        length_weight = torch.where(has_target, length_weight, 0.0).float()
        length_loss = to_device(length_weight, cls.device) * self.count_loss(net, cls, rows.n)
        count, length_loss = int(has_target.sum()), length_loss.sum()
        metrics = {"ce": metric(losses.sum(), count), "length": metric(length_loss, count)}
        return Loss(total + length_loss, count, metrics)

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
        """(B,) float64 nats: bound on -log p(target | prompt) of the reverse process from t = 1,
        with no target token, to t = t_min = 1e-3.

        It is the relative entropy of two jump processes: that of the model, and the forward process
        from t_min on, conditioned on having dropped all tokens by t = 1. With rates r_d at which
        missing token d is inserted in that, and rho p(d) / m_d in the model (m_d as in ILM's
        bound), it is the integral over t of rho - sum r_d + sum r_d log(r_d m_d / (rho p(d))). The
        variable of integration is s, the total noise since t_min, at squares of even steps, as few
        tokens are missing where r_d = 1 / s is large. 0 for a row that is given whole.
        """
        ids, droppable, length = self.with_cls(batch)
        L, ends = droppable.sum(1), torch.tensor([self.noise.t_min, 1.0], dtype=torch.float64)
        begun, whole = self.noise.total(ends)
        nats = torch.zeros(len(ids), dtype=torch.float64)
        for i in range(samples):
            u = (i + torch.rand(len(ids), generator=rng, dtype=torch.float64)) / samples
            s = (whole - begun) * u.clamp(min=1e-9) ** 2
            step = 2 * (whole - begun) * u / samples  # ds, for each of the samples
            time = self.noise.time_of(begun + s)
            n = self.missing_before_the_end(L, s, whole - begun, rng)
            rows = drop_tokens(ids, droppable, length, pick(droppable, n, rng), self.pad_id)
            cost, cls = self.mean_missing(net, rows, self.condition(net, time))
            rho = self.insertion_rate(net, cls, time, rows.n == L).double().cpu()
            rho = rho / self.noise.rate(time)  # for each unit of s
            # in logarithms: for a short row under much noise S is beyond the largest float
            log_rate = -s.log() - torch.where(rows.n == L, log_factor(L, s), 0.0)
            excess = log_rate - rho.clamp(min=1e-300).log() + cost - 1
            jumps = torch.where(rows.n > 0, rows.n * log_rate.exp() * excess, 0.0)
            nats += step * (rho + jumps)
        return torch.where(self.target_mask(batch).any(1), nats, 0.0)

    def missing_before_the_end(
        self, L: Tensor, total: Tensor, end: Tensor, rng: torch.Generator
    ) -> Tensor:
        """n (B,) at total noise `total` (B,), given that all L (B,) are missing at total noise
        `end` (): N there is Poisson conditioned on N >= L, and each of the N events has happened by
        now with probability total / end."""
        u = torch.rand(len(L), generator=rng, dtype=torch.float64)
        # N = L + k with probability x^k L! / (L + k)! / S(L, x): drawn by inversion
        k_max = int(end + 12 * end.sqrt() + 40)
        k = torch.arange(1, k_max, dtype=torch.float64)
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
        """Tokens per unit of time at t (r,), from features at CLS (r, C); `first` (r,) bool: rows
        without any inserted token."""
        o = options or SampleOptions()
        mean = self.mean_missing_count(net, cls, o.length_temperature).double()
        time = time.to(mean.device)
        rate = self.slope(time) * mean
        if not o.first_step_factor:
            return rate
        factor = truncated_factor if self.upstream else log_factor
        log_s = factor(mean, self.noise.total(time))
        return torch.where(first.to(mean.device), rate * (-log_s).exp(), rate)


# ==================================================================================================
# 4. FlexMDM: MASK tokens are inserted, then unmasked
#
# Time runs from 0, the prompt, to 1, the text. Every target token has an insertion time, at which
# it is inserted as MASK, uniform on [0, 1], and an unmasking time, uniform between that and 1; the
# prompt and the EOS after the text are always there. So at time t a missing token is inserted at
# rate 1 / (1 - t), and a MASK is unmasked at the same rate. The network sees the row in both
# directions, with t, and predicts the token of every MASK and, for every token, how many are
# missing between it and the one to its left; that gap has the index of the token.
#
#     expectation    their mean, as length * softplus(readout); the loss is the deviance of a rate
#     distribution   classes 0, 1, ... of a readout, and their cross entropy
#
# The samplers take steps in time. In a step of length d, a missing token should be inserted, and a
# MASK be unmasked, with probability c = d / (1 - t). A row without room for all of its new MASK
# tokens gets none of them.
#
#     ancestral     a gap that lacks y gets c y of them, rounded up or down at random so that the
#                   mean is right; each MASK is unmasked with probability c
#     confidence    the same, but the MASK tokens with the most probable best token are unmasked
#     tau           Poisson numbers, as published: of mean c y for a gap, and of mean c for a MASK,
#                   which is unmasked if there is exactly one. Less exact with few steps
#
#     FlexMDM  Kim et al. 2025, Any-Order Flexible Length Masked Diffusion, arXiv 2509.01025
# ==================================================================================================


LATEST = 1 - 1e-6  # largest t in training, as published: the weight is 1 / (1 - t)
END = 1 - 1e-5  # t of the last step but one, as published; the last step unmasks all MASK
MIN_MISSING = 1e-6  # smallest predicted number of missing tokens, as published (it has a logarithm)


class FlexRows(NamedTuple):
    """Whole rows on the CPU, each ended by EOS."""

    ids: Tensor  # (B, T) int64
    length: Tensor  # (B,) int64, EOS included
    free: Tensor  # (B, T) bool: target positions without EOS
    editable: Tensor  # (B, T) bool: tokens whose left-hand gap is editable


class Noised(NamedTuple):
    """Rows at time t, on the CPU, the inserted tokens side by side."""

    ids: Tensor  # (B, W) int64: tokens, MASK, padding
    length: Tensor  # (B,) int64
    source: Tensor  # (B, W) int64: the position of a column in the whole row; 0 for padding
    target: Tensor  # (B, W) int64: the token there
    masked: Tensor  # (B, W) bool
    editable: Tensor  # (B, W) bool: columns whose left-hand gap is editable
    gap: Tensor  # (B, W) int64: number of tokens missing in that gap
    time: Tensor  # (B,) float64
    target_rows: int = 0  # number of rows with target positions


def noised(
    rows: FlexRows, insert: Tensor, unmask: Tensor, time: Tensor, mask_id: int, pad_id: int
) -> Noised:
    """Rows at time (B,); free tokens are inserted at times `insert` and unmasked at `unmask`
    (B, T)."""
    T, t = rows.ids.shape[1], time[:, None]
    keep = (torch.arange(T) < rows.length[:, None]) & ~(rows.free & (t < insert))
    hidden = rows.free & keep & (t < unmask)
    length = keep.sum(1)
    W = pad_to_multiple(int(length.max()), T)
    order = (~keep).long().argsort(dim=1, stable=True)[:, :W]  # (B, W): kept positions, in order
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
        rows.editable.gather(1, order) & ~behind,
        gap.masked_fill(behind, 0),
        time,
    )


def deviance(rate: Tensor, count: Tensor) -> Tensor:
    """y - x + x ln(x / y) for rates y (...) > 0 and counts x (...): 0 where they are equal."""
    return rate - count + torch.xlogy(count, count) - count * rate.log()


class FlexMDM(Objective):
    """FlexMDM with linear schedules. The longest row has `longest` tokens; gap_loss is expectation
    or distribution. Raises UserError for tokenizers without different eos and pad ids."""

    inserts = crops_padding = True
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
        self.cls_id = self.pad_id  # the sampler's column 0, which the network does not see
        names = ("cls", "bos", "eos", "pad")
        self.never = [i for k, i in specials.items() if k in names] + [self.mask_id]
        self.longest, self.gap_loss = longest, gap_loss
        self.network_kwargs = {
            "causal": False,
            "time": True,
            "vocab_size": max(vocab_size, self.mask_id + 1),
            "heads": {"gaps": 1 if gap_loss == "expectation" else longest},
        }

    config_fields = ("gap_loss",)

    @classmethod
    def from_config(cls, cfg: Config, vocab_size: int, specials: dict[str, int]) -> Objective:
        return cls(vocab_size, specials, longest=cfg.block_size, gap_loss=cfg.gap_loss)

    # -- rows --

    def target_mask(self, batch: Batch) -> Tensor:
        return ~batch.prompt_mask & (torch.arange(batch.ids.shape[1]) < batch.length[:, None])

    def with_eos(self, batch: Batch) -> FlexRows:
        """The rows of a batch, with EOS appended where it is missing. Raises UserError for a row
        without prompt, which samplers need to start from."""
        if not batch.prompt_mask[:, 0].all():
            raise UserError(
                "insertion needs rows that begin with a prompt, such as BOS; "
                "prepare_pretrain.py --packing=rows makes them"
            )
        last = batch.length.clamp(min=1)[:, None] - 1
        ends = batch.ids.gather(1, last)[:, 0] == self.eos_id
        length = batch.length + (~ends).long()
        ids = F.pad(batch.ids, (0, 1), value=self.pad_id)
        ids = ids.scatter(1, length[:, None] - 1, self.eos_id)
        column, end = torch.arange(ids.shape[1]), length[:, None] - 1
        target_mask = F.pad(self.target_mask(batch), (0, 1))
        editable = (target_mask | F.pad(target_mask, (1, 0))[:, :-1]) & (column <= end)
        return FlexRows(ids, length, target_mask & (column < end), editable)

    def times(self, rows: FlexRows, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Insertion times and unmasking times, (B, T) float64 in [0, 1)."""
        u, v = torch.rand((2, *rows.ids.shape), generator=rng, dtype=torch.float64)
        return u, u + v * (1 - u)

    # -- the network --

    def condition(self, net: Any, time: Tensor) -> Tensor | None:
        """Time input (B,) of the network at t (B,), or None for a network without time."""
        if net.time is None:
            return None
        return to_device((TIME_SCALE * time).float(), net.head.weight.device)

    def scored_features(self, net: Any, x: Noised, time: Tensor) -> tuple[Tensor, Tensor]:
        """Features at the masked positions (M, C) and at the editable gaps (G, C)."""
        inside = torch.arange(x.ids.shape[1]) < x.length[:, None]
        mask = None if inside.all() else inside[:, None]
        level = self.condition(net, time)
        h, row, col = features_at(net, x.ids, x.masked | x.editable, level, mask)
        masked, gaps = (chosen[row, col].nonzero()[:, 0] for chosen in (x.masked, x.editable))
        return h[to_device(masked, h.device)], h[to_device(gaps, h.device)]

    def mean_gap(self, net: Any, h: Tensor) -> Tensor:
        """Features (..., C) -> mean number of missing tokens of the gaps (...), at least
        MIN_MISSING."""
        z = net.heads["gaps"](h)
        if self.gap_loss == "expectation":
            return (self.longest * F.softplus(z[..., 0])).clamp(min=MIN_MISSING)
        count = torch.arange(z.shape[-1], device=z.device, dtype=z.dtype)
        return (z.softmax(-1) @ count).clamp(min=MIN_MISSING)

    def gap_losses(self, net: Any, h: Tensor, count: Tensor) -> Tensor:
        """(G,) loss of `count` (G,), the numbers of missing tokens; h (G, C) the gaps' features."""
        count, G = to_device(count, h.device), len(h)
        h = pad_rows(h)
        if self.gap_loss == "distribution":
            return F.cross_entropy(net.heads["gaps"](h)[:G], count, reduction="none")
        return deviance(self.mean_gap(net, h)[:G], count.float())

    # -- loss --

    def corrupt(self, batch: Batch, rng: torch.Generator) -> Noised:
        """One time per row, low-discrepancy."""
        rows = self.with_eos(batch)
        time = LATEST * low_discrepancy_uniform(len(rows.ids), rng).double()
        x = noised(rows, *self.times(rows, rng), time, self.mask_id, self.pad_id)
        return x._replace(target_rows=int(self.target_mask(batch).any(1).sum()))

    def loss(self, net: Any, x: Noised) -> Loss:
        """Sum over rows of the cross entropy of the masked tokens and the loss of the gaps, times
        1 / (1 - t). Divided by `count`, the number of rows times `longest`, it is the published
        mean."""
        masked, gaps = self.scored_features(net, x, x.time)
        device, weight = masked.device, (1 / (1 - x.time)).float()
        scale = to_device(weight[x.masked.nonzero()[:, 0]], device)
        target = to_device(x.target[x.masked], device)
        total, losses = chunked_cross_entropy(net.head, masked, target, scale, self.mask_id)
        gap_losses = self.gap_losses(net, gaps, x.gap[x.editable])
        weight = to_device(weight[x.editable.nonzero()[:, 0]], device)
        unweighted = {"ce": losses / scale, "gaps": gap_losses}
        metrics = {k: metric(p.sum(), len(p)) for k, p in unweighted.items()}
        return Loss(total + (weight * gap_losses).sum(), x.target_rows * self.longest, metrics)

    # -- bound --

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: bound on -log p(target | prompt) of the sampler with infinitely many
        steps and unlimited room, which ends at END.

        A text and the times of its L tokens determine the path of the sampler, gap by gap, and are
        determined by it: there is no multiplicity, and the relative entropy of the paths is a
        bound. The model's have rates y_g / (1 - t) and p(v) / (1 - t); the others must be complete
        by END, so their times are those of training times END and their rates r = 1 / (END - t).
        With x missing and m masked tokens and D = log r (1 - t) it is the integral over t of

            (sum of y_g + m) / (1 - t) - r (x + m)
                + r [sum over missing of (D - log y_g) + sum over masked of (D - log p)]

        t = END (1 - u^2) with uniform u: with a uniform t the variance would be infinite. For a
        perfect network, whose rates are those of training, it exceeds -log p by at most 9.3e-4 L.
        """
        rows = self.with_eos(batch)
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
        masked, gaps = self.scored_features(net, x, END - left)
        r, rate = 1 / left, 1 / (left + 1 - END)  # of the conditioned process, of the model
        nll, y = -self.log_p(net, masked, x.target[x.masked]), self.mean_gap(net, gaps)
        missing, y = x.gap[x.editable].double(), y.double().cpu()
        mask_row, gap_row = x.masked.nonzero()[:, 0], x.editable.nonzero()[:, 0]
        events, expected = x.masked.sum(1) + x.gap.sum(1), x.masked.sum(1).double()
        cost = events * (r / rate).log()
        cost = cost.index_add(0, mask_row, nll).index_add(0, gap_row, -missing * y.log())
        expected = expected.index_add(0, gap_row, y)
        return rate * expected - r * events + r * cost

    def log_p(self, net: Any, h: Tensor, token: Tensor) -> Tensor:
        """log p of token (M,) at features (M, C) under the distribution of the samplers, (M,)
        float64."""
        log_p = [torch.zeros(0, dtype=torch.float64)]
        for part in chunks(len(h), len(net.head.weight), h.device):
            z = net.logits(h[part]).double()
            z[:, self.never] = -torch.inf
            target = token[part, None].to(z.device)
            log_p.append(z.log_softmax(1).gather(1, target)[:, 0].cpu())
        return torch.cat(log_p)

    # -- sampling --

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        """options.steps + 1 steps in time up to END, and a last one that unmasks all MASK."""
        return FlexSampler


class FlexSampler(InsertionSampler):
    """One run of a sampler. The gap behind column c of x, CLS in column 0, is the one to the left
    of column c of what the network sees: x without CLS, and with EOS."""

    reads_of: ClassVar = dict.fromkeys(("ancestral", "confidence", "tau"), ("steps",))

    def __init__(
        self, objective: Any, net: Any, ids: Tensor, prompt_mask: Tensor, rng: Any, o: Any
    ):
        if (prompt_mask & (ids == objective.mask_id)).any():
            raise UserError("MASK cannot be part of the prompt")
        super().__init__(objective, net, ids, prompt_mask, rng, o)

    def ancestral(self) -> Iterator[None]:
        """Steps of equal length from time 0 to END; then all MASK are unmasked."""
        steps = self.o.steps + 1
        for k in range(steps):
            time = END * k / steps
            rows = ((self.left > 0) | (self.x == self.objective.mask_id).any(1)).nonzero()[:, 0]
            if not len(rows):
                return
            self.leap(rows, time, END / steps / (1 - time), k == steps - 1)
            yield
        rows = (self.x == self.objective.mask_id).any(1).nonzero()[:, 0]
        if len(rows):
            h, masked = self.forward_masked(rows, END)
            self.unmask(rows, h, masked)
            yield

    confidence = tau = ancestral  # differ in `unmask_step` and `num_insertions`

    def leap(self, rows: Tensor, time: float, chance: float, last: bool) -> None:
        """Insert and unmask in rows (r,), each event with probability `chance`: the length of the
        step / (1 - time)."""
        h, masked = self.forward_masked(rows, time)
        more = self.num_insertions(rows, h, chance, last)
        self.unmask(rows, h, self.unmask_step(h, masked, chance))
        self.insert(rows, more, self.objective.mask_id)

    # -- the network --

    def forward_masked(self, rows: Tensor, time: float) -> tuple[Tensor, Tensor]:
        """Features (r, W, C) of rows (r,), and which of their columns are MASK (r, W)."""
        length, p = self.length[rows], self.objective
        W = -(-int(length.max()) // GROWTH) * GROWTH
        W = min(W, self.longest, self.x.shape[1])
        text = F.pad(self.x[rows], (0, 1), value=p.pad_id)[:, 1 : W + 1]
        ids = text.scatter(1, length[:, None] - 1, p.eos_id)
        t = torch.full((len(rows),), time, dtype=torch.float64, device=rows.device)
        inside = torch.arange(W, device=rows.device) < length[:, None]
        h = self.net.features(ids, p.condition(self.net, t), inside[:, None])
        return h, ids == p.mask_id

    # -- unmasking --

    def unmask_step(self, h: Tensor, masked: Tensor, chance: float) -> Tensor:
        """(r, W) bool: which of the masked columns (r, W) are unmasked in this step."""
        p = chance * math.exp(-chance) if self.o.sampler == "tau" else chance
        fires = masked & (self.uniforms(*masked.shape) < p)
        if self.o.sampler != "confidence":
            return fires
        row, col = masked.nonzero(as_tuple=True)
        confidence = [h.new_empty(0)]
        for part in self.chunks(len(row)):
            confidence.append(self.logits(h[row[part], col[part]]).softmax(-1).amax(-1))
        best = ranks(row, torch.cat(confidence)) < fires.sum(1)[row]
        return torch.zeros_like(masked).index_put_((row, col), best)

    def unmask(self, rows: Tensor, h: Tensor, positions: Tensor) -> None:
        """Draw tokens at positions (r, W) bool of rows (r,) from features (r, W, C)."""
        row, col = positions.nonzero(as_tuple=True)
        for part in self.chunks(len(row)):
            at = rows[row[part]], col[part] + 1
            z = self.logits(h[row[part], col[part]])
            self.x[at], self.fresh[at] = self.sample_categorical(z), True

    # -- inserting --

    def num_insertions(self, rows: Tensor, h: Tensor, chance: float, last: bool) -> Tensor:
        """(r, W) int64: number of MASK tokens to insert into each gap of rows (r,)."""
        gaps = self.gaps(rows, h.shape[1]) & (self.left[rows] > 0)[:, None]
        mean = torch.zeros(gaps.shape, dtype=torch.float64, device=h.device)
        mean[gaps] = self.objective.mean_gap(self.net, h[gaps]).double()
        if self.o.exact:
            return self.exact_insertions(rows, mean, 1.0 if last else chance)
        mean *= chance
        if self.o.sampler == "tau":
            more = torch.poisson(mean, generator=self.rng).long()
        else:
            more = (mean + self.uniforms(*mean.shape)).long()
        return more * (more.sum(1) <= self.left[rows])[:, None]

    def exact_insertions(self, rows: Tensor, mean: Tensor, chance: float) -> Tensor:
        """`num_insertions` with `exact`: each token that a hole lacks is inserted with probability
        `chance`, into a gap of its hole drawn in proportion to the mean (r, W)."""
        row, hole = self.room[rows].nonzero(as_tuple=True)
        times = self.room[rows[row], hole]
        row, hole = row.repeat_interleave(times), hole.repeat_interleave(times)
        inserted = self.uniforms(len(row)) < chance
        row, hole = row[inserted], hole[inserted]
        in_hole = self.hole[rows[row], : mean.shape[1]] == hole[:, None]
        gap = categorical(mean[row] * in_hole, self.uniforms(len(row)))
        one = torch.ones_like(gap)
        return torch.zeros_like(mean).long().index_put_((row, gap), one, accumulate=True)
