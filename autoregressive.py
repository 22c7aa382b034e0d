"""Texts written one token after another: from left to right, or in any order.

Both bounds are exact: -log p(written | given) is a sum of cross entropies, one per token.

    left to right  a causal network predicts each token from those before it
    random order   the targets of a row in an order of their own, through the two streams of XLNet:
                   a query knows its place and the tokens before it in that order, not its own token
                   (Yang et al. 2019, arXiv 1906.08237; as a baseline in ILM, Patel et al. 2025,
                   arXiv 2505.05755)

A row whose first place is given begins with that token. One whose first place is not (a window of
a stream) stands behind a START symbol: BOS, else EOS, else an id of its own. Padding is neither
seen nor scored. EOS ends a text where the vocabulary has padding to put behind it.
"""

from typing import Any, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corpus import Batch
from model import Cache, StaticCache, chunked_cross_entropy, features_at, to_device
from objective import (
    Frame,
    Loss,
    Objective,
    SampleOptions,
    Sampler,
    pad_to_multiple,
)
from pretrained.causal import build_xlnet


class Prediction(NamedTuple):
    """Rows to read and the tokens to predict, on the CPU."""

    ids: Tensor  # (B, W) int64
    predicts: Tensor  # (B, M) bool: outputs of the network that predict a token
    target: Tensor  # (R,) int64: these tokens, in order of row and output
    network_kwargs: dict[str, Tensor]  # which places see which, and where they are
    endless: Tensor | None = None  # (R,) bool: not EOS, as a given token comes later; None: nowhere


