"""This process among those of a job: one alone, or the place that torchrun gave it."""

import datetime
import os
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from configurator import Config, UserError
from model import pick_device


class World(NamedTuple):
    """This process's place in the job."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        if self.size > 1:
            dist.all_reduce(values)
        return values


def enter_world(cfg: Config) -> World:
    """The World of a single process, or of torchrun; a GPU per process, or gloo on the CPU."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), os.environ.get("LOCAL_RANK", "0")
    accumulate = cfg.gradient_accumulation_steps
    if accumulate % size:
        raise UserError(
            f"config error: gradient_accumulation_steps={accumulate} must be a multiple of the "
            f"number of processes, {size}: it counts the micro-batches of the whole job"
        )
    device = pick_device(cfg.device)
    if size > 1:
        if device.type == "cuda":
            device = pick_device(f"cuda:{local}")
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        limit = datetime.timedelta(seconds=cfg.patience)
        store, rank, size = next(dist.rendezvous("env://", timeout=limit))
        # torchrun keeps its store over restarts: without a name of its own, an attempt may read the
        # addresses of workers that are dead, and wait for them
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        options = {"store": store, "rank": rank, "world_size": size, "timeout": limit}
        dist.init_process_group(backend, **options)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    return World(rank, size, device)
