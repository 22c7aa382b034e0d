"""What a network computes on a batch, to be compared with one without the rows of its embedding
that stand for no id."""

from typing import Any

import torch
from torch import Tensor

from corpus import Batch
from objective import Objective, SampleOptions, generator


def outcome(
    objective: Objective, net: Any, batch: Batch, options: SampleOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, bound, or the loss again where there is none, ids of samples that go on with the first
    two tokens of each row); the gradients of the loss are left in the network."""
    loss = objective.loss(net, objective.corrupt(batch, generator(1))).sum
    loss.backward()
    bound = objective.bound(net, batch, generator(2)) if objective.bounded else loss.detach()
    ids = batch.ids[:, :8]
    given = (torch.arange(8) < 2).expand_as(ids)
    *_, last = objective.sample(net, ids, given, generator(3), options)
    return loss.detach(), bound, last.ids
