"""Block diffusion: blocks from left to right, each by masked diffusion given all before it.

    BD3  Arriola et al. 2025, Block Diffusion: Interpolating Between Autoregressive and Diffusion
         Language Models, arXiv 2503.09573

log p(x) = sum_b log p(x_b | x_<b), and each term has the bound of masked diffusion (BD3). A block
as long as the row is masked diffusion; blocks of one token, which are always masked, are an
autoregressive model. Given tokens are clean wherever they stand, but no block sees what is given in
the blocks to its right: infilling works within a block, and continuation anywhere.
"""

from functools import lru_cache
from typing import Any, Iterable, Iterator, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configurator import UserError
from corpus import Batch
from decode import SAMPLERS, Decoder
from masked import Masked
from model import Cache
from noise import Noise
from objective import Frame, SampleOptions, choose_sampler, frames, stratified, to_device

WIDTHS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of clipped ranges of t, moved in steps of 0.05 (BD3)

# ---- one pass over all blocks ------------------------------------------------------------------


@lru_cache(8)
def block_mask(T: int, length: int, device: torch.device) -> Tensor:
    """(2T, 2T) bool: may query attend to key, for T noised tokens followed by the same T clean ones
    (BD3): to its own block in its own half, and to the clean blocks before it."""
    place = torch.arange(2 * T, device=device)
    block, clean = place % T // length, place >= T
    same = (block[:, None] == block) & (clean[:, None] == clean)
    return same | ((block[:, None] > block) & clean)


class Cells(NamedTuple):
    """A batch whose rows are blocks, B times as many as a row has: what masked diffusion is done
    on. The last block of a row is filled up with places that count as given."""

    ids: Tensor  # (B nb, L) int64
    given: Tensor  # (B nb, L) bool
    length: Tensor  # (B nb,) int64
    rows: Batch  # the batch itself


def cells(batch: Batch, length: int) -> Cells:
    """The blocks of a batch, row by row; length 0: whole rows."""
    T = batch.ids.shape[1]
    size = min(length or T, T)
    fill = -T % size
    ids, given = F.pad(batch.ids, (0, fill)), F.pad(batch.given, (0, fill), value=True)
    start = torch.arange(0, T, size)
    own = (batch.length[:, None] - start).clamp(0, size)
    return Cells(ids.view(-1, size), given.view(-1, size), own.flatten(), batch)


class Beside:
    """A network that is shown noised blocks and sees each with the clean blocks before it, in one
    pass over 2T positions, 0 to T - 1 twice. Clean tokens are told `still`, the lowest level, but
    for a network that is told the same everywhere (`per_row`)."""

    def __init__(self, net: Any, x0: Tensor, still: Tensor | None, per_row: bool):
        self.net, self.x0, self.still, self.per_row = net, x0, still, per_row
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
            time = torch.cat([level, self.still.expand(B, T)], 1)
        positions = torch.arange(T, device=xt.device).repeat(2)[None]
        h = self.net.features(both, time, mask, positions)[:, :T]
        return F.pad(h, (0, 0, 0, -T % size)).reshape(len(xt), size, -1)


# ---- the objective -----------------------------------------------------------------------------


