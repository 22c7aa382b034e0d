"""What training may do to the given prefix of a row: put it out of order, or spoil it.

Both are for cascades, whose stages are trained on the prefixes of real texts and sampled on those
that the stage before them wrote. They are drawn from the step's own generator, before anything
else, and never touch evaluation or sampling.
"""

import torch
from torch import Tensor

from corpus import Batch

REPLACED = 0.3  # of the tokens of a spoilt prefix


def changed_prefix(batch: Batch, shuffle: bool, noise: float, rng: torch.Generator) -> Batch:
    """The batch as one training step sees it. Draws nothing where nothing is asked for."""
    if noise:
        batch = spoilt_prefix(batch, noise, rng)
    return shuffled_prefix(batch, rng) if shuffle else batch


def shuffled_prefix(batch: Batch, rng: torch.Generator) -> Batch:
    """The given ids of every row in an order of its own. As attention looks both ways and knows a
    place by its number only, this is the same as giving the prefix its numbers in that order."""
    return batch._replace(ids=batch.ids.gather(1, permutation(batch.given, rng)))


def permutation(given: Tensor, rng: torch.Generator) -> Tensor:
    """given (B, T) bool, a prefix of each row -> (B, T) int64: a uniform permutation of the given
    places of each row; the others stay."""
    assert not (given[:, 1:] & ~given[:, :-1]).any(), "what is given is no prefix"
    places = torch.arange(given.shape[1]).expand(given.shape)
    draws = torch.rand(given.shape, generator=rng, dtype=torch.float64)  # float32 has equal ones
    return torch.where(given, draws, 1.0 + places).argsort(1)


def spoilt_prefix(batch: Batch, share: float, rng: torch.Generator) -> Batch:
    """In a `share` of the rows, REPLACED of the given ids become given ids of anywhere in the
    batch. That is what a generated prefix has: likely words that do not belong to its text."""
    rows = torch.rand(len(batch.ids), 1, generator=rng) < share
    hit = batch.given & rows & (torch.rand(batch.ids.shape, generator=rng) < REPLACED)
    pool = batch.ids[batch.given]
    if not len(pool):
        return batch
    other = pool[torch.randint(len(pool), batch.ids.shape, generator=rng)]
    return batch._replace(ids=torch.where(hit, other, batch.ids))
