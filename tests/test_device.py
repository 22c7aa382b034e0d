"""That a GPU never waits within a step, checked on a CPU: in the loss of every objective, what is
made of weights and of what `to_device` has moved counts as being on the device. Nothing reads such
a tensor back, looks for its nonzero places, or mixes it with one that was not moved."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from checkpoint import OBJECTIVES, build_network, build_objective
from configurator import Config
from corpus import Batch
from objective import generator

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")
BOTH = ("stack", "cat")  # where even a number from the other side must be copied first


class Elsewhere(TorchDispatchMode):
    """Refuses what would wait for the device, or fail on one."""

    def __init__(self, params):
        super().__init__()
        self.side: WeakIdKeyDictionary = WeakIdKeyDictionary()  # of a storage: is it on the device
        for p in params:
            self.mark(p, True)

    def mark(self, x, far):
        self.side[x.untyped_storage()] = far

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, tensors = func.__name__.split(".")[0], []
        for x in tree_leaves((args, kwargs or {})):
            if isinstance(x, torch.Tensor):
                tensors.append((x, self.side.get(x.untyped_storage())))
        far = any(side is True for _, side in tensors)
        if far:
            assert not name.startswith(WAITS), f"{func} waits for the device"
            for x, side in tensors:
                apart = side is False and (x.ndim or name in BOTH)
                assert not apart, f"{func}: {list(x.shape)} of {x.dtype} was not moved"
            for x, _ in tensors if name.startswith("index") else ():
                assert x.dtype != torch.bool, f"{func} by bool waits for the device"
        out = func(*args, **(kwargs or {}))
        random = (kwargs or {}).get("generator") is not None
        known = far or random or any(side is False for _, side in tensors)
        for x in tree_leaves(out) if known else ():
            if isinstance(x, torch.Tensor):
                self.mark(x, far)
        return out


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "xlnet"])
def test_a_loss_never_waits(name, monkeypatch):
    """All but xlnet, whose network is that of transformers, and reads a number back."""
    noise = "geometric" if name == "idlm" else "loglinear"
    cfg = Config(objective=name, noise=noise, block_length=4, n_layer=1, n_head=2, n_embd=16)
    specials = {"bos": 7, "eos": 8, "pad": 9, "mask": 10}
    objective = build_objective(cfg, {"vocab_size": 11, "specials": specials})
    net = build_network(cfg, objective)
    ids = torch.randint(7, (8, 12), generator=generator(0))
    given = torch.arange(12).expand(8, 12) < 1
    batch = Batch(ids.masked_fill(given, 7), given, torch.full((8,), 12))
    with Elsewhere([*net.parameters(), *net.buffers()]) as spy:

        def moved(x, device):
            x = x.clone()
            spy.mark(x, True)
            return x

        for module in [m for m in sys.modules.values() if hasattr(m, "to_device")]:
            monkeypatch.setattr(module, "to_device", moved)
        for x in batch:
            spy.mark(x, False)
        loss = objective.loss(net, objective.corrupt(batch, generator(1)))
        total = torch.cat([loss.sum[None], *loss.metrics.values()])
        loss.sum.backward()
        assert spy.side[total.untyped_storage()]
    assert net.head.weight.grad is not None