class BlockDiffusion(Masked):
    """Masked diffusion of blocks of `length` tokens (0: the whole row); the last may be short.

    Every block has a time of its own, in training from [low, high]: a clipped schedule has less
    spread where neither very few nor almost all tokens are masked (BD3). Bounds are over
    the whole range whatever was trained. Published models are told nothing of the noise; a network
    with time is told of each token's own, and the clean ones that they are clean.
    """

    samplers = ("first_hitting", *(name for name in SAMPLERS if name != "first_hitting"))
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
        assert self.loss_per == "token" and not self.by_importance, "a row is not one loss here"
        # a single token is masked or costs nothing: masking it always has no spread at all
        self.length, self.low, self.high = length, 1.0 if length == 1 else low, high
        if length == 1:
            self.exact, self.estimator = True, "exact likelihood, blocks of one token"

    def cut(self, batch: Batch, rng: torch.Generator | None) -> Cells:
        """Blocks instead of rows are what everything below is done on."""
        return cells(super().cut(batch, rng), self.length)

    def times(self, B: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """One time in each of B strata of [low, high], in random order: a block's time must not
        depend on where it stands in the row."""
        low = max(self.low, self.noise.lowest)
        t = low + (self.high - low) * stratified(B, rng)[torch.randperm(B, generator=rng)]
        return t, self.noise.weight(t)

    def look(
        self, net: Any, batch: Cells, masked: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        beside = Beside(net, batch.rows.ids, self.still(net), self.zero_time)
        return super().look(beside, batch, masked, sigma)

    def still(self, net: Any) -> Tensor | None:
        """(1,) what the network is told of a clean token."""
        return self.condition(net, torch.zeros(1), net.head.weight.device)

    def bound(self, net: Any, batch: Batch, rng: torch.Generator, samples: int = 1) -> Tensor:
        """(B,) float64 nats: the sum of the bounds of the blocks, each given the clean ones before
        it, its number of masked tokens drawn by itself. Exact for blocks of one token."""
        return super().bound(net, batch, rng, samples).view(len(batch.ids), -1).sum(1)

    def discrete_bound(
        self, net: Any, batch: Batch, rng: torch.Generator, T: int, samples: int = 1
    ) -> Tensor:
        """As Masked's, T steps for each block."""
        each = super().discrete_bound(net, batch, rng, T, samples)
        return each.view(len(batch.ids), -1).sum(1)

    @torch.no_grad()
    def clip_search(
        self, net: Any, batches: Iterable[Batch], rng: torch.Generator
    ) -> list[tuple[float, float, float]]:
        """Ranges of t by the spread of a block's loss in them, least first: (variance of the nats
        per written token, low, high). All widths are judged by the same blocks, each with a time
        from the whole range (after BD3's search for clipped schedules)."""
        lowest, times, losses = self.noise.lowest, [], []
        for batch in batches:
            batch = self.cut(batch, None)
            written, u = self.written(batch), torch.rand(batch.ids.shape, generator=rng)
            t = lowest + (1 - lowest) * torch.rand(len(batch.ids), generator=rng)
            masked = written & (u < self.noise.masked(t)[:, None])
            nats = self._nats(net, batch, masked, self.noise.weight(t), self.noise.total(t))
            some = written.any(1)
            times.append(t[some])
            losses.append((nats / written.sum(1).clamp(min=1))[some])
        t, loss = torch.cat(times), torch.cat(losses)
        ranges = [(lowest, 1.0)]
        for width in WIDTHS:
            ranges += [(k / 20, k / 20 + width) for k in range(round(20 * (1 - width)) + 1)]
        return sorted((float(loss[(t >= a) & (t <= b)].var()), a, b) for a, b in ranges)

    @torch.no_grad()
    def sample(
        self, net: Any, ids: Tensor, given: Tensor, rng: torch.Generator, options: SampleOptions
    ) -> Iterator[Frame]:
        """decode.py says what the options do, within each block; see `BlockDecoder`."""
        options = choose_sampler(self, options)
        yield from frames(BlockDecoder(self, net, ids, given, rng, options))


# ---- sampling ----------------------------------------------------------------------------------


class BlockDecoder(Decoder):
    """Any sampler within a block. Keys and values of finished blocks are kept, so that a step is a
    pass over one block; the first step of a block also stores the one before it, and the first of
    all the prompt, under the mask of training: what a step computes is what training computed.
    Blocks lie where they lay in training, at multiples of their length, and `steps` are shared out
    among all of them, given ones included: a row does not depend on its neighbours' prompts."""

    def __init__(
        self, process: BlockDiffusion, net: Any, ids: Tensor, given: Tensor, rng: Any, o: Any
    ):
        super().__init__(process, net, ids, given, rng, o)
        B, T = ids.shape
        self.size = min(process.length or T, T)
        self.block = torch.arange(T, device=ids.device).expand_as(ids) // self.size
        self.blocks = (T - 1) // self.size + 1
        self.kept, self.stored = Cache(B, T), 0  # clean columns below `stored` are in the cache
        if o.cfg:
            raise UserError("cfg: block diffusion has no guidance, its prompt lies in the cache")
        if o.mirror is not None and self.size < T:
            raise UserError("mirror: this model writes from left to right, in several blocks")
        if o.block_length not in (0, process.length):
            raise UserError(f"block_length: this model was trained with {process.length}")

    def overall(self, share: Tensor) -> Tensor:
        """Every block has a noise level of its own."""
        return share

    def look(self, rows: Tensor, time: Tensor | None) -> tuple[Tensor, int]:
        """Features (r, W, C) of the present block, and the column where it begins."""
        T, kept, device = self.x.shape[1], self.kept, rows.device
        start = self.reach * self.size
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
        h = self.net.features(self.x[every, kept.at], time, mask, cache=kept)
        return h[rows, clean:] if clean else h, start

    def levels(self, rows: Tensor, time: Tensor, start: int) -> Tensor:
        """What the network is told of the columns of this pass: time (r,) of the present block,
        and the others that they are clean."""
        still, width = self.process.still(self.net), self.kept.visible - self.kept.at.start
        if self.process.zero_time:
            return still.repeat(len(self.x))
        levels = still.repeat(len(self.x), width)
        levels[rows, start - self.kept.at.start :] = time[:, None]
        return levels