class Ordered(Objective):
    """What both have in common: where a row begins and ends, exact bounds, the sampler's frame."""

    samplers = ("left_to_right",)
    config_fields = ()
    exact = crops_padding = True
    estimator = "exact likelihood, a sum of cross entropies from left to right"

    def __init__(self, vocab_size: int, specials: dict[str, int]):
        own = [specials[name] for name in ("bos", "eos") if name in specials]
        self.tokens, self.start = vocab_size, own[0] if own else vocab_size
        self.eos = specials.get("eos")
        self.end = self.eos if "pad" in specials else None
        self.pad = specials.get("pad")
        self.fill = specials.get("pad", specials.get("eos", 0))  # of places that nothing stands at
        rows = vocab_size if own else vocab_size + 1
        self.network_kwargs = {"causal": False, "time": False, "vocab_size": rows}

    def target_mask(self, batch: Batch) -> Tensor:
        return ~batch.prompt_mask & (torch.arange(batch.ids.shape[1]) < batch.length[:, None])

    def begun(self, ids: Tensor, chosen: Tensor, bare: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, T), and places (B, T) bool among them, behind START where `bare` (B, 1) says so;
        the others get a place more at their end, unless no row of the batch is bare."""
        if not bare.any():
            return ids, chosen
        pairs = ((ids, self.start, self.fill), (chosen, False, False))
        ahead, behind = (1, 0), (0, 1)
        return tuple(
            torch.where(bare, F.pad(x, ahead, value=first), F.pad(x, behind, value=last))
            for x, first, last in pairs
        )

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The batch up to its longest row -> ids, scored places and tokens that may be seen, each
        (B, S), with START where it is needed."""
        T = pad_to_multiple(max(1, int(batch.length.max())), batch.ids.shape[1])
        bare, written = ~batch.prompt_mask[:, :1], self.target_mask(batch)[:, :T]
        there = torch.arange(T) < batch.length[:, None]
        ids, scored = self.begun(batch.ids[:, :T], written, bare)
        _, seen = self.begun(batch.ids[:, :T], there, bare)
        seen[:, :1] |= bare  # START
        return ids, scored, seen

    def endless(self, ids: Tensor, scored: Tensor, seen: Tensor) -> Tensor | None:
        """(B, S) bool: scored places that EOS cannot stand at, since the sampler does not end a
        text before a given token of it; None: there are none. A row that has EOS there all the same
        is none that it writes, and has the cost of an EOS anywhere."""
        if self.end is None:
            return None
        S, place = ids.shape[1], torch.arange(ids.shape[1]).expand(ids.shape)
        soonest = [  # (B, S): the next place of a given token, and of a further sample
            place.masked_fill(~at, S).flip(1).cummin(1).values.flip(1)
            for at in (seen & ~scored, begins(ids, scored, seen, self.eos))
        ]
        endless = scored & (soonest[0] < soonest[1]) & (ids != self.end)
        return endless if endless.any() else None

    # -- loss and bound --

    def corrupt(self, batch: Batch, rng: torch.Generator | None) -> Prediction:
        """Nothing is corrupted. What is read, and which outputs predict the written tokens: in an
        order drawn with `rng` where there is a choice; None: from left to right."""
        raise NotImplementedError

    def features(self, net: Any, read: Prediction) -> tuple[Tensor, Tensor]:
        """Features that predict the written tokens (R, C), and their rows (R,)."""
        h, row, _ = features_at(net, read.ids, read.predicts, None, **read.network_kwargs)
        return h, row

    def cross_entropy(self, net: Any, read: Prediction) -> tuple[Tensor, Tensor, Tensor]:
        """-log p of the written tokens -> (sum (), of each (R,), its row (R,)), nats. Rows of the
        network that are no tokens are left out of its softmax."""
        h, row = self.features(net, read)
        target, weight = to_device(read.target, h.device), torch.ones(len(h), device=h.device)
        no_token = slice(self.tokens, None)
        if read.endless is None:
            return *chunked_cross_entropy(net.head, h, target, weight, no_token), row
        rest = [self.end, *range(self.tokens, len(net.head.weight))]
        total, each = torch.zeros((), device=h.device), torch.zeros(len(h), device=h.device)
        for at, banned in ((read.endless, rest), (~read.endless, no_token)):
            at = to_device(at.nonzero()[:, 0], h.device)
            part = net.head, h[at], target[at], weight[at], banned
            some, losses = chunked_cross_entropy(*part)
            total, each = total + some, each.index_copy(0, at, losses.to(each.dtype))
        return total, each, row

    def loss(self, net: Any, read: Prediction) -> Loss:
        """-log p of the written tokens, summed; nats."""
        total, each, _ = self.cross_entropy(net, read)
        return Loss(total, len(each), {})

    @torch.no_grad()
    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: -log p(written | given) itself, from left to right; nothing is drawn,
        so one sample is enough."""
        _, each, row = self.cross_entropy(net, self.corrupt(batch, None))
        total = torch.zeros(len(batch.ids), dtype=torch.float64)
        return total.index_add_(0, row, each.double().cpu())

    # -- sampling --

    def sampler(self, options: SampleOptions) -> type[Sampler]:
        return TokenByToken

    def write(self, net: Any, walk: "TokenByToken") -> Iterator[None]:
        """Draw every open place of the canvas; yields after each step."""
        raise NotImplementedError


class TokenByToken(Sampler):
    """A canvas that is written token by token: x (B, S) int64 and its open places (B, S) bool, with
    START where it is needed. Given padding at the end of a row is none of its text.

    A frame per written place; temperature, top_k, top_p, banned and stop have their usual meaning.
    Behind EOS stands padding. It is not written before a given token: a text that holds a given
    word does not end before it."""

    reads = (*Sampler.reads, "stop", "length")

    def __init__(
        self, objective: Ordered, net: Any, ids: Tensor, prompt_mask: Tensor, rng: Any, o: Any
    ):
        super().__init__(o, rng)
        self.objective, self.net, self.T = objective, net, ids.shape[1]
        self.bare = ~prompt_mask[:, :1]
        x = ids.masked_fill(~prompt_mask, objective.fill)
        self.x, self.editable = objective.begun(x, ~prompt_mask, self.bare)
        self.shift = (self.bare[:, 0] & (self.x.shape[1] > self.T)).long()  # (B,) for START
        solid = self.editable | (self.x != (-1 if objective.pad is None else objective.pad))
        self.inside = solid.flip(1).cumsum(1).flip(1) > 0  # (B, S): not in the padding at the end
        fixed = self.inside & ~self.editable
        self.awaited = fixed.flip(1).cumsum(1).flip(1) > 0  # (B, S): a given token comes later
        self.ends = [i for i in {objective.end, o.stop} if i is not None]

    def frames(self) -> Iterator[Frame]:
        """The canvas at first and after every step."""
        frame = self.frame(None)
        yield frame
        for _ in self.objective.write(self.net, self):
            frame = self.frame(frame)
            yield frame

    def frame(self, before: Frame | None) -> Frame:
        """The canvas without START; a row is as long as what is settled of it."""
        x = self.x[:, : self.T]
        if self.x.shape[1] > self.T:
            x = torch.where(self.bare, self.x[:, 1:], x)
        whole = x.new_full((len(x),), self.T) if self.o.length is None else self.o.length
        settled = self.editable.int().argmax(1) - self.shift
        length = torch.where(self.editable.any(1), settled, whole)
        changed = torch.zeros_like(x, dtype=torch.bool) if before is None else x != before.ids
        return Frame(x.clone(), length, changed, self.take_draws())

    def draw(self, row: Tensor, col: Tensor, z: Tensor) -> None:
        """Write the places (R,) from logits (R, V); a row that ends is closed behind its end."""
        z = z[:, : self.objective.tokens]
        z = z.clone() if z.dtype == torch.float64 else z.float()
        z = self.forbid(z, row, col - self.shift[row])
        z[:, self.ends] = z[:, self.ends].masked_fill(self.awaited[row, col, None], -torch.inf)
        token = self.sample_categorical(z)
        self.x[row, col], self.editable[row, col] = token, False
        self.place(row, col - self.shift[row])  # as a frame counts columns
        ended = torch.isin(token, token.new_tensor(self.ends))
        self.editable[row] &= ~ended[:, None]


class LeftToRight(Ordered):
    """A causal network, ours or one of transformers: what it knows at a place, that token included,
    predicts the next one."""

    def __init__(self, vocab_size: int, specials: dict[str, int]):
        super().__init__(vocab_size, specials)
        self.network_kwargs["causal"] = True

    def corrupt(self, batch: Batch, rng: torch.Generator | None) -> Prediction:
        ids, scored, seen = self.rows(batch)  # padding comes last, where no scored place looks
        width = max(1, ids.shape[1] - 1)
        ahead = scored.roll(-1, 1)[:, :width]  # the first place is never scored
        row, col = ahead.nonzero(as_tuple=True)
        apart = isolated(begins(ids, scored, seen, self.eos), width)
        endless = self.endless(ids, scored, seen)
        endless = None if endless is None else endless[row, col + 1]
        return Prediction(ids[:, :width], ahead, ids[row, col + 1], apart, endless)

    def write(self, net: Any, walk: TokenByToken) -> Iterator[None]:
        """A pass over one column for all rows that still have something to write, the keys and
        values of those before it kept; given columns in a row, as a prompt is, in one pass. A
        compiled network computes rows that are done as well, so that all passes are alike."""
        B, S = walk.x.shape
        cache, stored = (StaticCache(net, B, S) if net.compiled else Cache(B, S)), 0
        for col in range(1, S):
            if not walk.editable[:, col].any():
                continue
            live = walk.editable[:, col:].any(1) | net.compiled
            live = live.nonzero()[:, 0]
            cache.move(slice(stored, col), None if len(live) == B else live)
            h = net.features(walk.x[live, stored:col], None, cache=cache)[:, -1]
            now, stored = walk.editable[live, col], col
            walk.draw(live[now], torch.full_like(live[now], col), net.logits(h[now]))
            yield


def begins(ids: Tensor, scored: Tensor, seen: Tensor, eos: int | None) -> Tensor:
    """ids, scored places and tokens that are no padding (B, S) -> (B, S) bool: where a further
    sample of a packed row begins, which is where a given token follows an EOS that is written. A
    given token that follows anything else is a part of the text around it."""
    ends = scored & (ids == (-1 if eos is None else eos))
    return F.pad(ends[:, :-1], (1, 0)) & ~scored & seen


def isolated(first: Tensor, width: int) -> dict[str, Tensor]:
    """Where further samples begin (B, S) -> `mask` (B, W, W) and `positions` (B, W) of the first
    `width` columns, for a network that is to see each sample of a packed row as if it stood alone;
    nothing if all rows hold one."""
    place = torch.arange(first.shape[1]).expand(first.shape)
    if not first[:, :width].any():
        return {}
    begin = place.masked_fill(~first, 0).cummax(1).values[:, :width]
    return {
        "mask": begin[:, None] == begin[:, :, None],
        "positions": place[:, :width] - begin,
    }


# ---- random order ------------------------------------------------------------------------------


def reading_order(scored: Tensor, u: Tensor) -> Tensor:
    """(B, S) int64, the rank of each place: those that are not scored as they stand, then the
    scored ones (B, S) bool by u (B, S) in [0, 1)."""
    place = torch.arange(scored.shape[1], device=scored.device)
    return torch.where(scored, u.double(), place - scored.shape[1]).argsort(1).argsort(1)


def earlier(order: Tensor) -> Tensor:
    """Ranks (B, S) -> (B, S, S) bool: does a query see this key? Those before it in the order; not
    itself. XLNet's perm_mask is the opposite."""
    return order[:, None] < order[:, :, None]


