"""What a model of any size needs: python -m parallel.scale

A table of memory per GPU, speed and checkpoint size for runs with --parallel=fsdp on several GPUs.
Parameters are counted on the real network; the rest follows from these rules, in bytes:

    state        20 P / G: float32 weights, gradients, two moments of AdamW and the average of P
                 parameters, parted among G GPUs
    whole        8 R + 2 H + 10 B: R parameters outside of the blocks and their gradients in
                 float32, the head's H weights in bfloat16, two blocks of B parameters in bfloat16
                 (the next one comes while one computes), the gradients of one in bfloat16 and,
                 to be summed, in float32
    activations  n_layer times `block_bytes` for each token; with gradient checkpointing one block,
                 and 4 C for each layer; 12 C outside of the blocks
    speed        G times MFU times the peak of a GPU, over the FLOPs of a token
    checkpoint   16 P: float32 weights, averages and both moments; each process writes 16 P / G
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from checkpoint import build_network, build_objective
from configurator import Config, load, require, run

VOCABULARY = {"vocab_size": 50257, "specials": {"eos": 50256}}  # GPT-2's
SHAPES = {  # layers, heads, width
    "125M": (12, 12, 768),
    "350M": (24, 16, 1024),
    "1.3B": (24, 16, 2048),
    "2.7B": (32, 32, 2560),
    "7B": (32, 32, 4096),
}
GPUS = {"125M": (1, 8), "350M": (1, 8), "1.3B": (8, 32), "2.7B": (8, 32), "7B": (8, 64, 256)}
HEAD = "model,GPUs,parameters,state,whole,activations,with checkpointing,sum,tokens/s,days,ckpt"
GB, TOTAL = 1e9, 1e12


@dataclass(frozen=True)
class ScaleConfig:
    """The options of this command."""

    mfu: float = 0.4  # share of the peak that the FLOPs of the model are: assumed, not measured
    peak: float = 989e12  # FLOP/s of one GPU in bfloat16: H100 SXM without sparsity, its data sheet
    memory: float = 80e9  # bytes of one GPU
    block_size: int = 1024  # tokens of a row
    rows: int = 8  # of a micro-batch
    objective: str = "masked"  # a name listed in checkpoint.py

    def __post_init__(self):
        for key in ("mfu", "peak", "memory", "block_size", "rows"):
            require(self, key, getattr(self, key) > 0, "above 0")


class Sizes(NamedTuple):
    """Parameters of a network, of one of its blocks, outside of the blocks, and in the head; FLOPs
    for each token."""

    all: int
    block: int
    root: int
    head: int
    flops: int


def sizes(cfg: Config) -> Sizes:
    """Counted on the real network on the meta device, without memory."""
    with torch.device("meta"):
        net = build_network(cfg, build_objective(cfg, VOCABULARY))
    block, whole = (sum(p.numel() for p in m.parameters()) for m in (net.blocks[0], net))
    root, head = whole - block * len(net.blocks), net.head.weight.numel()
    return Sizes(whole, block, root, head, net.flops_per_token(cfg.block_size))


def block_bytes(cfg: Config, low: int = 2) -> int:
    """Bytes that one block keeps per token for the backward pass, with matrix products in `low`
    bytes per number: both inputs of the residual branches in float32, the input of each product,
    queries, keys and values before and after rotation, and the MLP's hidden layer before and after
    its activation; with time also both normalised inputs and both outputs, for the gates."""
    C, inner = cfg.n_embd, cfg.n_inner or 4 * cfg.n_embd
    turned = 2 * C if cfg.positions != "learned" else 0
    kept = 8 * C + low * (C + 3 * C + turned + C + C + 2 * inner)
    return kept + (16 * C if cfg.time_input else 0)


def activations(cfg: Config, tokens: int, checkpointing: bool) -> int:
    """Bytes for a micro-batch of so many tokens."""
    inside = cfg.n_layer * block_bytes(cfg)
    if checkpointing:
        inside = cfg.n_layer * 4 * cfg.n_embd + block_bytes(cfg)
    return tokens * (inside + 12 * cfg.n_embd)


def line(scale: ScaleConfig, name: str, gpus: int) -> list[str]:
    """One row of the table."""
    layers, heads, width = SHAPES[name]
    shape = {"n_layer": layers, "n_head": heads, "n_embd": width, "block_size": scale.block_size}
    cfg = Config(objective=scale.objective, time_input=False, **shape)
    n, tokens = sizes(cfg), scale.rows * scale.block_size
    state = 20 * n.all / gpus
    whole = 8 * n.root + 2 * n.head + 10 * n.block if gpus > 1 else 2 * n.all
    both = [activations(cfg, tokens, checkpointing) for checkpointing in (False, True)]
    fits = [state + whole + each <= scale.memory for each in both]
    best = both[0] if fits[0] else both[1]
    total = f"{(state + whole + best) / GB:.1f}" + ("" if any(fits) else " (too much)")
    speed = gpus * scale.mfu * scale.peak / n.flops
    days = TOTAL / speed / 86400
    memory = [f"{x / GB:.1f}" for x in (state, whole, *both)]
    sums = [total, f"{speed:,.0f}", f"{days:,.0f}", f"{16 * n.all / GB:,.1f}"]
    return [name, str(gpus), f"{n.all / 1e6:,.0f} M", *memory, *sums]


def table(cfg: ScaleConfig) -> str:
    """The table, as Markdown. Memory in GB for each GPU, with checkpointing where it would not fit
    without; days for 10^12 tokens; GB of a checkpoint."""
    rows = [HEAD.split(","), ["---"] * len(HEAD.split(","))]
    rows += [line(cfg, name, gpus) for name, counts in GPUS.items() for gpus in counts]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(argv: list[str]) -> None:
    cfg, _ = load(ScaleConfig, argv)
    print(table(cfg))


if __name__ == "__main__":
    run(main)
