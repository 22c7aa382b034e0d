"""Samples that mirror themselves by construction: `python sample.py --palindrome`.

Only the first half of a text is written, by the objective's own sampler. The network sees it beside
its mirror image and predicts both places of a pair; a token is drawn from the mean of the two
distributions. A network that reads from left to right sees the first half alone.
"""

import math
from dataclasses import replace
from typing import Any, Iterator

import torch
from torch import Tensor

from configurator import UserError
from objective import Draws, Frame, Objective, SampleOptions, choose_sampler


def partners(ids: Tensor, prompt_mask: Tensor, specials: list[int]) -> Tensor:
    """Canvas ids (T,) with given places (T,) bool -> (T,) int64, the partner of each place: the
    text, which is all but given special tokens, is mirrored; other places are their own."""
    text = ~(prompt_mask & torch.isin(ids, torch.tensor(specials, dtype=ids.dtype)))
    mirror = torch.arange(len(ids))
    mirror[text] = mirror[text].flip(0)
    return mirror


class Mirrored:
    """A network for canvases whose second half repeats the first: features (r, T, 2C) are those of
    a place beside those of its partner, logits the mean of both distributions, or of both scores.

    net: the network; mirror (r, T): partners; never: ids that are left out of its distributions;
    normalize: are its outputs logits of distributions, or of scores?
    """

    def __init__(self, net: Any, mirror: Tensor, never: list[int], normalize: bool):
        self.net, self.time, self.never, self.normalize = net, net.time, never, normalize
        self.mirror = mirror
        self.first = torch.minimum(mirror, torch.arange(mirror.shape[1], device=mirror.device))

    def features(self, ids: Tensor, *inputs: Any, **options: Any) -> Tensor:
        """As Transformer.features on ids (r, T), the second halves of which are not read. With
        guidance, the rows come twice."""
        times = len(ids) // len(self.mirror)
        ids = ids.gather(1, self.first.repeat(times, 1))
        h = self.net.features(ids, *inputs, **options)
        mirror = self.mirror.repeat(times, 1)[..., None].expand_as(h)
        return torch.cat([h, h.gather(1, mirror)], -1)

    def logits(self, h: Tensor) -> Tensor:
        """(..., 2C) -> (..., V), at least float32."""
        z = self.net.logits(h.unflatten(-1, (2, -1)))  # (..., 2, V)
        z = z if z.dtype == torch.float64 else z.float()
        if self.normalize:
            z[..., self.never] = -torch.inf
            z = z.log_softmax(-1)
        return z.logsumexp(-2) - math.log(2)


@torch.no_grad()
def sample(
    objective: Objective,
    net: Any,
    ids: Tensor,
    prompt_mask: Tensor,
    mirror: Tensor,
    rng: torch.Generator,
    options: SampleOptions,
) -> Iterator[Frame]:
    """As Objective.sample, for canvases (B, T) that hold the same token at both places of a pair;
    mirror (B, T) int64: partner of each place. Of a pair, both places or none are given. Raises
    UserError for what would not write a text as a whole."""
    T, options = ids.shape[1], choose_sampler(objective, options)
    in_blocks = options.block_length or 0 < getattr(objective, "length", 0) < T
    cached = options.cache != "none"
    for name, asked in {"block_length": in_blocks, "stop": options.stop, "cache": cached}.items():
        if asked:
            raise UserError(f"{name}: a mirrored text is written as a whole, not from its left end")
    places = torch.arange(T, device=ids.device)
    first = torch.minimum(mirror, places)
    open_places = ~prompt_mask & (first == places)  # (B, T): what is written
    if objective.samplers == ("left_to_right",):  # a network that sees nothing of what is behind
        half = (open_places * (places + 1)).amax(1, keepdim=True).clamp(min=1)  # (B, 1)
        behind = torch.full_like(ids, getattr(objective, "fill", 0))
        shown = torch.where(places < half, ids, behind)[:, : int(half.max())]
    else:
        never = [i for i in (objective.mask_id, *options.banned) if i is not None]
        normalize = getattr(objective, "normalize", True)
        options = replace(
            options, wrap=lambda net, rows: Mirrored(net, mirror[rows], never, normalize)
        )
        shown = ids
    W = shown.shape[1]
    for frame in objective.sample(net, shown, ~open_places[:, :W], rng, options):
        new, changed = ids.clone(), torch.zeros_like(prompt_mask)
        new[:, :W] = torch.where(open_places[:, :W], frame.ids, ids[:, :W])
        changed[:, :W] = open_places[:, :W] & frame.changed
        length = torch.where(frame.length == W, T, frame.length)
        draws = None if frame.draws is None else both_places(frame.draws, mirror)
        yield Frame(new.gather(1, first), length, changed.gather(1, first), draws)


def both_places(draws: Draws, mirror: Tensor) -> Draws:
    """Draws for the first half -> for both places of each pair."""
    partner = mirror[draws.row, draws.col]
    pairs = partner != draws.col
    second = [x[pairs] for x in draws._replace(col=partner)]
    return Draws(*map(torch.cat, zip(draws, second, strict=True)))