def targets(order: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
    """Ranks and scored places (B, S) -> columns (B, M) of the scored places in their order, and
    which of them (B, M) are some: rows have different numbers. M is at least 1."""
    count = scored.sum(1, keepdim=True)
    M = max(1, int(count.max()))
    columns = order.masked_fill(~scored, scored.shape[1]).argsort(1)[:, :M]
    return columns, torch.arange(M, device=scored.device) < count


class RandomOrder(Ordered):
    """XLNet: the prompt is read as it stands, the targets in a random order; sampled from left to
    right, after all that is given, wherever it stands."""

    def __init__(self, vocab_size: int, specials: dict[str, int]):
        super().__init__(vocab_size, specials)
        self.network_kwargs["network"] = build_xlnet

    def corrupt(self, batch: Batch, rng: torch.Generator | None) -> Prediction:
        ids, scored, seen = self.rows(batch)
        u = torch.arange(ids.shape[1]) / ids.shape[1]
        if rng is not None:
            u = torch.rand(ids.shape, generator=rng, dtype=torch.float64)
        order = reading_order(scored, u.expand(ids.shape))
        columns, some = targets(order, scored)
        row, slot = some.nonzero(as_tuple=True)
        how = {"mask": earlier(order) & seen[:, None], "columns": columns}
        endless = self.endless(ids, scored, seen)
        endless = None if endless is None else endless[row, columns[row, slot]]
        return Prediction(ids, some, ids[row, columns[row, slot]], how, endless)

    def write(self, net: Any, walk: TokenByToken) -> Iterator[None]:
        """The next open place of every row; a pass over whole rows for each."""
        S = walk.x.shape[1]
        left_to_right = torch.arange(S, device=walk.x.device) / S
        order = reading_order(walk.editable, left_to_right.expand(walk.x.shape))
        mask = earlier(order) & walk.inside[:, None]
        while walk.editable.any():
            row = walk.editable.any(1).nonzero()[:, 0]
            col = walk.editable[row].int().argmax(1)
            h = net.features(walk.x[row], None, mask[row], col[:, None])[:, 0]
            walk.draw(row, col, net.logits(h))
            yield
