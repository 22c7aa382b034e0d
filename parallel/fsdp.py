"""One network over many processes: DDP, where each process has all of it, or FSDP2, where each has
a shard of every parameter, gradient and moment.

FSDP2 is PyTorch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277): a block is gathered from its
shards while it computes, and gradients are reduced into the shards. A loss also reads the head, so
parameters outside of the blocks are gathered while it runs.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configurator import Config
from model import pick_dtype
from objective import Loss, Objective
from parallel.processes import World

NUMBER = re.compile(r"\d{6,}")  # the name of a save


class Root(nn.Module):
    """The root module of FSDP2: root(work) is work() with the parameters outside of the blocks
    gathered. The batch is not an argument, as FSDP would move it to the GPU."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class LossModule(nn.Module):
    """The module that DDP wraps: its forward is the objective's loss, so that DDP's hooks run."""

    def __init__(self, net: nn.Module, objective: Objective):
        super().__init__()
        self.net, self.objective = net, objective

    def forward(self, noisy: Any) -> Loss:
        return self.objective.loss(self.net, noisy)


def wrap_model(
    net: nn.Module, objective: Objective, cfg: Config, world: World
) -> tuple[nn.Module, Root | None]:
    """(module, root): the loss as a module over all processes, and with fsdp the Root within which
    it must be called."""
    module = LossModule(net, objective)
    if world.size == 1:
        return module, None
    if cfg.parallel == "fsdp":
        return module, shard(net, cfg, world.device)
    # without device_ids, which would move batches to the GPU: indices are computed on the CPU
    return nn.parallel.DistributedDataParallel(module), None


def shard(net: nn.Module, cfg: Config, device: torch.device) -> Root:
    """Shard the network over all processes, block by block; it ends on the device. All processes
    must call its blocks equally often, backward passes included.

        In a bfloat16 run blocks are gathered in bfloat16, which halves communication and memory;
    the shards, their gradients and the parameters outside of the blocks (embeddings, head) stay
    float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    dtype, root = pick_dtype(cfg.dtype, device), Root(net)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    fixed = {"reduce_dtype": torch.float32, "cast_forward_inputs": False}
    low = None if dtype == torch.float32 else dtype
    for block in net.blocks:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=low, **fixed))
    fully_shard(root, mesh=mesh, mp_policy=MixedPrecisionPolicy(**fixed))
    if device.type == "cpu":  # gloo has no mean
        root.set_force_sum_reduction_for_comms(True)
    return root


# ---- parts of tensors --------------------------------------------------------------------------


def local(value: Tensor) -> Tensor:
    """This process's shard of a tensor, sharing its memory; a tensor that is not sharded as it
    is."""
    return value.to_local() if hasattr(value, "to_local") else value


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor -> sharded as `like`, without communication."""
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device, like.dtype)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def shard_moments(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state_dict of an optimiser -> sharded as its parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    state = {}
    for i, entries in saved["state"].items():
        like = params[i].detach()
        state[i] = {
            k: part_of(v, like) if torch.is_tensor(v) and v.shape == like.shape else v
            for k, v in entries.items()
        }
    return {**saved, "state": state}


def shard_state(
    whole: dict[str, Any], parts: Any, ema: dict[str, Tensor], optimizers: list
) -> dict[str, Any]:
    """A checkpoint with averages and moments sharded as in the run: read from `parts`
    (sharded_checkpoint.Saved) if given, else cut from the whole ones."""
    if parts:
        return parts.rest(ema, optimizers)
    averages = whole["ema"] and {k: part_of(whole["ema"][k], like) for k, like in ema.items()}
    pairs = zip(whole["optimizer"], optimizers, strict=True)
    return {**whole, "ema": averages, "optimizer": [shard_moments(s, o) for s, o in pairs]}


def total_norm(grads: list[Tensor]) -> Tensor:
    """Norm () of all gradients together, sharded or not."""
    norm = nn.utils.get_total_norm([local(g) for g in grads])
    if hasattr(grads[0], "to_local"):
        square = norm.double() ** 2
        dist.all_reduce(square)
        norm = square.sqrt().to(norm.dtype)
    return norm


@contextlib.contextmanager
def replaced(root: Root, values: dict[str, Tensor]) -> Iterator[nn.Module]:
    """The network in evaluation mode with other values of its parameters, by name, while the block
    runs. FSDP has its own memory for the shards, so values are copied there and back."""
    params = dict(root.net.named_parameters())
    raw = {name: local(params[name]).detach().clone() for name in values}
    root.eval()
    try:
        for name, value in values.items():
            local(params[name]).detach().copy_(local(value))
        yield root.net
    finally:
        root.reshard()  # evaluation leaves parameters outside of the blocks gathered
        for name, value in raw.items():
            local(params[name]).detach().copy_(value)
        root.train()


# ---- checkpoints: ckpt.pt of whole runs, the folder ckpt of sharded ones -------------------------


def saves(folder: Path) -> list[Path]:
    """The complete saves in the folder of a sharded run, oldest first."""
    files = folder.iterdir() if folder.is_dir() else []
    numbered = sorted(p for p in files if NUMBER.fullmatch(p.name))
    return [p for p in numbered if (p / "layout.json").is_file()]


def newest(out: Path) -> Path | None:
    """The checkpoint of a run: ckpt.pt or the folder ckpt. Both exist only if a run was killed just
    after writing the later one."""
    file, done = out / "ckpt.pt", saves(out / "ckpt")
    if not (done and file.exists()):
        return out / "ckpt" if done else file if file.exists() else None
    later = (done[-1] / "layout.json").stat().st_mtime_ns > file.stat().st_mtime_ns
    return out / "ckpt" if later else file


def retire_other(written: Path) -> None:
    """Rename the checkpoint of the other form to ckpt_prev."""
    whole = written.suffix == ".pt"
    old = written.with_suffix("" if whole else ".pt")
    if old.exists():
        previous = old.with_name(f"{written.stem}_prev{old.suffix}")
        if whole:
            shutil.rmtree(previous, ignore_errors=True)
        os.replace(old, previous)
